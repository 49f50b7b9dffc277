"""Permits as tables: facts in, a permit out; and what no facts can bring about."""

from __future__ import annotations

from dataclasses import replace
from math import inf, ulp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.fleet.live import UNHEARD, Permit
from controller.scheduling.permits import (
    RETRY_S,
    TICK_LIMIT_S,
    PermitFacts,
    grant_permit,
    refuse_work,
    run_refusal,
    withdraw_permit,
)
from curtail import wire
from curtail.policy.rules import Verdict

NOW, CLOCK, PERMIT_S = 1000.0, 50_000.0, 15.0

YES = Verdict("A", True, CLOCK + 600.0, "MCI 50 is below 100 g/kWh", True)
NO = Verdict("A", False, CLOCK, "MCI 400 is not below 100 g/kWh", False)
HOLD = Verdict("A", False, CLOCK + 120.0, "holding costs less than a start", False, hold=True, hold_until=CLOCK + 120.0)
GAP_AHEAD = replace(YES, until=CLOCK + 10.0, hold_until=CLOCK + 130.0)

GOOD = PermitFacts(
    run_state="RUNNING", step_age_s=0.2, disk="", switching_off=False, verdict=YES,
    now=NOW, clock=CLOCK, speed=1.0, permit_s=PERMIT_S,
)  # fmt: skip

FINISHED = "the token budget is reached"
STOPPED = "the energy simulation makes no steps; see the controller's log"
FULL = "the disk has 1 MB left, 5 MB are needed"
SWITCHING = "its machines are being switched off"
UNREAD = "no reading has arrived yet"
OTHERS = "waiting for the site's other machines: 1 of 2 here"


def given_until(until: float, hold_until: float = -inf) -> Permit:
    return Permit(True, until, hold_until, YES.reason)


def refused(reason: str, hold_until: float = -inf) -> Permit:
    return Permit(False, -inf, hold_until, reason)


GRANTS = [
    # -- given, and how long ----------------------------------------------------------------
    ("a verdict that lets it train gives a permit of full length", {}, "", given_until(NOW + 15.0)),
    ("the permit ends with the verdict where that ends first",
     {"verdict": replace(YES, until=CLOCK + 4.0)}, "", given_until(NOW + 4.0)),
    ("at 60 times the speed a verdict of 600 s lasts for 10 real ones", {"speed": 60.0}, "", given_until(NOW + 10.0)),
    ("a verdict without an end gives a permit of full length",
     {"verdict": replace(YES, until=inf)}, "", given_until(NOW + 15.0)),
    ("a gap that will be held: until its end and a permit's length more",
     {"verdict": GAP_AHEAD}, "", given_until(NOW + 10.0, NOW + 145.0)),
    ("the hold counts in real seconds, too",
     {"verdict": GAP_AHEAD, "speed": 10.0}, "", given_until(NOW + 1.0, NOW + 28.0)),
    ("a step as old as the limit is young enough", {"step_age_s": TICK_LIMIT_S}, "", given_until(NOW + 15.0)),
    # -- refused, reason by reason ----------------------------------------------------------
    ("the run is finished", {"run_state": "FINISHED"}, "", refused(FINISHED)),
    ("no step was made yet", {"step_age_s": None}, "", refused(STOPPED)),
    ("the last step is too old", {"step_age_s": TICK_LIMIT_S + 0.1}, "", refused(STOPPED)),
    ("the disk is short", {"disk": FULL}, "", refused(FULL)),
    ("its machines go down", {"switching_off": True}, "", refused(SWITCHING)),
    ("there is no verdict", {"verdict": None}, "", refused(UNREAD)),
    ("the verdict refuses", {"verdict": NO}, "", refused(NO.reason)),
    ("the verdict refuses, and the gap is held", {"verdict": HOLD}, "", refused(HOLD.reason, NOW + 135.0)),
    ("a gap that is over by now is held for a permit's length",
     {"verdict": replace(HOLD, hold_until=CLOCK - 5.0)}, "", refused(HOLD.reason, NOW + 15.0)),
    ("the verdict is over", {"verdict": replace(YES, until=CLOCK)}, "", refused(YES.reason)),
    ("the verdict is over, the hold is not",
     {"verdict": replace(GAP_AHEAD, until=CLOCK - 1.0)}, "", refused(YES.reason, NOW + 145.0)),
    ("other machines are awaited", {}, OTHERS, refused(OTHERS)),
    ("other machines are awaited: nothing is held", {"verdict": GAP_AHEAD}, OTHERS, refused(OTHERS)),
    # -- which reason comes first: of all from one on, that one counts -------------------------
    ("finished before a stopped simulation",
     {"run_state": "FINISHED", "step_age_s": None, "disk": FULL, "switching_off": True, "verdict": None}, OTHERS,
     refused(FINISHED)),
    ("a stopped simulation before the disk",
     {"step_age_s": 6.0, "disk": FULL, "switching_off": True, "verdict": None}, OTHERS, refused(STOPPED)),
    ("the disk before machines that go down",
     {"disk": FULL, "switching_off": True, "verdict": None}, OTHERS, refused(FULL)),
    ("machines that go down before no verdict", {"switching_off": True, "verdict": None}, OTHERS, refused(SWITCHING)),
    ("the disk before the verdict's reason and its hold", {"disk": FULL, "verdict": HOLD}, "", refused(FULL)),
    ("machines that go down before the verdict's reason", {"switching_off": True, "verdict": NO}, "",
     refused(SWITCHING)),
    ("no verdict before other machines", {"verdict": None}, OTHERS, refused(UNREAD)),
    ("the verdict before other machines", {"verdict": HOLD}, OTHERS, refused(HOLD.reason, NOW + 135.0)),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "others", "expected"), [row[1:] for row in GRANTS], ids=[row[0] for row in GRANTS])
