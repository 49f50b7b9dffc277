"""What passes between an agent and its controller: heartbeats, and what of the answers counts.

Decides how long a permit that was given lasts here, and what a refusal or silence
means for it. What follows for the job is decided by `agent.loop`. Units: seconds of
`Clock.monotonic`.

When the next heartbeat is due, and how long they have been failing. Units: seconds of `Clock.monotonic`.

What an agent says of itself: the heartbeat to its controller, and a line to whoever watches it.

Decides words and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.hooks import UNREACHABLE_S, Condition, Hooks
from agent.job_files import Orders
from agent.job_supervisor import OwnJob
from agent.lifecycle import DRAIN_S, WITH_HOOK, Event, State, beat_s, energy_phase, retry_s
from agent.membership import GIVE_TOKEN, Membership
from agent.options import Edges
from curtail import wire
from curtail.errors import AuthError, CurtailError, Refused, Unreachable


class Exchange:
    """What the controller allows one machine, by its latest word. Args: say: told a line for people."""

    def __init__(self, member: Membership, job: OwnJob, hooks: Hooks, say: Callable[[str], None]) -> None:
        self.member, self.job, self.hooks, self.say = member, job, hooks, say
        self.clock, self.control = member.edges.clock, member.control
        self.beats = Beats(member.edges)
        self.permit_until: float | None = None
        self.hold_until: float | None = None  # until when the job may stay without a permit
        self.reason = ""  # why it may or may not train
        self.refused = False  # no permit is to be had, by what was heard since the last job
        self.finished = self.credential_refused = False
        self.fatal: CurtailError | None = None
        self._returning = False  # joined before, and nothing was heard since this process began

    def first_contact(self) -> bool:
        """Join, or take up what is kept of an earlier join.

        Returns: False: the controller is out of reach, and this machine joined before: `beat` tries again.
        Raises: Unreachable, AuthError, WireError, Refused: a machine that never joined does not wait.
        """
        sent = self.clock.monotonic()
        try:
            self._contact()
        except Unreachable as error:
            if not self.member.same_machine:
                raise
            self._returning = True
            self._outage(error, sent, State.JOINING)
            return False
        return True

    def _contact(self) -> None:
        if not self.member.same_machine:
            self._enter(None)
            return
        try:
            reply = self.member.come_back(lambda: self.control.heartbeat(self._heartbeat(State.IDLE)))
        except (AuthError, Refused) as error:
            self._enter(error)
        else:
            self._heard(reply, self.clock.monotonic(), State.JOINING)
        self._returning = False

    def _enter(self, refusal: CurtailError | None) -> None:
        self.member.enter(refusal)
        self.credential_refused = False
        self.beats.at_once()

    def beat(self, state: State, joined: Callable[[], State]) -> None:
        """Send a heartbeat and take in the answer; in JOINING, join first.

        Args: joined: told that, says the state after it.
        """
        sent = self.clock.monotonic()
        try:
            if state is State.JOINING:
                if self._returning:
                    self._contact()
                else:
                    self._enter(None)
                state = joined()
            beat = self._heartbeat(state)
            reply = self.control.heartbeat(beat, max(1.0, min(5.0, self.member.identity.heartbeat_s * 2)))
        except AuthError as error:
            self._refused(error, sent, state)
        except Refused as error:
            self.fatal = Refused(
                f"another agent speaks for site {self.member.options.site} now ({error.message})",
                "run one agent per machine and site, with --machines where it has several;"
                " start this one again to take over",
            )
        except CurtailError as error:
            self._outage(error, sent, state)
        else:
            if self.beats.answered(state, beat.phase):
                self.say("the controller answers again")
            self._heard(reply, sent, state)

    def _refused(self, error: AuthError, sent: float, state: State) -> None:
        """The credential is no good: the key may get another one."""
        try:
            renewed = state is not State.JOINING and self.member.renew()
        except CurtailError as outage:
            self._outage(outage, sent, state)
            return
        if renewed:
            self.beats.at_once()
        else:
            self._turned_away(error, state)

    def _turned_away(self, error: AuthError, state: State) -> None:
        self.give_up_permit()
        self.beats.refused(self.member.identity.heartbeat_s)
        if state is State.JOINING or not self.member.options.token:
            self.fatal = error if error.remedy else AuthError(error.message, GIVE_TOKEN)
        self.reason = error.message
        self.credential_refused = True

    def _outage(self, error: CurtailError, sent: float, state: State) -> None:
        self.beats.failed(sent, self.member.identity.heartbeat_s)
        if self.beats.unreachable(sent):
            self._rest(state)
        if self.beats.failures > 1:
            return
        left = self.permit_until - sent if self.permit_until is not None else 0.0
        job = f"; the job trains on for {max(0.0, left):.0f} s at most" if self.job.job is not None else ""
        # who just started it can still mend what the remedy names
        self.say(f"{error if state is State.JOINING else error.message}{job}; trying again")

    def _heard(self, reply: wire.HeartbeatReply, sent: float, state: State) -> None:
        """Take in an answer to a heartbeat sent at `sent`: the permit counts from then, to be safe."""
        self.beats.wait(reply.heartbeat_s)
        self.member.heard(reply)
        self.finished = reply.finished
        self.job.muster(reply.crew)
        if state in (State.DRAINING, State.STOPPING):
            return  # a drain is not taken back; the next job gets a permit of its own
        self.reason = reply.reason
        if reply.granted:
            self.refused = False
        else:
            self._rest(state)
        self.permit_until = sent + reply.valid_s if reply.granted and self.job.startable() else None
        self.hold_until = sent + reply.hold_s if reply.hold_s > 0 else None
        if self.permit_until is not None or self.hold_until is not None:
            self.job.order(Orders(self.permit_until or sent, False, reply.reason, self.hold_until or 0.0))

    def _rest(self, state: State) -> None:
        """No permit is to be had: a machine without a job pauses."""
        self.refused = True
        if self.job.job is None and state not in WITH_HOOK:
            self.hooks.rest()

    def orders(self) -> Orders:
        """What a job that starts is told. Only while there is a permit."""
        assert self.permit_until is not None
        return Orders(self.permit_until, False, self.reason, self.hold_until or 0.0)

    def give_up_permit(self) -> None:
        """Nothing may train by what was heard so far."""
        self.permit_until = self.hold_until = None

    def ask_anew(self) -> None:
        """A job is over: before another starts, the controller is asked again."""
        self.give_up_permit()
        self.refused = False
        self.beats.at_once()

    def _heartbeat(self, state: State) -> wire.Heartbeat:
        return heartbeat(self.member, self.job, self.hooks, state)


class Beats:
    """The rhythm of one agent's heartbeats."""

    def __init__(self, edges: Edges) -> None:
        self.edges = edges
        self.failures = 0  # in a row
        self._next = self._failing_since = 0.0
        self._told: tuple[State, str] | None = None  # what the last one that was answered said

    def due(self, state: State, phase: str) -> bool:
        """Is it time for one, or is there something new to say?"""
        if self.edges.clock.monotonic() >= self._next:
            return True
        # While the controller cannot be reached, a change does not make it reachable.
        return self.failures == 0 and self._told != (state, phase)

    def at_once(self) -> None:
        """The next one is due now."""
        self._next = 0.0

    def answered(self, state: State, phase: str) -> bool:
        """One that said this was answered; were the ones before it not?"""
        again, self.failures, self._told = self.failures > 0, 0, (state, phase)
        return again

    def wait(self, heartbeat_s: float) -> None:
        """The next one is due after the run's interval, spread over the agents."""
        self._next = self.edges.clock.monotonic() + beat_s(heartbeat_s, self.edges.chance())

    def refused(self, heartbeat_s: float) -> None:
        """The credential was no good; the next one is due after the run's interval."""
        self._next = self.edges.clock.monotonic() + heartbeat_s

    def failed(self, sent: float, heartbeat_s: float) -> None:
        """One that was sent at `sent` was not answered."""
        self._failing_since = self._failing_since if self.failures else sent
        self.failures += 1
        self._next = self.edges.clock.monotonic() + retry_s(self.failures, heartbeat_s, self.edges.chance())

    def unreachable(self, sent: float) -> bool:
        """Has the controller been out of reach for so long that a machine may rest?"""
        return sent - self._failing_since >= UNREACHABLE_S


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
