"""A job's rounds against a controller in memory: exact weights, true counts, and what happens when things fail."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from agent import job_files
from agent.http.client import Control
from agent.job import optimizer_state
from agent.job.agent_link import JobEnvironment, read_environment
from agent.job.controller_link import ControllerLink
from agent.job.ranks import RankGroup
from agent.job.trainer import RankTrainer, schedule_of
from agent.job.window import train_window
from agent.job_files import JobOrders
from curtail import wire
from curtail.errors import AuthError, CheckpointError, ConfigError, DiskError, UsageError
from curtail.system.clock import SystemClock
from curtail.system.disk import SystemDisk
from nanochat import delta, weights
from nanochat.distributed import Ranks
from nanochat.gpt import GPT
from nanochat.manifest import Manifest, SourceShard, TokenFile
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig, to_dict
from nanochat.recipe import BEST, Recipe, recipe_from_json
from nanochat.schedule import JointSchedule, Schedule, default_weight_decay
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
        self.disk = DISK
        self.per_pass = 0  # samples at once, as the site says
        self.progress = wire.ProgressReply(False, "")
        self.on_checkout = lambda number: None
        self.on_commit = lambda: None
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
            Recipe().to_json(),
            "int8",
            False,
            20,
            600.0,
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

    def put_update(self, values):
        path = self.tmp_path / "d"
        delta.write_delta(path, values, DISK, "X")
        return self.put(path.read_bytes())

    def train(
        self, number, base, fetch="none", blob="", codec="weights", start=0, steps=3, before=0, train_s=1e6, keep=0,
        factors=(1.0, 1.0),
    ):  # fmt: skip
        """One assignment; `keep` more steps than the round's are leased, to be overlapped."""
        assignment = wire.Assignment(
            number,
            number - 1,
            weights.digest(base),
            fetch,
            blob,
            start,
            start + (steps + keep) * BATCH,
            train_s,
            before,
            STEP_TOKENS,
            codec,
            1,
            steps,
            keep > 0,
            *factors,
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
            self.on_commit()
            self.commits.append(wire.decode(wire.CommitRequest, request.content))
            return wire.encode(wire.Receipt("r", self.commits[-1].round, "A", self.commits[-1].tokens, False))
        if request.method == "GET":
            return self.blobs[path.split("/")[3]]
        return wire.encode(wire.Ack(True))

    def env(self, job="j1"):
        folder = self.tmp_path / job
        folder.mkdir(exist_ok=True)
        return JobEnvironment(
            "http://127.0.0.1:1", Path("c"), "A", 1, job, self.tmp_path / "cache", folder, 1, self.per_pass
        )

    def order(self, drain, reason="", job="j1"):
        job_files.write_orders(self.env(job).folder, JobOrders(self.clock.monotonic() + 1e6, drain, reason))

    def run(self, job="j1", stream=None):
        self.order(False, job=job)
        http = httpx.Client(transport=httpx.MockTransport(self.handle), base_url="http://127.0.0.1:1")
        env = self.env(job)
        self.link = ControllerLink(env, Control(http, "c"), self.clock, self.disk, self.lines.append)
        return train_window(env, self.link, self.clock, lambda folder: stream or Stream())

    def until_idle(self, *_):
        """The kept samples are used up: the training thread waits for the contribution."""
        self.wait_for(lambda: self.link.agent.phase == "sync")

    def wait_for(self, condition):
        end = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < end, "waited for 30 s"
            time.sleep(0.002)

    def uploaded(self, number, tmp=None):
        path = self.tmp_path / f"u{number}"
        path.write_bytes(self.uploads[self.commits[number].blob])
        return path


@pytest.fixture
def world(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    made = World(tmp_path)
    made.patch = monkeypatch.setattr
    yield made
    torch.set_num_threads(threads)


def plain(world, steps, base=None, schedule=None, **more):
    """The same steps in a plain loop."""
    model = GPT(CONFIG)
    weights.load_into(model, base or world.base)
    batches = StepBatches(Stream(), start=0, stop=steps * BATCH, batch_samples=BATCH, device_batch=BATCH)
    report = inner_steps(
        model,
        MuonAdamW(model, CONFIG, STEP_TOKENS, recipe_from_json(world.info.recipe)),
        schedule or schedule_of(world.info),
        batches,
        tokens_before=0,
        tokens_per_step=STEP_TOKENS,
        until=lambda step: False,
        device=torch.device("cpu"),
        **more,
    )
    return weights.from_model(model), report


def local_rounds(world, rounds, first="weights", keep=0):
    """Script `rounds` LOCAL rounds of 3 steps; the base of each is what a plain loop holds."""
    for number in range(1, rounds + 1):
        base = world.base if number == 1 else plain(world, 3 * (number - 1))[0]
        fetch, blob = (first, world.put_weights(base)) if number == 1 else ("none", "")
        world.train(number, base, fetch, blob, start=6 * (number - 1), before=(number - 1) * 3 * STEP_TOKENS,
                    keep=keep)  # fmt: skip


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


def test_the_factors_of_a_round_change_rate_and_memory_of_its_steps(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="fp32", factors=(1.5, 2.0))
    world.run()
    schedule = JointSchedule(schedule_of(world.info), world.info.token_budget, STEP_TOKENS, 1.5, 2.0)
    expected, unchanged = plain(world, 3, schedule=schedule)[0], plain(world, 3)[0]
    sent = dict(delta.decode(delta.read_delta(world.uploaded(0))))
    for name, change in delta.difference(world.base, expected).items():
        assert np.array_equal(sent[name], change)
    assert weights.digest(expected) != weights.digest(unchanged)


def test_the_default_recipe_is_what_a_run_trained_with_before_it_could_be_chosen(world):
    before = Schedule(
        token_budget=10**6, batch_tokens=STEP_TOKENS, warmdown_fraction=0.4,
        weight_decay=default_weight_decay(CONFIG.n_layer),
    )  # fmt: skip
    assert schedule_of(world.info) == before
    assert recipe_from_json(world.info.recipe) == Recipe()


def test_a_sole_site_trains_with_the_recipe_of_its_run(world):
    ordinary, _ = plain(world, 3)
    world.info = replace(world.info, recipe=BEST.to_json())
    local_rounds(world, 1)
    world.run()
    assert [commit.digest for commit in world.commits] == [weights.digest(plain(world, 3)[0])]
    assert world.commits[0].digest != weights.digest(ordinary)


def test_a_recipe_of_another_version_is_refused(world):
    values = json.loads(world.info.recipe)
    for text in ("{}", "[]", "{", json.dumps({**values, "tilt": 1.0}), json.dumps({**values, "final_lr": "0"})):
        with pytest.raises(ConfigError, match="not a recipe of this version"):
            schedule_of(replace(world.info, recipe=text))


@pytest.mark.parametrize(
    ("in_run", "at_site", "passes"), [(0, 0, [2]), (1, 0, [1, 1]), (2, 1, [1, 1]), (1, 2, [2])]
)  # fmt: skip
def test_a_site_may_say_how_many_samples_it_takes_at_once(world, in_run, at_site, passes):
    """And the result is the same but for rounding."""
    asked = []

    class Counting(Stream):
        def batch(self, start, stop):
            asked.append(stop - start)
            return super().batch(start, stop)

    world.info, world.per_pass = replace(world.info, device_batch_samples=in_run), at_site
    local_rounds(world, 1)
    world.run(stream=Counting())
    assert asked[: len(passes)] == passes and sum(asked) == 3 * BATCH
    assert world.commits[0].loss_last == pytest.approx(plain(world, 3)[1].loss_last, rel=1e-4)


def test_on_a_gpu_a_site_finds_out_how_many_samples_fit(world, monkeypatch):
    asked = []
    monkeypatch.setattr("agent.job.trainer.device_batch", lambda *given: asked.append(given[2:4]) or 7)
    trainer = RankTrainer(world.info, Stream(), RankGroup(Ranks(0, 1, 0)), torch.device("cpu"))
    assert (trainer.device_batch, asked) == (BATCH, [])
    trainer.device = torch.device("cuda")
    assert (trainer._fitting(), asked) == (7, [(CONFIG.sequence_len, BATCH)])


def test_a_sole_site_stays_bit_equal_across_a_pause(world):
    local_rounds(world, 1)
    world.run()
    base, _ = plain(world, 3)
    world.train(2, base, "weights", world.put_weights(base), start=6, before=3 * STEP_TOKENS)
    world.run("j2")
    assert world.commits[1].digest == weights.digest(plain(world, 6)[0])


def test_a_pseudo_gradient_is_measured_against_the_base(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="fp32")
    world.run()
    encoded = delta.read_delta(world.uploaded(0))
    local = plain(world, 3)[0]
    expected = delta.difference(world.base, local)
    assert all(np.array_equal(values, expected[name]) for name, values in delta.decode(encoded))
    assert world.commits[0].codec == "fp32" and world.commits[0].digest == ""
    assert world.checkouts[1].held_digest == weights.digest(world.base)


def test_after_a_pseudo_gradient_the_next_round_starts_from_the_base_again(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="int8")
    world.train(1, world.base, "none", codec="int8")
    world.run()
    assert world.commits[0].loss_first == world.commits[1].loss_first


def test_an_update_is_applied_and_checked(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="int8")
    step = delta.encode({name: np.full_like(a, 0.01) for name, a in world.base.items()}, "int8")
    new = delta.apply_update(world.base, delta.decode(step))
    world.train(2, new, "update", world.put_update(step), codec="fp32")
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
    world.train(2, other, "update", world.put_update(step), codec="int8")
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
    began = world.clock.monotonic()
    world.run()
    assert world.commits == [] and any("dropped" in line for line in world.lines)
    assert world.info.outage_s <= world.clock.monotonic() - began  # what was waited and the real seconds between
    assert world.clock.skipped < world.info.outage_s + 60


class FullDisk(SystemDisk):
    """A disk on which the first `times` writes of weights for one purpose find no space."""

    def __init__(self, op, times):
        self.op, self.times = op, times

    def publish(self, op, temp, path):
        self._try(op, path)
        super().publish(op, temp, path)

    def replace(self, op, path, data, mode=0o644):
        self._try(op, path)
        super().replace(op, path, data, mode)

    def _try(self, op, path):
        if op == self.op and path.suffix == ".safetensors" and self.times > 0:
            self.times -= 1
            raise DiskError(f"cannot write {path}: no space left", "free some")


@pytest.mark.parametrize("op", ["CONTRIBUTION", "BLOB"])
def test_a_disk_that_is_full_for_a_while_costs_no_step(world, op):
    world.disk = FullDisk(op, 3)
    local_rounds(world, 2)
    world.replies[:1] *= 4 if op == "BLOB" else 1  # whoever waits for space asks again
    assert world.run() == "the script ends"
    assert world.disk.times == 0
    assert world.commits[1].digest == weights.digest(plain(world, 6)[0])


def test_a_disk_that_stays_full_ends_the_job_after_the_outage_of_the_run(world):
    world.disk = FullDisk("CONTRIBUTION", 10**6)
    world.train(1, world.base, "weights", world.put_weights(world.base))
    began = world.clock.monotonic()
    with pytest.raises(DiskError):
        world.run()
    assert any("waiting for space" in line for line in world.lines)
    assert world.info.outage_s <= world.clock.monotonic() - began  # what was waited and the real seconds between
    assert world.clock.skipped < world.info.outage_s + 60


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
    assert any(optimizer_state.folder_of(world.tmp_path / "cache", "run1").iterdir())


class HoldingStream(Stream):
    """Asks the job to hold when a sample is read, once; the job's first wait then ends the hold as `after` says."""

    def __init__(self, world, sample, after):
        self.world, self.sample, self.after, self.said = world, sample, after, []

    def batch(self, start, stop):
        if start >= self.sample and not self.said:
            now = self.world.clock.monotonic()
            orders = JobOrders(now - 1.0, False, "holding for 300 s costs less than a start", now + 1e6)
            job_files.write_orders(self.world.env().folder, orders)
            self.said.append("told")
            waits = self.world.link.agent.wait

            def wait(seconds):
                status = job_files.read_status(self.world.env().folder)
                self.said.append((status.phase, status.reason))
                self.after()
                self.world.link.agent.wait = waits
                return None

            self.world.link.agent.wait = wait
        return super().batch(start, stop)


def test_a_hold_hands_in_and_keeps_the_weights_and_the_next_round_goes_on_with_them(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), steps=50)
    stream = HoldingStream(world, 12, lambda: world.order(False))

    def second(number):
        if number == 2:
            steps = world.commits[0].steps
            world.replies.clear()
            world.train(2, plain(world, steps)[0], "none", start=2 * steps, before=steps * STEP_TOKENS)

    world.on_checkout = second
    world.run(stream=stream)
    assert stream.said == ["told", ("hold", "holding for 300 s costs less than a start")]
    first, after = world.commits[0], world.commits[1]
    assert 0 < first.steps < 50 and [c.held_digest for c in world.checkouts[:2]] == [None, first.digest]
    assert after.digest == weights.digest(plain(world, first.steps + after.steps)[0])


def test_a_hold_that_ends_ungranted_leaves_with_nothing_lost(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), steps=50)
    stream = HoldingStream(world, 12, lambda: world.order(True, "curtailment ends"))
    assert world.run(stream=stream) == "curtailment ends"
    assert len(world.commits) == len(world.checkouts) == 1 and world.commits[0].steps > 0


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
    path = optimizer_state.folder_of(world.tmp_path / "cache", "run1") / f"{weights.digest(world.base)}.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    local_rounds(world, 1)
    world.run()
    assert world.commits[0].digest == weights.digest(plain(world, 3)[0])
    assert any("an optimizer state cannot be used" in line for line in world.lines)


