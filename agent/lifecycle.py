"""The life of one agent as a table: (state, event) -> state.

Decides which event is allowed when, and what kind of power the site draws in
each state; it starts nothing and asks nobody. `agent.join` finds out which
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
    STARTING = "STARTING"  # the job is alive and has not trained yet
    TRAINING = "TRAINING"  # the job trains or exchanges weights
    DRAINING = "DRAINING"  # the job was asked to commit what it has and to exit
    STOPPING = "STOPPING"  # the job did not drain in time and is being ended
    BACKOFF = "BACKOFF"  # the job failed; none is started for a while
    LEFT = "LEFT"  # the end


class Event(StrEnum):
    """What can happen to an agent."""

    JOINED = "joined"  # the controller accepted the credential
    CREDENTIAL_REFUSED = "credential refused"
    PERMIT_GRANTED = "permit granted"
    JOB_TRAINS = "job trains"
    PERMIT_ENDED = "permit ended"  # refused, lapsed, or the agent was told to stop
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
    (State.IDLE, Event.CREDENTIAL_REFUSED): State.JOINING,
    (State.IDLE, Event.LEAVE): State.LEFT,
    (State.STARTING, Event.JOB_TRAINS): State.TRAINING,
    (State.STARTING, Event.PERMIT_ENDED): State.DRAINING,
    (State.STARTING, Event.CREW_CHANGED): State.DRAINING,
    (State.STARTING, Event.JOB_ENDED): State.IDLE,
    (State.STARTING, Event.JOB_FAILED): State.BACKOFF,
    (State.TRAINING, Event.PERMIT_ENDED): State.DRAINING,
    (State.TRAINING, Event.CREW_CHANGED): State.DRAINING,
    (State.TRAINING, Event.JOB_ENDED): State.IDLE,
    (State.TRAINING, Event.JOB_FAILED): State.BACKOFF,
    (State.DRAINING, Event.DRAIN_OVERDUE): State.STOPPING,
    (State.DRAINING, Event.JOB_ENDED): State.IDLE,
    (State.DRAINING, Event.JOB_FAILED): State.BACKOFF,
    # A job that had to be ended says nothing about the next one: no backoff.
    (State.STOPPING, Event.JOB_ENDED): State.IDLE,
    (State.BACKOFF, Event.BACKOFF_OVER): State.IDLE,
    (State.BACKOFF, Event.CREDENTIAL_REFUSED): State.JOINING,
    (State.BACKOFF, Event.LEAVE): State.LEFT,
}

WITH_JOB = frozenset({State.STARTING, State.TRAINING, State.DRAINING, State.STOPPING})
"""States in which a job is alive."""


def advance(state: State, event: Event) -> State:
    """The state after `event`.

    Raises: RefusedTransition: `event` is forbidden in `state`.
    """
    try:
        return NEXT[state, event]
    except KeyError:
        raise RefusedTransition(f"an agent cannot take {event.value!r} in state {state.value}") from None


def energy_phase(state: State, job_phase: str | None) -> str:
    """What the site's power goes into: paused, start, train, sync or drain.

    Args: job_phase: the phase the job itself reports, None if it has not said yet.
    """
    if state is State.STARTING:
        return "start"
    if state is State.TRAINING:
        return "sync" if job_phase == "sync" else "train"
    if state in (State.DRAINING, State.STOPPING):
        return "drain"
    return "paused"
