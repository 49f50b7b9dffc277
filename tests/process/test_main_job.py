"""The main job, end to end: a real controller, real agents, real torchrun jobs."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal

import pytest
import torch

from agent.job.trainer import schedule_of
from controller.home.run_info import run_info
from controller.rounds.lifecycle import Member, Round, RoundKind
from curtail.config import config_from_json
from nanochat import checkpoint, presets, weights
from nanochat.gpt import GPT
from nanochat.manifest import Manifest
from nanochat.optim import MuonAdamW
from nanochat.pack import TokenStream
from nanochat.train import StepBatches, inner_steps

pytestmark = pytest.mark.process


def merged(fleet):
    return [member for member in fleet.members() if member.state == Member.MERGED.value]


def assert_books_balance(fleet, status):
    """Ledger, sites, versions and folders say the same as the last snapshot."""
    assert fleet.in_store(lambda tx: tx.ledger_problems()) == []
    run = fleet.in_store(lambda tx: tx.run())
    sites = fleet.in_store(lambda tx: tx.sites())
    kept = fleet.in_store(lambda tx: tx.kept_versions())
    parts = merged(fleet)
    assert run.tokens == status.tokens == sum(site.tokens for site in sites) == sum(part.tokens for part in parts)
    for row in sites:
        assert row.tokens == sum(part.tokens for part in parts if part.site == row.site)
    assert [row.version for row in kept] == list(range(status.version - len(kept) + 1, status.version + 1))
    assert all(before.tokens < after.tokens for before, after in itertools.pairwise(kept))
    for row in kept:
        meta, held = checkpoint.read_checkpoint(fleet.home / "versions" / f"v{row.version:06d}")
        assert weights.digest(held) == row.digest == meta.weights_digest
        assert (meta.version, meta.tokens) == (row.version, row.tokens)


@pytest.mark.long
def test_a_run_follows_its_signal_through_all_regimes_and_back(fleet, site, slowness):
    fleet.pace_s = fleet.PACE_S
    fleet.write_run(policy={"leave_lead": "180 s"})
    # A job needs about 10 s to start; the rest of a phase is training.
    course = [(8, ""), (26, "A"), (32, "AB"), (10, "B")]
    fleet.write_trace([*((seconds * slowness, regions) for seconds, regions in course), (1200, "")])
    fleet.start_controller("--forecast")
    fleet.start_agent("a", "A")
    fleet.start_agent("b", "B")

    paused = fleet.until("both sites wait", lambda s: len(s.sites) == 2 and "MCI" in s.reason)
    assert paused.regime == "PAUSED" and paused.version == 0 and paused.round is None
    assert paused.reason == "A: MCI 450 is not below 100 g/kWh; B: MCI 450 is not below 100 g/kWh"
    assert not fleet.job("a") and not fleet.job("b")

    local = fleet.until("a trains alone", lambda s: s.regime == "LOCAL" and s.tokens > 0)
    assert local.reason == "curtailed: a"
    assert site(local, "b").reason == "MCI 450 is not below 100 g/kWh" and not fleet.job("b")

    federated = fleet.until(
        "two sites in one version", lambda s: any("(a, b)" in e.text for e in s.events if e.kind == "version")
    )
    assert federated.version > local.version and federated.tokens > local.tokens

    alone = fleet.until("b trains alone", lambda s: s.regime == "LOCAL" and s.reason == "curtailed: b")
    end = fleet.until("both sites wait again", lambda s: all(x.state == "IDLE" for x in s.sites), 300)
    assert any("(b)" in e.text for e in end.events if e.kind == "version")
    assert end.regime == "PAUSED" and end.version > alone.version and end.tokens > federated.tokens
    assert not fleet.job("a") and not fleet.job("b")
    assert site(end, "a").tokens > 0 and site(end, "b").tokens > 0

    regimes = [status.regime for status in fleet.seen]
    assert [regime for regime, _ in itertools.groupby(regimes)] == ["PAUSED", "LOCAL", "FEDERATED", "LOCAL", "PAUSED"]
    assert all(end.regime_seconds[regime] > 0 for regime in ("PAUSED", "LOCAL", "FEDERATED"))
    assert end.loss_last < end.loss_first and end.energy.curtailed_pct >= 95
    assert 0 < end.energy.kg_attributed < end.energy.kg_always_on

    assert fleet.stop() == {"agent-a": 0, "agent-b": 0, "controller": 0}
    assert fleet.marked() == {}
    assert_books_balance(fleet, end)
    kinds = {m.round: fleet.in_store(lambda tx, n=m.round: tx.round(n)).kind for m in merged(fleet)}
    assert {(kinds[m.round], m.codec) for m in merged(fleet)} == {
        (RoundKind.LOCAL.value, "weights"),
        (RoundKind.FEDERATED.value, "int8"),
    }
    entries = fleet.in_store(lambda tx: tx.entries())
    for name in ("a", "b"):
        phases = {entry.phase for entry in entries if entry.site == name and entry.kwh > 0}
        assert phases >= {"paused", "start", "train"}
    assert all(entry.curtailed for entry in entries if entry.phase == "train" and entry.t0 < alone.now)


def test_a_local_run_ends_at_its_budget_bit_equal_to_a_plain_loop(fleet):
    steps = 120
    fleet.write_run(budget_steps=steps, rounds={"length": "2 s"})
    fleet.write_trace([(1200, "A")])
    fleet.start_controller()
    agent = fleet.start_agent("a", "A")
    assert agent.wait() == 0
    end = fleet.until("the run is finished", lambda s: s.state == "FINISHED")
    assert end.tokens == end.token_budget == steps * 4 * 64
    assert end.reason == "the token budget is reached" and end.version >= 2
    fleet.stop()
    assert_books_balance(fleet, end)
    latest = fleet.in_store(lambda tx: tx.latest_version())
    assert latest.digest == plain_loop(fleet)


@pytest.mark.long
def test_a_sole_site_stays_bit_equal_across_drain_pause_restart_and_kill_9(fleet, site):
    """And what it trained while its commits travelled is part of it."""
    fleet.pace_s = fleet.PACE_S
    fleet.write_run(
        rounds={"length": "10 s", "inner_steps": 8}, policy={"permit": "40 s"}, fleet={"lost_after": "20 s"}
    )
    fleet.write_trace([(3600, "A")])
    fleet.start_controller()
    agent = fleet.start_agent("a", "A")

    def trains(after):
        """Tokens of a version after `after`, made by a job that trains on."""

        def goes_on(status):
            a = site(status, "a")
            return a is not None and a.state == "TRAINING" and a.step > 0 and status.tokens > after

        return fleet.until("a trains", goes_on).tokens

    trained = trains(0)
    agent.send(signal.SIGTERM)  # a drain
    assert agent.wait() == 0
    paused = fleet.until("the pause", lambda s: s.regime == "PAUSED" and s.round is None)
    assert paused.tokens >= trained and not fleet.job("a")
    fleet.start_agent("a", "A", token=False)
    trained = trains(paused.tokens)

    os.kill(next(pid for pid, line in fleet.job("a").items() if "distributed.run" in line), signal.SIGKILL)
    fleet.until("the agent noticed", lambda s: site(s, "a").state == "BACKOFF")
    trained = trains(trained)

    job = set(fleet.job("a"))
    fleet.controller.kill_9()
    fleet.start_controller()
    trained = trains(trained)
    assert set(fleet.job("a")) == job, "the job rode through the restart"

    fleet.stop()
    assert fleet.in_store(lambda tx: tx.ledger_problems()) == []
    run, latest = fleet.in_store(lambda tx: (tx.run(), tx.latest_version()))
    assert run.tokens >= trained and run.tokens == sum(part.tokens for part in merged(fleet))
    assert latest.digest == plain_loop(fleet)


def plain_loop(fleet):
    """Digest of the weights after the run's leases were trained one after the other, here."""
    row = fleet.in_store(lambda tx: tx.run())
    config = config_from_json(row.config)
    info = run_info(config, row.id, row.model, row.manifest, row.tokenizer, row.sequence_len, row.sample_limit)
    model_config = presets.from_json(row.model)
    batch = config.training.batch_samples
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = GPT(model_config)
        model.init_weights(config.run.seed)
        optimizer = MuonAdamW(model, model_config, batch * row.sequence_len)
        stream = TokenStream(fleet.data, Manifest.load(fleet.data), "train")
        tokens = 0
        for part in merged(fleet):
            batches = StepBatches(
                stream,
                start=part.lease_start,
                stop=part.lease_start + part.samples,
                batch_samples=batch,
                device_batch=batch,
            )
            report = inner_steps(
                model, optimizer, schedule_of(info), batches, tokens_before=tokens,
                tokens_per_step=batch * row.sequence_len, until=lambda step: False, device=torch.device("cpu"),
            )  # fmt: skip
            tokens += report.tokens
        assert tokens == row.tokens
        return weights.digest(weights.from_model(model))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.long