def test_a_heartbeat_gets_the_permit_of_its_facts(changes, others, expected):
    assert grant_permit(replace(GOOD, **changes), others) == expected


HELD = given_until(NOW + 8.0, NOW + 40.0)  # what the last heartbeat was told


def taken_back(reason: str, permit: Permit = HELD) -> Permit:
    return Permit(False, permit.until, permit.hold_until, reason)


WITHDRAWALS = [
    ("nothing is wrong: the permit stays", HELD, {}, HELD),
    ("no verdict on a site that was heard: the permit stays", HELD, {"verdict": None}, HELD),
    ("a grant that the site does not have is not given here", refused(FULL), {}, refused(FULL)),
    ("silence takes the grant, and not the time that was promised",
     HELD, {"heard": False, "seen_age_s": 31.4}, taken_back("silent for 31 s")),
    ("not heard from since the start: the reason stays", UNHEARD, {"heard": False, "seen_age_s": None}, UNHEARD),
    ("a verdict that refuses takes the grant, and not the time that was promised",
     HELD, {"verdict": NO}, taken_back(NO.reason)),
    ("a verdict's new reason replaces the one before", refused(FULL), {"verdict": NO}, refused(NO.reason)),
    ("a short disk takes the grant, and not the time that was promised", HELD, {"disk": FULL}, taken_back(FULL)),
    ("silence before verdict and disk",
     HELD, {"heard": False, "seen_age_s": 20.0, "verdict": NO, "disk": FULL}, taken_back("silent for 20 s")),
    ("not heard from since the start: also before verdict and disk",
     UNHEARD, {"heard": False, "seen_age_s": None, "verdict": NO, "disk": FULL}, UNHEARD),
    ("at a step the verdict comes before the disk", HELD, {"verdict": NO, "disk": FULL}, taken_back(NO.reason)),
    ("the disk, where there is no verdict", HELD, {"verdict": None, "disk": FULL}, taken_back(FULL)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("permit", "changes", "expected"), [row[1:] for row in WITHDRAWALS], ids=[row[0] for row in WITHDRAWALS]
)
def test_a_step_of_the_simulation_leaves_the_permit_or_takes_its_grant(permit, changes, expected):
    facts = {"heard": True, "seen_age_s": 0.5, "verdict": YES, "disk": ""}
    assert withdraw_permit(permit, **{**facts, **changes}) == expected


def leave(reason: str) -> wire.CheckoutReply:
    return wire.CheckoutReply("leave", reason, 0.0, None)


def wait(reason: str) -> wire.CheckoutReply:
    return wire.CheckoutReply("wait", reason, RETRY_S, None)


LAPSED = given_until(NOW)
HOLDING = refused(HOLD.reason, NOW + 0.1)
AWAITS = "waiting for the agent's next report"

WORK = [
    ("a live permit gives work", HELD, {}, None),
    ("a grant taken back gives work until its time is over", taken_back(NO.reason), {}, None),
    ("a closing job needs no permit", refused(NO.reason), {"closing": True}, None),
    ("a closing job needs no report and no room", UNHEARD, {"closing": True, "reported": False, "disk": FULL}, None),
    ("the run is finished", HELD, {"run_state": "FINISHED"}, leave(FINISHED)),
    ("the run is finished, for a closing job too",
     HELD, {"run_state": "FINISHED", "closing": True, "reported": False, "disk": FULL}, leave(FINISHED)),
    ("no report yet", UNHEARD, {"reported": False}, wait(AWAITS)),
    ("no report yet comes before the disk", UNHEARD, {"reported": False, "disk": FULL}, wait(AWAITS)),
    ("a permit that ends now is over", LAPSED, {}, leave(f"no permit: {YES.reason}")),
    ("no permit", refused(NO.reason), {}, leave(f"no permit: {NO.reason}")),
    ("without a permit its own reason comes before the disk",
     refused(NO.reason), {"disk": FULL}, leave(f"no permit: {NO.reason}")),
    ("it holds", HOLDING, {}, wait(f"holding: {HOLD.reason}")),
    ("it holds, on a short disk too", HOLDING, {"disk": FULL}, wait(f"holding: {HOLD.reason}")),
    ("a hold that ends now is over", refused(HOLD.reason, NOW), {}, leave(f"no permit: {HOLD.reason}")),
    ("a short disk, in spite of a live permit", HELD, {"disk": FULL}, leave(f"no permit: {FULL}")),
]  # fmt: skip


@pytest.mark.parametrize(("permit", "changes", "expected"), [row[1:] for row in WORK], ids=[row[0] for row in WORK])
def test_a_job_gets_work_only_with_a_live_permit(permit, changes, expected):
    facts = {"run_state": "RUNNING", "disk": "", "reported": True, "closing": False, "now": NOW}
    assert refuse_work(permit, **{**facts, **changes}) == expected


@pytest.mark.parametrize(
    ("state", "age", "disk", "expected"),
    [
        ("RUNNING", 0.0, "", ""),
        ("RUNNING", TICK_LIMIT_S, "", ""),
        ("RUNNING", 0.0, FULL, FULL),
        ("RUNNING", TICK_LIMIT_S + 1.0, FULL, STOPPED),
        ("RUNNING", None, FULL, STOPPED),
        ("FINISHED", None, FULL, FINISHED),
    ],
)
def test_the_whole_run_stands_still_for_the_first_of_three_reasons(state, age, disk, expected):
    assert run_refusal(state, age, disk) == expected


def test_a_permit_says_in_seconds_what_is_left_of_it():
    assert (HELD.valid_s(NOW), HELD.hold_s(NOW)) == (8.0, 40.0)
    assert (HELD.valid_s(NOW + 9.0), HELD.hold_s(NOW + 41.0)) == (0.0, 0.0)
    assert (taken_back(NO.reason).valid_s(NOW), refused(NO.reason).hold_s(NOW)) == (0.0, 0.0)


# -- what no facts can bring about ----------------------------------------------------------

moments = st.floats(0.0, 1e9)
ends = st.one_of(st.floats(-1e9, 2e9), st.just(inf))
verdicts = st.builds(
    Verdict, st.just("A"), st.booleans(), ends, st.just("why"), st.booleans(),
    hold_until=st.one_of(st.just(-inf), st.floats(0.0, 2e9)),
)  # fmt: skip
facts = st.builds(
    PermitFacts,
    run_state=st.sampled_from(["RUNNING", "FINISHED"]),
    step_age_s=st.one_of(st.none(), st.floats(0.0, 10.0)),
    disk=st.sampled_from(["", "", FULL]),
    switching_off=st.booleans(),
    verdict=st.one_of(st.none(), verdicts),
    now=moments,
    clock=moments,
    speed=st.floats(0.1, 1000.0),
    permit_s=st.floats(0.1, 600.0),
)
# half of the facts forbid nothing, so that what is said of granted permits is said of many
allowing = st.builds(
    lambda found, verdict: replace(
        found, run_state="RUNNING", step_age_s=0.0, disk="", switching_off=False, verdict=verdict
    ),
    facts,
    verdicts,
)
anything = st.one_of(facts, allowing)
waits = st.sampled_from(["", "", OTHERS])


@given(anything, waits)
def test_no_permit_without_a_run_that_goes_on_a_young_step_room_and_a_verdict(found, others):
    permit = grant_permit(found, others)
    forbidden = (
        found.run_state == "FINISHED"
        or found.step_age_s is None
        or found.step_age_s > TICK_LIMIT_S
        or found.disk != ""
        or found.switching_off
        or found.verdict is None
        or not found.verdict.granted
        or found.verdict.until <= found.clock
        or others != ""
    )
    assert not (forbidden and permit.granted)
    assert permit.granted == (permit.until > -inf), "a permit is live only if it is granted"
    assert permit.reason


@given(anything, waits)
def test_no_permit_outlives_its_verdict_or_its_length(found, others):
    permit = grant_permit(found, others)
    rounding = 2 * ulp(found.now + found.permit_s)
    assert permit.until <= found.now + found.permit_s + rounding
    if permit.granted:
        left_s = (found.verdict.until - found.clock) / found.speed
        assert left_s > 0.0 and permit.until - found.now <= left_s + rounding


@given(anything, waits, st.booleans(), st.one_of(st.none(), st.floats(0.0, 1e4)), st.one_of(st.none(), verdicts),
       st.sampled_from(["", FULL]))  # fmt: skip
def test_a_step_of_the_simulation_gives_nothing_and_changes_no_time(found, others, heard, age, verdict, disk):
    before = grant_permit(found, others)
    after = withdraw_permit(before, heard=heard, seen_age_s=age, verdict=verdict, disk=disk)
    assert (after.until, after.hold_until) == (before.until, before.hold_until)
    assert before.granted or not after.granted
    if not heard or disk or (verdict is not None and not verdict.granted):
        assert not after.granted


@given(anything, waits, st.floats(0.0, 1000.0), st.booleans(), st.sampled_from(["", FULL]))
def test_no_job_gets_work_after_its_permit(found, others, later, reported, disk):
    permit, now = grant_permit(found, others), found.now + later
    reply = refuse_work(permit, run_state=found.run_state, disk=disk, reported=reported, closing=False, now=now)
    if reply is None:
        assert permit.until > now and reported and not disk and found.run_state != "FINISHED"
    else:
        assert reply.kind in ("wait", "leave") and reply.assignment is None and reply.reason
