"""What passes between an agent and its controller: heartbeats, and what of the answers counts.

Decides how long a permit that was given lasts here, and what a refusal or silence
means for it. What follows for the job is decided by `agent.life`. Units: seconds of
`Clock.monotonic`.
"""

from __future__ import annotations

from collections.abc import Callable

from agent import telling
from agent.beats import Beats
from agent.hooks import Hooks
from agent.jobfolder import Orders
from agent.lifecycle import WITH_HOOK, State
from agent.membership import GIVE_TOKEN, Membership
from agent.ownjob import OwnJob
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
        return telling.heartbeat(self.member, self.job, self.hooks, state)
