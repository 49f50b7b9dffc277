"""What an agent does next, from values alone.

Decides which event happened, given the permit, the job and the time, and how
long the agent pauses after failures. It finds out nothing and acts on nothing:
`agent.life` does both. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.lifecycle import WITH_HOOK, WITH_JOB, Event, State
from agent.throttle import spread

DRAIN_S = 60.0
"""How long a job may take to finish its step, and to leave once what it has is handed in.

How long handing in may take, the job itself says: up to the run's `outage`, because a controller
that is away for some minutes shall not cost a finished contribution."""

BROKEN_S = 5.0
"""How long a job may take to leave that lost one of its machines: it cannot make another step. What it has
finished it still hands in."""

RETRY_MOST_S = 5.0
"""Longest pause between heartbeats that fail; a shorter heartbeat bounds it further, for the controller
counts a site as lost after as little as two heartbeats."""

BEAT_SPREAD = 0.1
"""The part of a heartbeat that chance may take off."""

BACKOFF_S, BACKOFF_MOST_S = 2.0, 60.0
"""Pause after a failed job or on_resume; doubles with each failure in a row."""

STEADY_S = 60.0
"""A job that trained for so long can train."""


@dataclass(frozen=True, slots=True)
class View:
    """All that the next event depends on."""

    state: State
    now: float
    since: float  # when the state began
    permit_until: float | None = None  # None: no permit
    hold_until: float | None = None  # until when a job may stay without one, its weights on idle GPUs; None: it may not
    job_exit: int | None = None  # exit code of the job of this state, None while it runs
    job_phase: str | None = None
    handing_in: float | None = None  # until when the job may need to hand in what it has, as it says
    stopping: bool = False  # told to stop, or unable to go on
    finished: bool = False  # the run is over
    credential_refused: bool = False
    backoff_until: float = 0.0
    crew_changed: bool = False  # the site's job is to be formed by other machines than this job
    crew_broken: bool = False  # one of this job's machines is gone
    refused: bool = False  # no permit is to be had: the controller said so since the last job, or is out of reach
    pause_due: bool = False  # on_pause is to be run when the machine pauses
    resume_due: bool = False  # on_resume is to be run before a job starts
    hook_failed: bool | None = None  # how the command of this state ended, None while it runs


def next_event(view: View) -> Event | None:
    """What happened to the agent, or None. Called again after each event until nothing is left."""
    leaving = view.stopping or view.finished
    permitted = view.permit_until is not None and view.now <= view.permit_until
    if view.state in WITH_JOB:
        return _job_event(view, permitted)
    if view.state in WITH_HOOK:
        # Whoever leaves meanwhile waits for the command, which has a time limit of its own.
        return None if view.hook_failed is None else Event.HOOK_FAILED if view.hook_failed else Event.HOOK_DONE
    if view.state is State.LEFT:
        return None
    if leaving:
        return Event.LEAVE
    if view.state is State.JOINING:
        return None
    if view.credential_refused:
        return Event.CREDENTIAL_REFUSED
    if view.state is State.BACKOFF:
        return Event.BACKOFF_OVER if view.now >= view.backoff_until else None
    if permitted:
        return Event.RESUME_DUE if view.resume_due else Event.PERMIT_GRANTED
    return Event.PAUSE_DUE if view.pause_due and view.refused else None


def _job_event(view: View, permitted: bool) -> Event | None:
    if view.job_exit is not None:
        # A job that leaves at once without training would be started again and again: that is a failure too.
        idle = view.state is State.STARTING
        # One that lost a machine fails, or leaves before it trained; the next one is another.
        failed = (view.job_exit != 0 or idle) and view.state is not State.STOPPING and not view.crew_changed
        return Event.JOB_FAILED if failed else Event.JOB_ENDED
    if view.state in (State.STARTING, State.TRAINING, State.HOLDING):
        held = view.hold_until is not None and view.now <= view.hold_until
        if view.stopping or not (permitted or held):
            return Event.PERMIT_ENDED
        if view.crew_changed:
            return Event.CREW_CHANGED
        if view.state is State.STARTING and view.job_phase in ("train", "sync", "hold"):
            return Event.JOB_TRAINS
        if view.state is State.TRAINING and not permitted:
            return Event.HOLD_BEGAN
        if view.state is State.HOLDING and permitted:
            return Event.HOLD_ENDED
    patience = BROKEN_S if view.crew_broken else DRAIN_S
    if view.state is State.DRAINING and view.now - max(view.since, view.handing_in or view.since) >= patience:
        return Event.DRAIN_OVERDUE
    return None


def failures_now(before: int, trained_s: float) -> int:
    """Failed jobs in a row, with one that failed after it had trained for so long.

    Long enough, and it was struck from outside: another may begin at once.
    """
    return 0 if trained_s >= STEADY_S else before + 1


def backoff_s(failures: int) -> float:
    """Pause after so many failed jobs, or runs of on_resume, in a row: none, 2, 4, 8, ... at most 60 s."""
    if failures == 0:
        return 0.0
    return min(BACKOFF_S * 2.0 ** (failures - 1), BACKOFF_MOST_S)


def retry_s(failures: int, heartbeat_s: float, chance: float = 0.0) -> float:
    """Pause after so many failed heartbeats in a row; at most a heartbeat, and at most 5 s.

    Args: chance: from 0 to 1, spreads the agents that find the controller back.
    """
    return spread(min(min(heartbeat_s, 1.0) * 2.0 ** (failures - 1), heartbeat_s, RETRY_MOST_S), chance)


def beat_s(heartbeat_s: float, chance: float) -> float:
    """Pause between two heartbeats. Those that were once answered at the same moment do not stay together."""
    return spread(heartbeat_s, chance, BEAT_SPREAD)