def test_an_optimizer_state_is_used_only_near_its_weights():
    assert optimizer_state.still_useful(1000, 1000 + 500 * 10, 10)
    assert not optimizer_state.still_useful(1000, 1001 + 500 * 10, 10)
    assert optimizer_state.still_useful(1000, 900, 10)


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
        read_environment({})


def test_status_says_what_the_job_does(world):
    local_rounds(world, 1)
    world.run()
    status = json.loads((world.tmp_path / "j1" / "status.json").read_text())
    assert status["phase"] == "sync" and status["round"] == 1 and status["step"] == 3


# -- while a contribution is under way ----------------------------------------


def test_a_sole_site_trains_on_while_it_commits_and_stays_bit_equal(world):
    local_rounds(world, 4, keep=3)
    world.on_commit = world.until_idle  # all kept steps are made before the commit is answered
    assert world.run() == "the script ends"
    expected = [weights.digest(plain(world, 3 * n)[0]) for n in range(1, 5)]
    assert [commit.digest for commit in world.commits] == expected
    assert [(commit.steps, commit.keep) for commit in world.commits] == [(3, True)] * 4
    assert world.commits[3].loss_last == plain(world, 12)[1].loss_last
    assert world.checkouts[-1].closing and [c.closing for c in world.checkouts].count(True) == 1
    assert any("3 overlapped steps are dropped: the script ends" in line for line in world.lines)


