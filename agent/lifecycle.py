"""The agent's state machine as pure functions: (state, event) -> state, and which event comes next.

`NEXT` says which event is allowed in which state; a forbidden event raises
`RefusedTransition` and changes nothing. `next_event` derives the event from the
permit, the job and the time. Also here: the energy phase of each state, and the
pauses after failures. `agent.loop` collects the values and acts on the new
state. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.http.backoff import spread
from curtail.errors import RefusedTransition


class State(StrEnum):
    """What an agent is doing; the value travels in heartbeats."""

    JOINING = "JOINING"  # no valid credential yet
    IDLE = "IDLE"  # joined; no permit, no job
    PAUSING = "PAUSING"  # no permit; on_pause runs
    RESUMING = "RESUMING"  # permit granted; on_resume runs before the job starts
    STARTING = "STARTING"  # the job runs and has not trained yet
    TRAINING = "TRAINING"  # the job trains or exchanges weights
    HOLDING = "HOLDING"  # the permit ended; the job keeps its weights on the GPUs through a short gap
    DRAINING = "DRAINING"  # the job was asked to commit what it has and to exit
    STOPPING = "STOPPING"  # the job did not drain in time and is being terminated
    BACKOFF = "BACKOFF"  # the job or on_resume failed; no job starts for a while
    LEFT = "LEFT"  # final state


class Event(StrEnum):
    """What can happen to an agent."""

    JOINED = "joined"  # the controller accepted the credential
    CREDENTIAL_REFUSED = "credential refused"
    PERMIT_GRANTED = "permit granted"
    PAUSE_DUE = "pause due"  # no permit is available, and on_pause has not run yet
    RESUME_DUE = "resume due"  # there is a permit, and on_resume has not run yet
    HOOK_DONE = "hook done"
    HOOK_FAILED = "hook failed"
    JOB_TRAINS = "job trains"
    PERMIT_ENDED = "permit ended"  # refused, expired, or the agent was told to stop
    HOLD_BEGAN = "hold began"  # the permit ended, and the controller wants the job to keep its weights
    HOLD_ENDED = "hold ended"  # there is a permit again
    CREW_CHANGED = "crew changed"  # the site's job must be restarted with another set of machines
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
    # If on_pause failed, the machine can train all the same.
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
    # A job that was terminated says nothing about the next one: no backoff.
    (State.STOPPING, Event.JOB_ENDED): State.IDLE,
    (State.BACKOFF, Event.BACKOFF_OVER): State.IDLE,
    (State.BACKOFF, Event.CREDENTIAL_REFUSED): State.JOINING,
    (State.BACKOFF, Event.LEAVE): State.LEFT,
}

WITH_JOB = frozenset({State.STARTING, State.TRAINING, State.HOLDING, State.DRAINING, State.STOPPING})
"""States in which a job runs."""

WITH_HOOK = frozenset({State.PAUSING, State.RESUMING})
"""States in which on_pause or on_resume runs."""


def advance(state: State, event: Event) -> State:
    """The state after `event`.

    Raises: RefusedTransition: `event` is forbidden in `state`.
    """
    try:
        return NEXT[state, event]
    except KeyError:
        raise RefusedTransition(f"an agent cannot take {event.value!r} in state {state.value}") from None


def energy_phase(state: State, job_phase: str | None) -> str:
    """The energy phase of this state: paused, start, train, sync, hold or drain.

    Args: job_phase: the phase that the job reports; None if it has not reported one yet.
    """
    if state in (State.STARTING, State.RESUMING):
        return "start"  # on_resume is part of the cost of a start
    if state in (State.TRAINING, State.HOLDING):
        # The job's phase: it uploads before it holds, and downloads before it trains again.
        return job_phase if job_phase in ("sync", "hold") else "train"
    if state in (State.DRAINING, State.STOPPING):
        return "drain"
    return "paused"


DRAIN_S = 60.0
"""How long a draining job may take to finish its step, and to exit after its contribution is uploaded.

