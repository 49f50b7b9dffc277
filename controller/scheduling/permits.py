"""May a site train now, until when, and why: no job trains without a live permit.

Pure functions: values in, a `Permit` out. Each function checks its reasons in order of
precedence; the status shows the first that applies.

- `grant_permit` answers a heartbeat. Only this function gives a permit or lengthens one.
- `withdraw_permit` runs at each step of the energy simulation. It may take a grant back. It never shortens `until`,
  because the agent knows that time from its last heartbeat and trains up to it.
- `refuse_work` answers a job that asks for work (checkout).
- `run_refusal` holds the reasons that stop every site of the run; the regime depends on them, too.

Two clocks: `clock` and a verdict's times are the controller's clock, whose seconds pass `speed` times as fast as real
ones; `now` and a permit's times are monotonic real seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from controller.fleet.live import Permit
from curtail import wire
from curtail.policy.rules import Verdict

FINISHED = "FINISHED"
"""State of a run that has reached its token budget."""

BUDGET_REACHED = "the token budget is reached"

TICK_LIMIT_S = 5.0
"""Real seconds without a step of the energy simulation after which no permit is given."""

RETRY_S = 0.5
"""Real seconds after which a job that has to wait asks for work again."""


@dataclass(frozen=True, slots=True)
class PermitFacts:
    """What a permit depends on, at one moment."""

    run_state: str
    step_age_s: float | None  # real seconds since the last step of the energy simulation; None: it has made none
    disk: str  # why the controller's disk allows no training; "": it has room
    switching_off: bool  # are the site's machines switched off, or about to be?
    verdict: Verdict | None  # the site's own; None: there is none yet
    now: float  # monotonic seconds
    clock: float  # seconds of the controller's clock
    speed: float  # seconds of the controller's clock in a real one
    permit_s: float  # real seconds that a permit lasts at most


def run_refusal(run_state: str, step_age_s: float | None, disk: str) -> str:
    """Why no site of the run may train; "" if nothing forbids it.

    Args:
        step_age_s: real seconds since the last step of the energy simulation; None: it has made none.
        disk: why the controller's disk allows no training; "": it has room.
    """
    if run_state == FINISHED:
        return BUDGET_REACHED
    if step_age_s is None or step_age_s > TICK_LIMIT_S:
        return "the energy simulation makes no steps; see the controller's log"
    return disk


def grant_permit(facts: PermitFacts, others: str = "") -> Permit:
    """The permit of a site or of one of its machines, in answer to a heartbeat.

    Args: others: why it has to wait for the site's other machines although the site may train; "": it need not wait.
    """
    verdict = facts.verdict
    refusal = run_refusal(facts.run_state, facts.step_age_s, facts.disk)
    if refusal:
        return _refused(refusal)
    if facts.switching_off:
        return _refused("its machines are being switched off")  # a job that starts now would be cut off
    if verdict is None:
        return _refused("no reading has arrived yet")
    seconds = min(facts.permit_s, (verdict.until - facts.clock) / facts.speed)
    granted = verdict.granted and seconds > 0
    if granted and others:
        return _refused(others)
    return Permit(granted, facts.now + seconds if granted else -inf, _hold_until(verdict, facts), verdict.reason)


def withdraw_permit(
    permit: Permit, *, heard: bool, seen_age_s: float | None, verdict: Verdict | None, disk: str
) -> Permit:
    """What is left of a site's permit at a step of the energy simulation: the same, or without its grant.

    Args:
        heard: has the site reported within `lost_after`?
        seen_age_s: real seconds since its last report; None: there is none since the controller's start.
        verdict: the site's own; None: there is none.
        disk: why the controller's disk allows no training; "": it has room.
    """
    if not heard:
        reason = permit.reason if seen_age_s is None else f"silent for {seen_age_s:.0f} s"
    elif verdict is not None and not verdict.granted:
        reason = verdict.reason
    elif disk:
        reason = disk
    else:
        return permit
    return replace(permit, granted=False, reason=reason)


def refuse_work(
    permit: Permit, *, run_state: str, disk: str, reported: bool, closing: bool, now: float
) -> wire.CheckoutReply | None:
    """The answer to a job that gets no work; None if its site's permit is live.

    Args:
        reported: has its agent reported since the controller's start?
        closing: the job only hands in what it has trained, which needs no permit.
        now: monotonic seconds.
    """
    if run_state == FINISHED:
        return wire.CheckoutReply("leave", BUDGET_REACHED, 0.0, None)
    if closing:
        return None
    if not reported:
        # After a restart of the controller the job may ask before its agent has reported.
        return wire.CheckoutReply("wait", "waiting for the agent's next report", RETRY_S, None)
    if permit.is_live(now):
        return wire.CheckoutReply("leave", f"no permit: {disk}", 0.0, None) if disk else None
    if permit.holds(now):
        return wire.CheckoutReply("wait", f"holding: {permit.reason}", RETRY_S, None)
    return wire.CheckoutReply("leave", f"no permit: {permit.reason}", 0.0, None)


def _refused(reason: str) -> Permit:
    return Permit(granted=False, until=-inf, hold_until=-inf, reason=reason)


def _hold_until(verdict: Verdict, facts: PermitFacts) -> float:
    """Until when the weights may stay on idle GPUs, monotonic seconds; -inf: not at all."""
    if verdict.hold_until == -inf:
        return -inf
    # One permit longer than the gap; else the site would leave just before its next heartbeat lets it go on.
    gap_s = (verdict.hold_until - facts.clock) / facts.speed
    return facts.now + max(0.0, gap_s) + facts.permit_s