def test_a_site_trains_on_only_on_kept_samples(world):
    read = []

    class Noting(Stream):
        def batch(self, start, stop):
            read.append(start)
            return super().batch(start, stop)

    local_rounds(world, 1, keep=2)
    world.on_commit = world.until_idle
    world.run(stream=Noting())
    assert sorted(set(read)) == [0, 2, 4, 6, 8]


def test_overlapped_steps_are_handed_in_by_a_drain(world):
    local_rounds(world, 2, keep=3)
    commits = iter(("first", "second"))

    def drain_after_the_first():
        if next(commits) == "first":
            world.until_idle()
            world.order(True, "curtailment ends")

    world.on_commit = drain_after_the_first
    assert world.run() == "curtailment ends"
    assert [(c.steps, c.keep) for c in world.commits] == [(3, True), (3, False)]
    assert world.commits[1].digest == weights.digest(plain(world, 6)[0])
    assert [c.closing for c in world.checkouts] == [False, True]


def test_overlapped_steps_that_nobody_takes_are_dropped_and_trained_again_to_the_same_bits(world):
    local_rounds(world, 1, keep=3)
    world.replies += [wire.CheckoutReply("wait", "round 1 is being merged", 0.5, None)] * 100

    def drain():
        world.until_idle()
        world.order(True, "curtailment ends")

    world.on_commit = drain
    assert world.run() == "curtailment ends"
    assert len(world.commits) == 1 and world.clock.skipped < 15
    assert any("3 overlapped steps are dropped: round 1 is being merged" in line for line in world.lines)
    world.replies.clear()
    world.on_commit = lambda: None
    base = plain(world, 3)[0]
    world.train(2, base, "weights", world.put_weights(base), start=6, before=3 * STEP_TOKENS)
    world.run("j2")
    assert world.commits[1].digest == weights.digest(plain(world, 6)[0])