The job itself says how long the upload may take. The limit is the run's `upload_timeout`, so that a controller outage
of some minutes does not cost a finished contribution."""

BROKEN_S = 5.0
"""How long a job may take to exit after it lost one of its machines. It cannot make another step, but it still
uploads what it has finished."""

RETRY_MOST_S = 5.0
"""Longest pause between failed heartbeats. The heartbeat interval is a limit, too, because the controller may
count a site as lost after only two missed heartbeats."""

BEAT_SPREAD = 0.1
"""Jitter: the fraction of a heartbeat interval by which a pause may be shortened."""

BACKOFF_S, BACKOFF_MOST_S = 2.0, 60.0
"""First and longest pause after a failed job or on_resume; it doubles with each failure in a row."""

STEADY_S = 60.0
"""A job that trained for at least this long resets the count of failures."""


@dataclass(frozen=True, slots=True)
class AgentView:
    """All values on which the next event depends."""

    state: State
    now: float
    since: float  # when the state began
    permit_until: float | None = None  # None: no permit
    hold_until: float | None = None  # until when a job without a permit may hold its weights; None: it may not
    job_exit: int | None = None  # exit code of the job; None while it runs
    job_phase: str | None = None
    handing_in: float | None = None  # until when the job says it may need to upload its contribution
    stopping: bool = False  # told to stop, or a fatal error occurred
    finished: bool = False  # the run is finished
    credential_refused: bool = False
    backoff_until: float = 0.0
    crew_changed: bool = False  # the site's job must be restarted with another set of machines
    crew_broken: bool = False  # one of this job's machines is gone
    refused: bool = False  # the controller refused a permit since the last job, or was unreachable too long
    pause_due: bool = False  # on_pause must run when the machine pauses
    resume_due: bool = False  # on_resume must run before a job starts
    hook_failed: bool | None = None  # whether this state's command failed; None while it runs


def next_event(view: AgentView) -> Event | None:
    """The next event, or None. The caller repeats this after each event until it returns None."""
    leaving = view.stopping or view.finished
    permitted = view.permit_until is not None and view.now <= view.permit_until
    if view.state in WITH_JOB:
        return _job_event(view, permitted)
    if view.state in WITH_HOOK:
        # An agent that is to leave waits for the command first; the command has its own timeout.
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


def _job_event(view: AgentView, permitted: bool) -> Event | None:
    if view.job_exit is not None:
        # A job that exits without training counts as failed; otherwise it would be restarted in a tight loop.
        idle = view.state is State.STARTING
        # When the crew changed, an error or an early exit is expected, and the next job has another crew.
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
    """Failed jobs in a row, after one that failed when it had trained for `trained_s`.

    0 if it trained for at least STEADY_S: then the cause is external, and the next job may start at once.
    """
    return 0 if trained_s >= STEADY_S else before + 1


def backoff_s(failures: int) -> float:
    """Pause after this many failures of the job or of on_resume in a row: 0, 2, 4, 8, ... at most 60 s."""
    if failures == 0:
        return 0.0
    return min(BACKOFF_S * 2.0 ** (failures - 1), BACKOFF_MOST_S)


def retry_s(failures: int, heartbeat_s: float, chance: float = 0.0) -> float:
    """Pause after this many failed heartbeats in a row; at most the heartbeat interval, and at most 5 s.

    Args: chance: random, from 0 to 1: jitter, so that not all agents come back at the same moment.
    """
    return spread(min(min(heartbeat_s, 1.0) * 2.0 ** (failures - 1), heartbeat_s, RETRY_MOST_S), chance)


def beat_s(heartbeat_s: float, chance: float) -> float:
    """Pause between two heartbeats, with jitter, so that agents do not stay synchronised."""
    return spread(heartbeat_s, chance, BEAT_SPREAD)
