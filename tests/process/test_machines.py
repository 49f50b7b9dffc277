"""A site of several machines, end to end: two agents on this machine, one torchrun job of two ranks."""

from __future__ import annotations

import contextlib
import signal
import socket
from pathlib import Path

import pytest

from controller.rounds.lifecycle import Member

pytestmark = pytest.mark.process

BUDGET = 260
"""Steps: more than are made until the last machine is gone, and few enough for one machine alone."""


def free_port():
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        return asking.getsockname()[1]


@pytest.fixture
def machine(fleet):
    """machine("x"): starts the agent of one of the two machines of site s."""
    ports = {}

    def start(name, token=True):
        port = ports.setdefault(name, free_port())
        flags = ("--machines", 2, "--address", "127.0.0.1", "--rendezvous-port", port)
        return fleet.start_agent("s", "A", token=token, name=name, flags=flags)

    return start


def job_of(fleet, name):
    """The processes of the job on this machine: torchrun and its rank."""
    return fleet.marked(CURTAIL_CACHE=str(fleet.folder / f"home-{name}" / "cache"))


def ranks(fleet, *names):
    """RANK of WORLD_SIZE of each machine's rank, as far as they have one."""
    found = []
    for pid in (pid for name in names for pid in job_of(fleet, name)):
        with contextlib.suppress(OSError):  # gone meanwhile
            pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            values = dict(pair.decode().split("=", 1) for pair in pairs if b"=" in pair)
            if "RANK" in values:
                found.append(f"{values['RANK']} of {values['WORLD_SIZE']}")
    return found


@pytest.fixture
def trains(fleet, site):
    """trains(after, "0 of 2", ...): waits until a job of these ranks trains on a version with more tokens."""

    def wait(after, *wanted, ordered=True):
        def goes_on(status):
            s = site(status, "s")
            trains = s is not None and s.state == "TRAINING" and s.step > 0 and status.tokens > after
            found = ranks(fleet, "one", "two")
            return trains and (found if ordered else sorted(found)) == list(wanted)

        return fleet.until(f"a job of {wanted} trains", goes_on)

    return wait


@pytest.mark.long
def test_two_machines_train_as_one_job_and_whichever_is_killed_the_other_goes_on_to_the_budget(
    fleet, machine, site, trains
):
    fleet.write_run(
        budget_steps=BUDGET,
        rounds={"inner_steps": 10, "length": "60 s"},
        policy={"permit": "10 s"},
        fleet={"lost_after": "6 s"},
    )
    fleet.write_trace([(3600, "AB")])
    fleet.start_controller()
    one = machine("one")
    fleet.until("it waits for the other", lambda s: site(s, "s") and "1 of 2 here" in site(s, "s").reason)
    machine("two")
    both = trains(0, "0 of 2", "1 of 2")
    assert both.regime == "LOCAL" and len(both.sites) == 1
    assert "as machine 1 of 2" in one.text()

    assert all(list((fleet.folder / f"home-{name}/cache/tokens").iterdir()) for name in ("one", "two"))

    fleet.agents["two"].kill_9()
    alone = trains(both.tokens, "0 of 1")

    two = machine("two", token=False)
    again = trains(alone.tokens, "0 of 2", "1 of 2")
    assert "draining (the site's machines have changed" in one.text()
    (last,) = [log for log in fleet.folder.glob("home-one/jobs/*/job.log") if "left: the site's" in log.read_text()]
    assert "committed" in last.read_text()

    one.kill_9()
    trains(again.tokens, "0 of 1")
    assert not job_of(fleet, "one")
    two.may_end = True
    end = fleet.until("the run is finished", lambda s: s.state == "FINISHED", 240)
    assert two.wait() == 0
    assert end.tokens == end.token_budget == BUDGET * 4 * 64
    fleet.stop()
    assert fleet.in_store(lambda tx: tx.ledger_problems()) == []
    merged = [member for member in fleet.members() if member.state == Member.MERGED.value]
    assert {member.site for member in merged} == {"s"} and sum(m.tokens for m in merged) == end.tokens
    assert len({member.fence for member in merged}) == 2, "first the one led, then the other"


def test_a_second_machine_that_is_stopped_leaves_in_order_and_the_lead_hands_in_before_it_goes_on_alone(
    fleet, machine, site, trains
):
    # Rounds are long: what is committed early was handed in because the job drained.
    fleet.write_run(rounds={"inner_steps": 100_000, "length": "600 s"}, policy={"permit": "10 s"})
    fleet.write_trace([(3600, "AB")])
    fleet.start_controller()
    one, two = machine("one"), machine("two")
    # The first that joins leads, whichever that is.
    before = trains(-1, "0 of 2", "1 of 2", ordered=False)
    lead, other = (one, two) if "as machine 1 of 2" in one.text() else (two, one)
    other.send(signal.SIGTERM)
    assert other.wait() == 0
    handed_in = fleet.until("the job handed in", lambda s: s.tokens > before.tokens)
    assert handed_in.round is None or handed_in.round.round > before.round.round
    trains(-1, "0 of 1", ordered=False)
    assert "draining (the site's machines have changed" in lead.text() and "waiting 2 s" not in lead.text()
    fleet.stop()
    assert fleet.in_store(lambda tx: tx.ledger_problems()) == []
    states = [member.state for member in fleet.members() if member.tokens]
    assert len(states) >= 2 and set(states) <= {Member.MERGED.value, Member.COMMITTED.value}
