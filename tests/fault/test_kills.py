"""kill -9 at the worst moments, and signals that fail: what is lost, and does the run go on?

The tests of the first part share one fleet of two sites that may always train.
Each brings it into the state it needs, so that they run in any order.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from controller.rounds.lifecycle import Member

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def pair(module_fleet):
    """A controller for the sites a and b, whose regions are curtailed for long."""
    # Permits outlive a slow restart of the controller. A silent site is noticed long before its round's deadline,
    # but not while its agent makes the longest pause between two attempts to reach the controller. With an outer
    # momentum a version has one more file, the velocity.
    module_fleet.write_run(
        rounds={"length": "4 s", "grace": "60 s"}, policy={"permit": "40 s"}, fleet={"lost_after": "7 s"},
        **{"rounds.outer.2": {"lr": 0.7, "momentum": 0.5}},
    )  # fmt: skip
    module_fleet.write_trace([(3600, "AB")])
    module_fleet.pace_s = module_fleet.PACE_S
    module_fleet.start_controller()
    return module_fleet


@pytest.fixture
def ensure(pair, site):
    """ensure("a", "b"): these sites train in one round; what is missing is started. Returns the snapshot."""

    def run(*names):
        if not pair.controller.running():
            pair.start_controller()
        for name in names:
            if name not in pair.agents or not pair.agents[name].running():
                pair.start_agent(name, name.upper())

        def train(status):
            found = [site(status, name) for name in names]
            return (
                status.round is not None
                and status.round.state == "OPEN"
                and all(x is not None and x.state == "TRAINING" and x.round is not None and x.step > 0 for x in found)
                and not status.round.committed
            )

        return pair.until(f"{', '.join(names)} train", train)

    return run


def alive(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def contributors(status):
    """Who is in the versions of which the snapshot's events speak: round -> sites."""
    found = [re.search(r"from round (\d+) \((.*)\)", event.text) for event in status.events if event.kind == "version"]
    return {int(match[1]): set(match[2].split(", ")) for match in found if match}


def torchrun_of(fleet, name):
    return next(pid for pid, line in fleet.job(name).items() if "torch.distributed.run" in line)


def test_a_killed_agent_takes_its_job_along_and_the_round_ends_without_it(pair, ensure, site):
    before = ensure("a", "b")
    job = pair.job("b")
    assert len(job) >= 2  # torchrun and its rank
    pair.agents["b"].kill_9()
    pair.wait_for("no process of its job is left", lambda: not alive(job), 10)
    after = pair.until("a version without it", lambda s: s.version > before.version and site(s, "b").state == "SILENT")
    number = before.round.round
    assert any(e.text.startswith(f"round {number}: b contributes nothing: silent") for e in after.events)
    assert contributors(after)[number] == {"a"}
    assert after.regime == "LOCAL" and after.reason == "curtailed: a"

    tokens = site(after, "b").tokens
    again = pair.start_agent("b", "B", token=False)
    pair.until("b trains again", lambda s: site(s, "b").state == "TRAINING" and site(s, "b").tokens > tokens)
    assert "joined the run" in again.text()


def test_a_killed_controller_loses_nothing_and_the_jobs_ride_through(pair, ensure):
    before = ensure("a", "b")
    jobs = {name: set(pair.job(name)) for name in ("a", "b")}
    pair.controller.kill_9()
    assert pair.in_store(lambda tx: tx.ledger_problems()) == []
    kept = pair.in_store(lambda tx: (tx.latest_version().version, tx.run().tokens))
    assert kept >= (before.version, before.tokens)
    back = pair.start_controller()
    assert (back.version, back.tokens) == kept and back.round.round == before.round.round
    assert any("did not shut down cleanly; the whole store was checked" in event.text for event in back.events)
    after = pair.until("the interrupted round is merged", lambda s: s.version > back.version)
    assert after.tokens > back.tokens
    assert contributors(after)[before.round.round] == {"a", "b"}
    assert {name: set(pair.job(name)) for name in ("a", "b")} == jobs
    pair.wait_for("the agents say so", lambda: all("answers again" in agent.text() for agent in pair.agents.values()))


def test_a_controller_killed_while_it_merges_finishes_the_merge(pair, ensure):
    ensure("a", "b")

    def stopped_merge():
        """Halt the merge as soon as it runs, so that the kill comes in its midst."""
        for pid in children(pair.controller.pid):
            with contextlib.suppress(OSError):
                if b"controller.aggregation.aggregate" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGSTOP)
                    return pid
        return None

    merge = pair.wait_for("a merge runs", stopped_merge, every=0.01)
    before = pair.until("the round is being merged", lambda s: s.round is not None and s.round.state == "MERGING")
    pair.controller.kill_9()
    pair.wait_for("the merge ended with the controller", lambda: not alive([merge]), 10)
    row = pair.in_store(lambda tx: tx.live_round())
    assert (row.round, row.state) == (before.round.round, "MERGING")
    assert pair.in_store(lambda tx: tx.latest_version().version) == before.version
    assert pair.in_store(lambda tx: tx.ledger_problems()) == []
    pair.start_controller()
    after = pair.until("the merge is done", lambda s: s.version > before.version and s.tokens > before.tokens)
    text = f"version {before.version + 1} from round {before.round.round} "
    assert any(e.kind == "version" and e.text.startswith(text) for e in after.events)
    pair.until("the next round is merged too", lambda s: s.version > before.version + 1)


