"""A job's rounds against a controller in memory: exact weights, true counts, and what happens when things fail."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from agent import innerstate, jobfolder
from agent.client import Control
from agent.job import environment, train_window
from agent.jobfolder import Orders
from agent.rounds import schedule_of
from agent.speaker import JobEnvironment, Speaker
from curtail import wire
from curtail.clock import SystemClock
from curtail.disk import SystemDisk
from curtail.errors import CheckpointError, UsageError
from nanochat import delta, weights
from nanochat.gpt import GPT
from nanochat.manifest import Manifest, SourceShard, TokenFile
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig, to_dict
from nanochat.train import StepBatches, inner_steps

CONFIG = GPTConfig(8, 64, 1, 1, 1, 16)
BATCH = 2
STEP_TOKENS = BATCH * CONFIG.sequence_len
DISK = SystemDisk()


class Stream:
    """Samples that follow from their index."""

    def batch(self, start, stop):
        rows = np.arange(start, stop)[:, None] * 7 + np.arange(CONFIG.sequence_len + 1)[None, :] * 3
        rows = (rows * rows % 61).astype(np.int64)
        return rows[:, :-1], rows[:, 1:]


class NoWait(SystemClock):
    """Real time that is never waited for."""

    def __init__(self):
        self.skipped = 0.0

    def monotonic(self):
        return time.monotonic() + self.skipped

    def sleep(self, seconds):
        self.skipped += seconds


class World:
    """A controller that follows a script of assignments, and the folders of one site."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.clock = NoWait()
        self.blobs, self.parts = {}, {}
        self.replies, self.checkouts, self.commits, self.uploads = [], [], [], {}
        self.faults = {}
        self.progress = wire.ProgressReply(False, "")
        self.on_checkout = lambda number: None
        self.lines = []
        text = Manifest(8, 64, "0" * 64, "stream", (SourceShard("s", "0" * 64),), (self.token_file(),)).to_json()
        model = GPT(CONFIG)
        model.init_weights(1)
        self.base = weights.from_model(model)
        self.info = wire.RunInfo(
            "run1",
            "r",
            1,
            "custom",
            to_dict(CONFIG),
            self.put(text.encode()),
            "0" * 64,
            8,
            10**6,
            BATCH,
            0,
            0.4,
            "int8",
        )

    def token_file(self):
        data = bytes(200)
        return TokenFile("train_00000.bin", "train", 100, self.put(data), len(data))

    def put(self, data):
        sha = hashlib.sha256(data).hexdigest()
        self.blobs[sha] = data
        return sha

    def put_weights(self, values):
        path = self.tmp_path / "w"
        weights.write_weights(path, values, DISK, "X")
        return self.put(path.read_bytes())

    def put_delta(self, values):
        path = self.tmp_path / "d"
        delta.write_delta(path, values, DISK, "X")
        return self.put(path.read_bytes())

    def train(self, number, base, fetch="none", blob="", codec="weights", start=0, steps=3, before=0, train_s=1e6):
        assignment = wire.Assignment(
            number,
            number - 1,
            weights.digest(base),
            fetch,
            blob,
            start,
            start + steps * BATCH,
            train_s,
            before,
            STEP_TOKENS,
            codec,
            1,
        )
        self.replies.append(wire.CheckoutReply("train", "", 0.0, assignment))

    def handle(self, request):
        path = request.url.path
        faults = self.faults.get(path)
        if faults:
            fault = faults.pop(0)
            if fault == "lost":
                raise httpx.ReadTimeout("lost", request=request)
            return httpx.Response(fault, content=wire.encode(wire.Problem("X", "no", "")))
        return httpx.Response(200, content=self.answer(request, path))

    def answer(self, request, path):
        if path == wire.RUN:
            return wire.encode(self.info)
        if path == wire.CHECKOUT:
            self.checkouts.append(wire.decode(wire.CheckoutRequest, request.content))
            self.on_checkout(len(self.checkouts))
            leave = wire.CheckoutReply("leave", "the script ends", 0.0, None)
            return wire.encode(self.replies.pop(0) if self.replies else leave)
        if path == wire.PROGRESS:
            return wire.encode(self.progress)
        if path == wire.BLOBS:
            offer = wire.decode(wire.BlobOffer, request.content)
            return wire.encode(wire.BlobStatus(offer.sha256, offer.size, wire.PART_BYTES, (0,), False))
        if request.method == "PUT":
            self.uploads[path.split("/")[3]] = request.content
        if path == wire.COMMIT:
            self.commits.append(wire.decode(wire.CommitRequest, request.content))
            return wire.encode(wire.Receipt("r", self.commits[-1].round, "A", self.commits[-1].tokens, False))
        if request.method == "GET":
            return self.blobs[path.split("/")[3]]
        return wire.encode(wire.Ack(True))

    def env(self, job="j1"):
        folder = self.tmp_path / job
        folder.mkdir(exist_ok=True)
        return JobEnvironment("http://127.0.0.1:1", Path("c"), "A", 1, job, self.tmp_path / "cache", folder, 1)

    def order(self, drain, reason="", job="j1"):
        jobfolder.write_orders(self.env(job).folder, Orders(self.clock.monotonic() + 1e6, drain, reason))

    def run(self, job="j1", stream=None):
        self.order(False, job=job)
        http = httpx.Client(transport=httpx.MockTransport(self.handle), base_url="http://127.0.0.1:1")
        env = self.env(job)
        self.speaker = Speaker(env, Control(http, "c"), self.clock, DISK, self.lines.append)
        return train_window(env, self.speaker, DISK, self.clock, lambda folder: stream or Stream())

    def uploaded(self, number, tmp=None):
        path = self.tmp_path / f"u{number}"
        path.write_bytes(self.uploads[self.commits[number].blob])
        return path


