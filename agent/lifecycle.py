"""The life of one agent as a table: (state, event) -> state.

Decides which event is allowed when, and what kind of power the site draws in
each state; it starts nothing and asks nobody. `agent.loop` finds out which
event happened and acts on the new state. A forbidden event raises
`RefusedTransition` and changes nothing.

What an agent does next, from values alone.

Decides which event happened, given the permit, the job and the time, and how
long the agent pauses after failures. It finds out nothing and acts on nothing:
`agent.loop` does both. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.http.backoff import spread
from curtail.errors import RefusedTransition


class State(StrEnum):
    """What an agent is doing; the value travels in heartbeats."""

    JOINING = "JOINING"  # no valid credential yet
    IDLE = "IDLE"  # joined, without a permit, no job
    PAUSING = "PAUSING"  # without a permit; on_pause runs
    RESUMING = "RESUMING"  # with a permit; on_resume runs before the job starts
    STARTING = "STARTING"  # the job is alive and has not trained yet
    TRAINING = "TRAINING"  # the job trains or exchanges weights
    HOLDING = "HOLDING"  # the permit is over, the job keeps its weights on the GPUs through a short gap
    DRAINING = "DRAINING"  # the job was asked to commit what it has and to exit
    STOPPING = "STOPPING"  # the job did not drain in time and is being ended
    BACKOFF = "BACKOFF"  # the job or on_resume failed; no job is started for a while
    LEFT = "LEFT"  # the end


class Event(StrEnum):
    """What can happen to an agent."""

    JOINED = "joined"  # the controller accepted the credential
    CREDENTIAL_REFUSED = "credential refused"
    PERMIT_GRANTED = "permit granted"
    PAUSE_DUE = "pause due"  # no permit is to be had, and on_pause was not run yet
    RESUME_DUE = "resume due"  # a permit is there, and on_resume was not run yet
    HOOK_DONE = "hook done"
    HOOK_FAILED = "hook failed"
    JOB_TRAINS = "job trains"
    PERMIT_ENDED = "permit ended"  # refused, lapsed, or the agent was told to stop
    HOLD_BEGAN = "hold began"  # the permit ended, and the controller wants the weights to stay
    HOLD_ENDED = "hold ended"  # a permit is there again
    CREW_CHANGED = "crew changed"  # other machines of the site are to form its job
    DRAIN_OVERDUE = "drain overdue"
    JOB_ENDED = "job ended"
    JOB_FAILED = "job failed"
    BACKOFF_OVER = "backoff over"
    LEAVE = "leave"  # the run is finished, or the agent was told to stop


NEXT: dict[tuple[State, Event], State] = {
    (State.JOINING, Event.JOINED): State.IDLE,
    (State.JOINING, Event.LEAVE): State.LEFT,
    (State.IDLE, Event.PERMIT_GRANTED): State.STARTING,
    (State.IDLE, Event.PAUSE_DUE): State.PAUSING,
    (State.IDLE, Event.RESUME_DUE): State.RESUMING,
    (State.IDLE, Event.CREDENTIAL_REFUSED): State.JOINING,
    (State.IDLE, Event.LEAVE): State.LEFT,
    # A machine that could not be put to rest can train all the same.
    (State.PAUSING, Event.HOOK_DONE): State.IDLE,
    (State.PAUSING, Event.HOOK_FAILED): State.IDLE,
    (State.RESUMING, Event.HOOK_DONE): State.IDLE,  # the permit may have ended meanwhile
    (State.RESUMING, Event.HOOK_FAILED): State.BACKOFF,
    (State.STARTING, Event.JOB_TRAINS): State.TRAINING,
    (State.STARTING, Event.PERMIT_ENDED): State.DRAINING,
    (State.STARTING, Event.CREW_CHANGED): State.DRAINING,
    (State.STARTING, Event.JOB_ENDED): State.IDLE,
    (State.STARTING, Event.JOB_FAILED): State.BACKOFF,
    (State.TRAINING, Event.PERMIT_ENDED): State.DRAINING,
    (State.TRAINING, Event.HOLD_BEGAN): State.HOLDING,
    (State.TRAINING, Event.CREW_CHANGED): State.DRAINING,
    (State.TRAINING, Event.JOB_ENDED): State.IDLE,
    (State.TRAINING, Event.JOB_FAILED): State.BACKOFF,
    (State.HOLDING, Event.HOLD_ENDED): State.TRAINING,
    (State.HOLDING, Event.PERMIT_ENDED): State.DRAINING,
    (State.HOLDING, Event.CREW_CHANGED): State.DRAINING,
    (State.HOLDING, Event.JOB_ENDED): State.IDLE,
    (State.HOLDING, Event.JOB_FAILED): State.BACKOFF,
    (State.DRAINING, Event.DRAIN_OVERDUE): State.STOPPING,
    (State.DRAINING, Event.JOB_ENDED): State.IDLE,
    (State.DRAINING, Event.JOB_FAILED): State.BACKOFF,
    # A job that had to be ended says nothing about the next one: no backoff.
    (State.STOPPING, Event.JOB_ENDED): State.IDLE,
    (State.BACKOFF, Event.BACKOFF_OVER): State.IDLE,
    (State.BACKOFF, Event.CREDENTIAL_REFUSED): State.JOINING,
    (State.BACKOFF, Event.LEAVE): State.LEFT,
}

WITH_JOB = frozenset({State.STARTING, State.TRAINING, State.HOLDING, State.DRAINING, State.STOPPING})
"""States in which a job is alive."""

WITH_HOOK = frozenset({State.PAUSING, State.RESUMING})
"""States in which a command of the machine runs."""


def advance(state: State, event: Event) -> State:
    """The state after `event`.

    Raises: RefusedTransition: `event` is forbidden in `state`.
    """
    try:
        return NEXT[state, event]
    except KeyError:
        raise RefusedTransition(f"an agent cannot take {event.value!r} in state {state.value}") from None


def energy_phase(state: State, job_phase: str | None) -> str:
    """What the site's power goes into: paused, start, train, sync, hold or drain.

    Args: job_phase: the phase the job itself reports, None if it has not said yet.
    """
    if state in (State.STARTING, State.RESUMING):
        return "start"  # on_resume is part of what a start costs
    if state in (State.TRAINING, State.HOLDING):
        # what the job does: it hands in before it holds, and fetches before it trains again
        return job_phase if job_phase in ("sync", "hold") else "train"
    if state in (State.DRAINING, State.STOPPING):
        return "drain"
    return "paused"


DRAIN_S = 60.0
"""How long a job may take to finish its step, and to leave once what it has is handed in.

How long handing in may take, the job itself says: up to the run's `upload_timeout`, because a controller
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
