"""Sends heartbeats, schedules them, and derives the agent's permit from the replies.

`HeartbeatExchange` decides how long a permit is valid on this machine, and what a refusal
or an outage means for it. `HeartbeatTimer` decides when the next heartbeat is due. The
functions write the heartbeat and the agent's log lines. `agent.loop` decides what
follows for the job. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.hooks import UNREACHABLE_S, Condition, Hooks
from agent.job_files import JobOrders
from agent.job_supervisor import JobSupervisor
from agent.lifecycle import DRAIN_S, WITH_HOOK, Event, State, beat_s, energy_phase, retry_s
from agent.membership import GIVE_TOKEN, Membership
from agent.options import Edges
from curtail import wire
from curtail.errors import AuthError, CurtailError, Refused, Unreachable


class HeartbeatExchange:
    """What the controller's latest reply allows this machine. Args: say: prints a log line."""

    def __init__(self, member: Membership, job: JobSupervisor, hooks: Hooks, say: Callable[[str], None]) -> None:
        self.member, self.job, self.hooks, self.say = member, job, hooks, say
        self.clock, self.control = member.edges.clock, member.control
        self.beats = HeartbeatTimer(member.edges)
        self.permit_until: float | None = None
        self.hold_until: float | None = None  # until when the job may stay without a permit
        self.reason = ""  # why it may or may not train
        self.refused = False  # since the last job the controller refused a permit, or was unreachable too long
        self.finished = self.credential_refused = False
        self.fatal: CurtailError | None = None
        self._returning = False  # joined before, and no reply since this process started

    def first_contact(self) -> bool:
        """Join, or resume an earlier join.

        Returns: False if the controller is unreachable and this machine joined before; `beat` retries.
        Raises: Unreachable, AuthError, WireError, Refused: a machine that never joined does not retry.
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
                f"another agent has replaced this one at site {self.member.options.site} ({error.message})",
                "run one agent per machine, with --machines if the site has several;"
                " start this agent again to take over",
            )
        except CurtailError as error:
            self._outage(error, sent, state)
        else:
            if self.beats.answered(state, beat.phase):
                self.say("the controller answers again")
            self._heard(reply, sent, state)

    def _refused(self, error: AuthError, sent: float, state: State) -> None:
        """The controller refused the credential: try to renew it with the agent's key."""
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
        job = f"; the job continues for at most {max(0.0, left):.0f} s" if self.job.job is not None else ""
        # While joining, a person is likely to watch: print the remedy, too.
        self.say(f"{error if state is State.JOINING else error.message}{job}; retrying")

    def _heard(self, reply: wire.HeartbeatReply, sent: float, state: State) -> None:
        """Apply the reply to a heartbeat sent at `sent`. The permit is counted from then, to be on the safe side."""
        self.beats.wait(reply.heartbeat_s)
        self.member.heard(reply)
        self.finished = reply.finished
        self.job.set_crew(reply.crew)
        if state in (State.DRAINING, State.STOPPING):
            return  # a drain cannot be cancelled; the next job gets its own permit
        self.reason = reply.reason
        if reply.granted:
            self.refused = False
        else:
            self._rest(state)
        self.permit_until = sent + reply.valid_s if reply.granted and self.job.startable() else None
        self.hold_until = sent + reply.hold_s if reply.hold_s > 0 else None
        if self.permit_until is not None or self.hold_until is not None:
            self.job.order(JobOrders(self.permit_until or sent, False, reply.reason, self.hold_until or 0.0))

    def _rest(self, state: State) -> None:
        """No permit is available: a machine without a job pauses."""
        self.refused = True
        if self.job.job is None and state not in WITH_HOOK:
            self.hooks.pause_idle()

    def orders(self) -> JobOrders:
        """The first orders for a new job. Call only while there is a permit."""
        assert self.permit_until is not None
        return JobOrders(self.permit_until, False, self.reason, self.hold_until or 0.0)

    def give_up_permit(self) -> None:
        """Drop the permit; training needs a new reply."""
        self.permit_until = self.hold_until = None

    def ask_anew(self) -> None:
        """Drop the permit after a job and send a heartbeat at once; the next job needs a new permit."""
        self.give_up_permit()
        self.refused = False
        self.beats.at_once()

    def _heartbeat(self, state: State) -> wire.Heartbeat:
        return heartbeat(self.member, self.job, self.hooks, state)


