"""The life cycle of a provisioned machine: every pair of state and event is allowed or refused by the table."""

from dataclasses import replace

import pytest

from controller.provision.lifecycle import (
    EXISTS,
    MACHINE_NEXT,
    MachineEvent,
    MachineFacts,
    MachineState,
    Observed,
    advance_machine,
    next_machine_event,
    retry_s,
)
from curtail.errors import RefusedTransition

S, E = MachineState, MachineEvent

FACTS = MachineFacts(
    now=100.0, wanted=True, cap="", observed=None, failed=False, joined=False, since=50.0, retry_at=0.0,
    booting_since=None, boot_limit=30.0, too_old=False,
)  # fmt: skip
PENDING, RUNNING, GONE = Observed(0, "pending"), Observed(0, "running"), Observed(0, "gone")


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize("event", E)
def test_what_is_not_in_the_table_is_refused(state, event):
    if (state, event) in MACHINE_NEXT:
        assert advance_machine(state, event) is MACHINE_NEXT[state, event]
    else:
        with pytest.raises(RefusedTransition, match=state.value):
            advance_machine(state, event)


@pytest.mark.parametrize(
    "state,changes,event",
    [
        (S.ABSENT, {}, E.WANTED),
        (S.ABSENT, {"cap": "too many"}, E.CAPPED),
        (S.ABSENT, {"wanted": False}, None),
        (S.HELD, {"cap": "too many"}, None),
        (S.HELD, {}, E.WANTED),
        (S.HELD, {"wanted": False, "cap": "too many"}, E.UNWANTED),
        (S.BACKOFF, {"retry_at": 101.0}, None),
        (S.BACKOFF, {"retry_at": 100.0}, E.WANTED),
        (S.BACKOFF, {"retry_at": 101.0, "wanted": False}, E.UNWANTED),
        (S.REQUESTED, {}, None),
        (S.REQUESTED, {"observed": GONE}, None),  # the request may not have been made: it is repeated
        (S.REQUESTED, {"observed": PENDING}, E.QUEUED),
        (S.REQUESTED, {"observed": RUNNING}, E.STARTED),
        (S.REQUESTED, {"failed": True}, E.FAILED),
        (S.REQUESTED, {"wanted": False}, E.UNWANTED),
        (S.PENDING, {"observed": PENDING}, None),
        (S.PENDING, {"observed": GONE}, E.LOST),
        (S.PENDING, {"observed": RUNNING}, E.STARTED),
        (S.BOOTING, {"observed": RUNNING, "booting_since": 80.0}, None),
        (S.BOOTING, {"observed": RUNNING, "booting_since": 80.0, "joined": True}, E.JOINED),
        (S.BOOTING, {"observed": RUNNING, "booting_since": 70.0}, E.OVERDUE),
        (S.BOOTING, {"observed": PENDING, "booting_since": 80.0}, E.QUEUED),
        (S.BOOTING, {"observed": GONE, "booting_since": 80.0}, E.LOST),
        (S.JOINED, {"observed": RUNNING, "joined": True}, None),
        (S.JOINED, {"observed": RUNNING, "too_old": True}, E.UNWANTED),
        (S.JOINED, {"observed": GONE}, E.LOST),
        (S.JOINED, {"wanted": False}, E.UNWANTED),
        (S.RELEASING, {"observed": RUNNING, "wanted": True}, None),
        (S.RELEASING, {"observed": None}, None),
        (S.RELEASING, {"observed": GONE}, E.GONE),
    ],
)
def test_the_next_event_follows_from_the_facts(state, changes, event):
    assert next_machine_event(state, replace(FACTS, **changes)) is event
    if event is not None:
        advance_machine(state, event)


def test_a_machine_that_may_exist_counts():
    assert {state for state in S if state not in EXISTS} == {S.ABSENT, S.HELD, S.BACKOFF}


def test_pauses_double_up_to_a_quarter_of_an_hour():
    assert [retry_s(n) for n in (1, 2, 3, 20)] == [15.0, 30.0, 60.0, 900.0]