def children(pid):
    """Process ids of the children of all threads of `pid`."""
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in file.read_text().split()]
    return found


def test_a_killed_job_is_started_again_after_a_pause(pair, ensure, site):
    before = ensure("a", "b")
    job = pair.job("a")
    os.kill(torchrun_of(pair, "a"), signal.SIGKILL)
    pause = pair.until("a waits", lambda s: site(s, "a").state == "BACKOFF")
    assert site(pause, "a").reason.startswith("job ended with -9")
    pair.wait_for("its ranks are gone too", lambda: not alive(job), 10)
    pair.until("b goes on", lambda s: s.version > before.version)
    tokens = site(before, "a").tokens
    pair.until("a trains again", lambda s: site(s, "a").state == "TRAINING" and site(s, "a").tokens > tokens)


def test_ctrl_c_hands_in_what_was_trained_and_leaves(pair, ensure, site):
    hands_in_and_leaves(pair, ensure, site, lambda agent, job: agent.send(signal.SIGINT), 130)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["scancel", "hang-up"])
def test_a_signal_to_the_whole_process_tree_hands_in_what_was_trained_and_leaves(pair, ensure, site, number):
    """As Slurm's scancel, a preemption, or the end of a login session do it."""

    def to_all(agent, job):
        for pid in job:
            os.kill(pid, number)
        agent.send(number)
        agent.send(number)  # a batch script may pass on what it got

    hands_in_and_leaves(pair, ensure, site, to_all, 0)


def hands_in_and_leaves(pair, ensure, site, stop, code):
    before = ensure("a")
    agent, job = pair.agents["a"], pair.job("a")
    stop(agent, job)
    assert agent.wait(60) == code
    assert not alive(job)
    after = pair.until("a has left", lambda s: site(s, "a") is None)
    assert any(e.text == "a left: the agent was stopped" for e in after.events)
    number = before.round.round
    pair.until(
        "its work is merged", lambda s: any(n >= number and "a" in sites for n, sites in contributors(s).items())
    )
    assert "draining (the agent was stopped)" in agent.text()


def test_after_all_of_it_the_ledger_balances(pair):
    codes = pair.stop()
    assert set(codes.values()) == {0} and "controller" in codes
    assert pair.marked() == {}
    assert pair.in_store(lambda tx: tx.ledger_problems()) == []
    members = pair.members()
    # What was left untrained came back and was trained by somebody later: nobody holds a lease any more.
    assert all(member.state != Member.TRAINING.value for member in members)
    merged = [member for member in members if member.state == Member.MERGED.value]
    run = pair.in_store(lambda tx: tx.run())
    waiting = [member for member in members if member.state == Member.COMMITTED.value]
    assert run.tokens == sum(member.tokens for member in merged)
    assert len(waiting) <= 2


@pytest.mark.long
def test_a_gap_and_the_end_of_a_trace_stop_training_and_status_says_why(fleet, site, slowness):
    fleet.pace_s = fleet.PACE_S
    fleet.write_run(regions=("A",), policy={"max_reading_age": "300 s"})
    clean = 20 * slowness
    fleet.write_trace([(clean, "A"), (12, None), (clean, "A")], regions=("A",))
    fleet.start_controller()
    fleet.start_agent("a", "A")
    trained = fleet.until("a trains", lambda s: site(s, "a") is not None and s.tokens > 0)

    stale = fleet.until("the gap stops a", lambda s: s.version >= trained.version and s.regime == "PAUSED")
    assert stale.reason.startswith("A: the reading is stale: ") and "at most 300 s are allowed" in stale.reason
    # On a busy machine the job's permit may run out before its agent hears of the gap: that is said first.
    idle = fleet.until(
        "a is idle and says why",
        lambda s: site(s, "a").state == "IDLE" and site(s, "a").reason.startswith("the reading is stale"),
    )
    assert not idle.signal_ended
    assert idle.tokens >= trained.tokens and not fleet.job("a")

    fleet.until("a trains after the gap", lambda s: s.tokens > idle.tokens and s.regime == "LOCAL")
    fleet.until("the trace ends", lambda s: s.signal_ended)
    end = fleet.until("a is idle for good", lambda s: site(s, "a").state == "IDLE" and s.regime == "PAUSED")
    assert end.reason.startswith("A: the trace trace.csv ended at ")
    assert site(end, "a").reason.startswith("the trace trace.csv ended at ") and not fleet.job("a")
    assert end.state == "RUNNING" and end.round is None
    fleet.stop()
    assert fleet.in_store(lambda tx: tx.ledger_problems()) == []
    assert sum(member.tokens for member in fleet.members() if member.state == "MERGED") == end.tokens