@pytest.fixture
def world(tmp_path):
    threads = torch.get_num_threads()
    yield World(tmp_path)
    torch.set_num_threads(threads)


def plain(world, steps, base=None):
    """The same steps in a plain loop."""
    model = GPT(CONFIG)
    weights.load_into(model, base or world.base)
    batches = StepBatches(Stream(), start=0, stop=steps * BATCH, batch_samples=BATCH, device_batch=BATCH)
    report = inner_steps(
        model,
        MuonAdamW(model, CONFIG, STEP_TOKENS),
        schedule_of(world.info),
        batches,
        tokens_before=0,
        tokens_per_step=STEP_TOKENS,
        until=lambda step: False,
        device=torch.device("cpu"),
    )
    return weights.from_model(model), report


def local_rounds(world, rounds, first="weights"):
    """Script `rounds` LOCAL rounds of 3 steps; the base of each is what a plain loop holds."""
    for number in range(1, rounds + 1):
        base = world.base if number == 1 else plain(world, 3 * (number - 1))[0]
        fetch, blob = (first, world.put_weights(base)) if number == 1 else ("none", "")
        world.train(number, base, fetch, blob, start=6 * (number - 1), before=(number - 1) * 3 * STEP_TOKENS)


def test_a_sole_site_trains_bit_for_bit_like_a_plain_loop(world):
    local_rounds(world, 3)
    assert world.run() == "the script ends"
    expected, report = plain(world, 9)
    assert [commit.digest for commit in world.commits][-1] == weights.digest(expected)
    assert weights.digest(weights.read_weights(world.uploaded(2))) == weights.digest(expected)
    assert [(c.steps, c.samples, c.tokens) for c in world.commits] == [(3, 6, 3 * STEP_TOKENS)] * 3
    assert world.commits[2].loss_last == report.loss_last
    held = [(c.held_version, c.held_digest) for c in world.checkouts]
    assert held == [(None, None)] + [(n + 1, world.commits[n].digest) for n in range(3)]


def test_a_sole_site_stays_bit_equal_across_a_pause(world):
    local_rounds(world, 1)
    world.run()
    base, _ = plain(world, 3)
    world.train(2, base, "weights", world.put_weights(base), start=6, before=3 * STEP_TOKENS)
    world.run("j2")
    assert world.commits[1].digest == weights.digest(plain(world, 6)[0])


def test_a_delta_is_measured_against_the_base(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="fp32")
    world.run()
    encoded = delta.read_delta(world.uploaded(0))
    local = plain(world, 3)[0]
    expected = delta.difference(world.base, local)
    assert all(np.array_equal(values, expected[name]) for name, values in delta.decode(encoded))
    assert world.commits[0].codec == "fp32" and world.commits[0].digest == ""
    assert world.checkouts[1].held_digest == weights.digest(world.base)


def test_after_a_delta_the_next_round_starts_from_the_base_again(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="int8")
    world.train(1, world.base, "none", codec="int8")
    world.run()
    assert world.commits[0].loss_first == world.commits[1].loss_first


def test_an_update_is_applied_and_checked(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="int8")
    step = delta.encode({name: np.full_like(a, 0.01) for name, a in world.base.items()}, "int8")
    new = delta.apply_update(world.base, delta.decode(step))
    world.train(2, new, "update", world.put_delta(step), codec="fp32")
    world.run()
    local = plain_from(world, new)
    assert world.commits[1].loss_first == local.loss_first
    assert (world.checkouts[2].held_version, world.checkouts[2].held_digest) == (1, weights.digest(new))


def plain_from(world, base):
    return plain(world, 3, base)[1]


def test_an_update_that_leads_elsewhere_is_replaced_by_whole_weights(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="int8")
    step = delta.encode({name: np.full_like(a, 0.01) for name, a in world.base.items()}, "int8")
    other = {name: a + np.float32(1.0) for name, a in world.base.items()}
    world.train(2, other, "update", world.put_delta(step), codec="int8")
    world.train(2, other, "weights", world.put_weights(other), codec="int8")
    world.run()
    assert world.checkouts[2].held_version is None and world.checkouts[2].held_digest is None
    assert world.commits[1].base_digest == weights.digest(other)
    assert any("fetching whole weights" in line for line in world.lines)


