"""What an agent says of itself: the heartbeat to its controller, and a line to whoever watches it.

Decides words and nothing else.
"""

from __future__ import annotations

from agent.decide import DRAIN_S
from agent.hooks import Condition, Hooks
from agent.lifecycle import WITH_HOOK, Event, State, energy_phase
from agent.membership import Membership
from agent.ownjob import OwnJob
from curtail import wire


def heartbeat(member: Membership, job: OwnJob, hooks: Hooks, state: State) -> wire.Heartbeat:
    """What the controller is told in this state."""
    place, meter = job.place, member.edges.meter
    return wire.Heartbeat(
        member.identity.agent,
        member.options.site,
        member.identity.fence,
        state.value,
        energy_phase(state, job.phase),
        job.job.spec.job if job.job is not None else None,
        meter.watts(),
        waits_for(job, hooks, state),
        member.identity.crew if member.options.machines > 1 else "",
        place.rank if place is not None else 0,
        place.size if place is not None else 1,
        meter.power(),
    )


def waits_for(job: OwnJob, hooks: Hooks, state: State) -> str:
    """Why the site waits: what a draining job says, else how the last job or command ended."""
    says = job.status.reason if state is State.DRAINING and job.status is not None else ""
    if state in WITH_HOOK and hooks.running is not None:
        says = f"{hooks.running} runs"
    return says or hooks.note or job.note


def joined(member: Membership) -> str:
    """The line of an agent that was let in."""
    return f"joined the run {member.identity.run} at {member.control.address}"


def line(state: State, event: Event, reason: str, finished: bool, pause_s: float, job: OwnJob, hooks: Hooks) -> str:
    """The line of an agent that is in this state since this event.

    Args: reason: why it may or may not train. finished: the run is. pause_s: how long it waits after a failure.
    """
    texts = {
        State.JOINING: f"joining again ({reason})",
        State.IDLE: f"waiting ({reason})" if reason else "waiting",
        State.STARTING: f"starting a job{_with(job)} ({reason})",
        State.TRAINING: f"training ({reason})",
        State.HOLDING: f"holding the weights ({reason})",
        State.DRAINING: f"draining ({reason})",
        State.STOPPING: f"ending a job that did not drain within {DRAIN_S:.0f} s, or the time it asked for",
        State.PAUSING: f"running on_pause ({reason})",
        State.RESUMING: f"running on_resume ({reason})",
        State.BACKOFF: f"waiting {pause_s:.0f} s ({hooks.note or job.note})",
        State.LEFT: "left, the run is finished" if finished else "left",
    }
    text = texts[state]
    if event is Event.HOOK_FAILED and state is State.IDLE:
        text = f"waiting; {hooks.note}"
    if state is State.LEFT and hooks.condition is Condition.PAUSED and hooks.commands.on_resume:
        text += "; the machine stays paused, on_resume was not run"
    return text


def _with(job: OwnJob) -> str:
    place = job.place
    return "" if place is None else f" as machine {place.rank + 1} of {place.size}"