def test_without_its_contribution_the_overlapped_steps_are_dropped(world):
    world.faults[wire.COMMIT] = [409]
    local_rounds(world, 1, keep=3)
    world.on_checkout = lambda number: world.until_idle() if number == 2 else None
    world.train(1, world.base, "none")
    world.run()
    assert [c.steps for c in world.commits] == [3]
    assert world.commits[0].loss_first == plain(world, 3)[1].loss_first
    assert world.checkouts[1].held_digest == weights.digest(world.base)
    assert any("dropped: the next round has another base" in line for line in world.lines)


def federated(world, overlapped=3, **second):
    """Two rounds of 3 steps; the update between them arrives when `overlapped` more are made."""
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="fp32", keep=overlapped)
    step = delta.encode({name: np.full_like(a, 0.01) for name, a in world.base.items()}, "int8")
    new = delta.apply_update(world.base, delta.decode(step))
    values = {"start": 6, "before": 3 * STEP_TOKENS, **second}
    world.train(2, new, "update", world.put_update(step), codec="fp32", **values)
    world.on_checkout = lambda number: world.until_idle() if number == 2 else None
    return new


def test_with_overlap_the_difference_of_the_versions_is_added_to_what_was_trained_on(world):
    new = federated(world)
    world.run()
    before, after = plain(world, 3)[0], plain(world, 6)[0]
    assert [(c.steps, c.keep, c.base_version) for c in world.commits] == [(3, True, 0), (3, False, 1)]
    assert world.commits[1].loss_last == plain(world, 6)[1].loss_last  # steps 4 to 6 were made before the update
    local = {name: after[name] + (new[name] - before[name]) for name in new}
    sent = dict(delta.decode(delta.read_delta(world.uploaded(1))))
    assert all(np.array_equal(sent[name], new[name] - local[name]) for name in new)