def test_whole_weights_that_are_not_what_the_controller_says_are_an_error(world):
    world.train(1, {n: a + 1 for n, a in world.base.items()}, "weights", world.put_weights(world.base))
    with pytest.raises(CheckpointError, match="not what the controller says"):
        world.run()


def test_a_refused_contribution_is_dropped_and_the_base_restored(world):
    world.faults[wire.COMMIT] = [409]
    world.train(1, world.base, "weights", world.put_weights(world.base))
    world.train(1, world.base, "none")
    world.run()
    assert len(world.commits) == 1
    assert world.commits[0].loss_first == plain(world, 3)[1].loss_first


def test_a_commit_rides_through_an_outage(world):
    world.faults[wire.COMMIT] = ["lost"] * 4
    world.faults[wire.CHECKOUT] = ["lost"] * 2
    local_rounds(world, 2)
    world.run()
    assert world.commits[1].digest == weights.digest(plain(world, 6)[0])


def test_an_outage_that_does_not_end_costs_one_contribution(world):
    world.faults[wire.COMMIT] = ["lost"] * 1000
    world.train(1, world.base, "weights", world.put_weights(world.base))
    world.run()
    assert world.commits == [] and any("dropped" in line for line in world.lines)
    assert len(world.faults[wire.COMMIT]) > 900


class DrainingStream(Stream):
    """Asks the job to drain when a sample is read."""

    def __init__(self, world, sample):
        self.world, self.sample = world, sample

    def batch(self, start, stop):
        if start >= self.sample:
            self.world.order(True, "curtailment ends")
        return super().batch(start, stop)


def test_a_drain_commits_what_was_done_with_true_counts(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), steps=50)
    assert world.run(stream=DrainingStream(world, 12)) == "curtailment ends"
    commit = world.commits[0]
    assert 0 < commit.steps < 50
    assert (commit.samples, commit.tokens) == (commit.steps * BATCH, commit.steps * STEP_TOKENS)
    assert commit.digest == weights.digest(plain(world, commit.steps)[0])
    assert len(world.checkouts) == 1
    assert innerstate.state_path(world.tmp_path / "cache", "run1").exists()


def test_a_drain_while_waiting_leaves_without_a_commit(world):
    world.replies = [wire.CheckoutReply("wait", "a round is open", 0.5, None)] * 100
    world.on_checkout = lambda number: world.order(True, "curtailment ends") if number == 3 else None
    assert world.run() == "curtailment ends"
    assert world.commits == [] and len(world.checkouts) == 3


def test_a_round_ends_in_time_but_not_without_a_step(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), steps=50, train_s=0.0)
    world.run()
    assert world.commits[0].steps == 1


def test_the_controller_can_end_a_round(world):
    class Slow(Stream):
        def batch(self, start, stop):
            time.sleep(0.05)
            return super().batch(start, stop)

    world.progress = wire.ProgressReply(True, "another site waits")
    world.train(1, world.base, "weights", world.put_weights(world.base), steps=200)
    world.run(stream=Slow())
    assert 0 < world.commits[0].steps < 200


def test_a_damaged_optimizer_state_is_dropped_with_a_word(world):
    path = innerstate.state_path(world.tmp_path / "cache", "run1")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    local_rounds(world, 1)
    world.run()
    assert world.commits[0].digest == weights.digest(plain(world, 3)[0])
    assert any("starts afresh" in line for line in world.lines)


def test_an_optimizer_state_is_used_only_near_its_weights():
    assert innerstate.still_useful(1000, 1000 + 500 * 10, 10)
    assert not innerstate.still_useful(1000, 1001 + 500 * 10, 10)
    assert innerstate.still_useful(1000, 900, 10)


def test_data_are_fetched_once(world):
    world.run()
    fetched = {sha for sha in world.blobs}
    world.blobs.clear()
    world.run("j2")
    folder = world.tmp_path / "cache" / "data" / world.info.manifest
    assert (folder / "train_00000.bin").stat().st_size == 200 and len(fetched) == 2


def test_weights_that_are_not_finite_are_never_handed_in(world):
    base = {name: np.full_like(a, np.inf) for name, a in world.base.items()}
    world.train(1, base, "weights", world.put_weights(base))
    with pytest.raises(CheckpointError, match="not finite"):
        world.run()
    assert world.commits == []


def test_a_job_without_its_variables_says_who_starts_jobs():
    with pytest.raises(UsageError, match="curtail agent join"):
        environment({})


def test_status_says_what_the_job_does(world):
    local_rounds(world, 1)
    world.run()
    status = json.loads((world.tmp_path / "j1" / "status.json").read_text())
    assert status["phase"] == "sync" and status["round"] == 1 and status["step"] == 3