def test_two_sites_one_of_two_ranks_share_a_budget_to_the_last_token(fleet, command):
    # Short rounds: most of the time goes into merges, so no site can use up the budget before the other has started.
    # They overlap, and the samples beyond a lease are the other site's: some rounds are overlapped and some are not.
    fleet.write_run(budget_steps=300, rounds={"inner_steps": 10, "overlap": True, "ahead_steps": 20})
    fleet.write_trace([(1200, "AB")])
    fleet.start_controller()
    wide = fleet.start_agent("wide", "B", ranks=2)
    fleet.until("the wide site starts", lambda s: any(x.state == "STARTING" for x in s.sites))
    narrow = fleet.start_agent("narrow", "A")
    narrow.may_end = wide.may_end = True
    end = fleet.until("the run is finished", lambda s: s.state == "FINISHED", 240)
    assert (wide.wait(), narrow.wait()) == (0, 0)
    assert end.tokens == end.token_budget == 300 * 4 * 64
    assert all(x.tokens > 0 for x in fleet.seen[-1].sites)
    fleet.stop()
    assert fleet.marked() == {}
    assert_books_balance(fleet, end)
    rounds = {name: {part.round for part in merged(fleet) if part.site == name} for name in ("wide", "narrow")}
    together = rounds["wide"] & rounds["narrow"]
    assert together and all(fleet.in_store(lambda tx, n=n: tx.round(n)).state == Round.MERGED for n in together)

    scored = command("eval", end.checkpoint, "--json")
    assert scored.returncode == 0, scored.stderr
    result = json.loads(scored.stdout)
    assert math.isfinite(result["bpb"]) and 0 < result["bpb"] < 9 and result["version"] == end.version
    said = command("sample", end.checkpoint, "def ", "--max-tokens", 16)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("def ") and len(said.stdout.strip()) > len("def ")