def test_after_overlapped_steps_a_site_still_trains_a_whole_round_beside_the_others(world):
    federated(world, keep=7)  # the second lease has ten steps, of which three are made when its round begins
    world.run()
    assert [(c.steps, c.samples) for c in world.commits[:2]] == [(3, 3 * BATCH), (6, 6 * BATCH)]


def test_with_another_lease_than_the_kept_one_the_overlapped_steps_are_dropped(world):
    new = federated(world, start=60)
    world.run()
    assert world.commits[1].base_digest == weights.digest(new)
    assert any("dropped: the next round has another base or lease" in line for line in world.lines)
    model = GPT(CONFIG)
    weights.load_into(model, new)
    inputs, targets = Stream().batch(60, 62)
    loss = model(torch.from_numpy(inputs), torch.from_numpy(targets)).item()
    assert world.commits[1].loss_first == pytest.approx(loss, rel=1e-6)


def test_an_error_beside_the_training_ends_the_job(world):
    world.faults[wire.COMMIT] = [401]
    local_rounds(world, 1, keep=3)
    with pytest.raises(AuthError):
        world.run()


# -- an outage -------------------------------------------------------------------


def test_a_finished_contribution_waits_minutes_for_the_controller_also_while_draining(world):
    world.faults[wire.COMMIT] = ["lost"] * 90
    told = []
    sleep = world.clock.sleep

    def noting_sleep(seconds):
        told.append(job_files.read_status(world.env().folder))
        sleep(seconds)

    world.clock.sleep = noting_sleep
    world.train(1, world.base, "weights", world.put_weights(world.base), steps=50)
    began = world.clock.monotonic()
    assert world.run(stream=DrainingStream(world, 12)) == "curtailment ends"
    assert len(world.commits) == 1 and world.clock.skipped > 250
    waiting = [status for status in told if status.reason == "waiting for the controller with a finished contribution"]
    assert len(waiting) > 50 and {status.phase for status in waiting} == {"sync"}
    assert {round(status.handing_in - began, -2) for status in waiting} == {600}
    assert not list(world.env().folder.glob("*.safetensors"))