class HeartbeatTimer:
    """When one agent's heartbeats are due."""

    def __init__(self, edges: Edges) -> None:
        self.edges = edges
        self.failures = 0  # in a row
        self._next = self._failing_since = 0.0
        self._told: tuple[State, str] | None = None  # state and phase in the last answered heartbeat

    def due(self, state: State, phase: str) -> bool:
        """Is the interval over, or has the state or phase changed?"""
        if self.edges.clock.monotonic() >= self._next:
            return True
        # While the controller is unreachable, a change of state does not shorten the backoff.
        return self.failures == 0 and self._told != (state, phase)

    def at_once(self) -> None:
        """Make the next heartbeat due now."""
        self._next = 0.0

    def answered(self, state: State, phase: str) -> bool:
        """A heartbeat with this state and phase was answered. Returns: whether the one before it failed."""
        again, self.failures, self._told = self.failures > 0, 0, (state, phase)
        return again

    def wait(self, heartbeat_s: float) -> None:
        """Schedule the next heartbeat after the run's interval, with jitter."""
        self._next = self.edges.clock.monotonic() + beat_s(heartbeat_s, self.edges.chance())

    def refused(self, heartbeat_s: float) -> None:
        """The credential was refused; schedule the next heartbeat after the run's interval."""
        self._next = self.edges.clock.monotonic() + heartbeat_s

    def failed(self, sent: float, heartbeat_s: float) -> None:
        """A heartbeat sent at `sent` was not answered; schedule a retry with backoff."""
        self._failing_since = self._failing_since if self.failures else sent
        self.failures += 1
        self._next = self.edges.clock.monotonic() + retry_s(self.failures, heartbeat_s, self.edges.chance())

    def unreachable(self, sent: float) -> bool:
        """Has the controller been unreachable long enough for the machine to pause?"""
        return sent - self._failing_since >= UNREACHABLE_S


def heartbeat(member: Membership, job: JobSupervisor, hooks: Hooks, state: State) -> wire.Heartbeat:
    """The heartbeat message for this state."""
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


def waits_for(job: JobSupervisor, hooks: Hooks, state: State) -> str:
    """The heartbeat's note: why a draining job waits, else which hook runs, else how the last hook or job ended."""
    says = job.status.reason if state is State.DRAINING and job.status is not None else ""
    if state in WITH_HOOK and hooks.running is not None:
        says = f"{hooks.running} runs"  # the controller reads this form (`controller.service.sites`)
    return says or hooks.note or job.note


def joined(member: Membership) -> str:
    """The log line of an agent that joined."""
    return f"joined the run {member.identity.run} at {member.control.address}"


def line(
    state: State, event: Event, reason: str, finished: bool, pause_s: float, job: JobSupervisor, hooks: Hooks
) -> str:
    """The log line of an agent that this event brought into this state.

    Args: reason: why it may or may not train. finished: the run is finished. pause_s: backoff after a failure.
    """
    texts = {
        State.JOINING: f"joining again ({reason})",
        State.IDLE: f"waiting ({reason})" if reason else "waiting",
        State.STARTING: f"starting a job{_with(job)} ({reason})",
        State.TRAINING: f"training ({reason})",
        State.HOLDING: f"holding the weights ({reason})",
        State.DRAINING: f"draining ({reason})",
        State.STOPPING: f"terminating the job: it did not drain within {DRAIN_S:.0f} s or the time it asked for",
        State.PAUSING: f"running on_pause ({reason})",
        State.RESUMING: f"running on_resume ({reason})",
        State.BACKOFF: f"waiting {pause_s:.0f} s ({hooks.note or job.note})",
        State.LEFT: "left: the run is finished" if finished else "left",
    }
    text = texts[state]
    if event is Event.HOOK_FAILED and state is State.IDLE:
        text = f"waiting; {hooks.note}"
    if state is State.LEFT and hooks.condition is Condition.PAUSED and hooks.commands.on_resume:
        text += "; the machine stays paused: on_resume was not run"
    return text


def _with(job: JobSupervisor) -> str:
    place = job.place
    return "" if place is None else f" as machine {place.rank + 1} of {place.size}"
