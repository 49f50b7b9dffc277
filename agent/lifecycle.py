"""The life of one agent as a table: (state, event) -> state.

Decides which event is allowed when, and what kind of power the site draws in
each state; it starts nothing and asks nobody. `agent.life` finds out which
event happened and acts on the new state. A forbidden event raises
`RefusedTransition` and changes nothing.
"""

from __future__ import annotations

from enum import StrEnum

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