# -- inner state -------------------------------------------------------------------


def test_a_fresh_optimizer_on_trained_weights_warms_up_again(world):
    base, _ = plain(world, 3)
    world.info = replace(world.info, rewarm_steps=2)
    world.train(2, base, "weights", world.put_weights(base))
    world.run()
    warm = plain(world, 3, base, lr_factor=lambda step: (0.5, 1.0, 1.0)[step])[0]
    assert world.commits[0].digest == weights.digest(warm) != weights.digest(plain(world, 3, base)[0])


def test_what_a_killed_job_left_is_taken_up_by_the_digest_of_its_base(world):
    """The state that was written for a commit that never came is not taken for the version before."""
    local_rounds(world, 3)
    world.faults[wire.COMMIT] = []
    world.on_checkout = lambda number: world.faults[wire.COMMIT].append(500) if number == 3 else None

    class Killed(Exception):
        pass

    def kill(seconds):
        raise Killed

    world.clock.sleep = kill  # the third commit is not answered, and then the job is gone
    with pytest.raises(Killed):
        world.run()
    del world.clock.sleep
    folder = optimizer_state.folder_of(world.tmp_path / "cache", "run1")
    assert {path.stem for path in folder.iterdir()} == {weights.digest(plain(world, n)[0]) for n in (6, 9)}
    base = plain(world, 6)[0]
    world.replies.clear()
    world.faults.clear()
    world.on_checkout = lambda number: None
    world.train(3, base, "weights", world.put_weights(base), start=12, before=6 * STEP_TOKENS)
    world.run("j2")
    assert world.commits[-1].digest == weights.digest(plain(world, 9)[0])


def test_what_int4_lost_is_added_to_the_next_pseudo_gradient_also_of_the_next_job(world):
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="int4")
    world.run()
    _, lost = delta.encode_with_feedback(delta.difference(world.base, plain(world, 3)[0]), "int4", None)
    assert lost
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="int4")
    world.train(1, world.base, "none", codec="fp32")
    local = []
    world.on_commit = lambda: local.append(weights.from_model(world.model)) if len(world.commits) == 1 else None
    capture_model(world)
    world.run("j2")
    expected = delta.encode_with_feedback(delta.difference(world.base, local[0]), "int4", lost)[0]
    found = delta.read_delta(world.uploaded(1))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    without = delta.encode(delta.difference(world.base, local[0]), "int4")
    assert any(not np.array_equal(found[name], without[name]) for name in without)


def capture_model(world):
    """Give the world the next job's model."""
    built = RankTrainer.load

    def load(self, base):
        world.model = self.model
        built(self, base)

    world.patch(RankTrainer, "load", load)


def test_a_refused_contribution_takes_its_residual_with_it(world):
    world.faults[wire.COMMIT] = [409]
    world.train(1, world.base, "weights", world.put_weights(world.base), codec="int4")
    world.run()
    folder = optimizer_state.folder_of(world.tmp_path / "cache", "run1")
    kept = optimizer_state.load(folder, "", 0, STEP_TOKENS, world.lines.append)
    assert kept.residual == {} and kept.state
