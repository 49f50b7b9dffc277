"""The agent's main loop: poll the job and the controller, determine the event, act.

`agent.lifecycle` determines the event and the next state. The loop then acts: it
starts, drains or ends the job, or leaves the run. The controller decides whether
the site may train (`agent.heartbeat`); the loop enforces the end of the permit, so
that no job trains without one. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import signal

from agent import heartbeat
from agent.heartbeat import HeartbeatExchange
from agent.home import Home
from agent.hooks import Hook, Hooks, hook_variables
from agent.http.client import Control
from agent.job_files import JobOrders
from agent.job_supervisor import JobSupervisor
from agent.lifecycle import AgentView, Event, State, advance, backoff_s, energy_phase, next_event
from agent.membership import Membership
from agent.options import Edges, JoinOptions, Stop

POLL_S = 0.2
"""Interval at which the job and the signals are polled."""


class Agent:
    """One machine in a run: its state, and the actions that follow from it."""

    def __init__(self, options: JoinOptions, edges: Edges, home: Home, control: Control, stop: Stop) -> None:
        self.options, self.edges, self.stop = options, edges, stop
        self.member = Membership(options, edges, home, control)
        self.job = JobSupervisor(self.member)
        self.state, self.since = State.JOINING, edges.clock.monotonic()
        self.backoff_until = 0.0
        self.hooks = Hooks(
            options.hooks,
            home.path,
            hook_variables(options.site, options.region, control.address, edges.environment),
            edges.disk,
            edges.clock,
            edges.spawn,
        )
        self.talk = HeartbeatExchange(self.member, self.job, self.hooks, self._say)
        stop.kill = self._kill

    def first_contact(self) -> None:
        """Join, or resume an earlier join. If the controller is unreachable then, `live` retries.

        Raises: Unreachable, AuthError, WireError, Refused: a machine that never joined does not retry.
        """
        if self.talk.first_contact():
            self._take(Event.JOINED)

    def live(self) -> int:
        """Run until the agent leaves. Returns: the exit code.

        Raises: AuthError, Refused: the controller refused this agent.
        """
        try:
            while True:
                self.edges.notifier.alive(self.edges.clock.monotonic())
                self.hooks.observe()
                self.job.observe(self.state is State.DRAINING)
                self._process_events()
                if self.state is not State.LEFT and self.talk.beats.due(self.state, self._phase()):
                    self.talk.beat(self.state, self._joined)
                    self._process_events()
                if self.state is State.LEFT:
                    break
                self.edges.clock.sleep(POLL_S)
        finally:
            self.edges.notifier.stopping()
            self._kill()
        if self.talk.fatal is not None:
            raise self.talk.fatal
        return 130 if self.stop.number == signal.SIGINT else 0

    def _joined(self) -> State:
        self._take(Event.JOINED)
        return self.state

    def _phase(self) -> str:
        return energy_phase(self.state, self.job.phase)

    # -- events and actions --------------------------------------------------------

    def _process_events(self) -> None:
        """Process events until there is none left."""
        while (event := next_event(self._view())) is not None:
            self._take(event)
        if self.state is State.STOPPING:
            self.job.terminate(self.edges.clock.monotonic() - self.since)

    def _view(self) -> AgentView:
        return AgentView(
            self.state,
            self.edges.clock.monotonic(),
            self.since,
            self.talk.permit_until,
            self.talk.hold_until,
            self.job.exit,
            self.job.phase,
            self.job.handing_in,
            self.stop.number is not None or self.talk.fatal is not None,
            self.talk.finished,
            self.talk.credential_refused,
            self.backoff_until,
            self.job.crew_changed,
            self.job.crew_broken,
            self.talk.refused,
            self.hooks.pause_due,
            self.hooks.resume_due,
            self.hooks.failed,
        )

    def _take(self, event: Event) -> None:
        """Go to the next state and act on the event."""
        self.state, self.since = advance(self.state, event), self.edges.clock.monotonic()
        if event is Event.PERMIT_GRANTED:
            self._start()
        elif event in (Event.PERMIT_ENDED, Event.CREW_CHANGED):
            self._drain(event)
        elif event in (Event.JOB_ENDED, Event.JOB_FAILED):
            self._bury(event)
        elif event is Event.JOB_TRAINS:
            self.job.trains(self.since)
        elif event is Event.LEAVE:
            if self.talk.fatal is None:
                self.member.leave("the run is finished" if self.talk.finished else "the agent was stopped")
        elif event is Event.CREDENTIAL_REFUSED:
            self.talk.beats.at_once()
        elif event in (Event.PAUSE_DUE, Event.RESUME_DUE):
            self.hooks.begin(Hook.ON_PAUSE if event is Event.PAUSE_DUE else Hook.ON_RESUME, self.talk.reason)
        elif event in (Event.HOOK_DONE, Event.HOOK_FAILED):
            self._after_hook()
        self._say(self._line(event))

    def _after_hook(self) -> None:
        """Process the end of a command. After a failed on_resume no job starts for a while."""
        ended = self.hooks.consume()
        self.talk.beats.at_once()
        if self.state is State.BACKOFF:
            self.backoff_until = self.edges.clock.monotonic() + self._pause_s()
        if not ended.failed:
            self._say(ended.words)

    def _start(self) -> None:
        self.job.start(self.talk.orders(), self.hooks.wake)

    def _drain(self, event: Event) -> None:
        if event is Event.CREW_CHANGED:
            gone = self.job.crew_broken
            words = "a machine of the site is gone" if gone else "the site's machines have changed"
            self.talk.reason = f"{words}; the job restarts on the machines that are here"
        elif self.stop.number is not None:
            self.talk.reason = "the agent was stopped"
        elif self.talk.fatal is not None:
            self.talk.reason = self.talk.fatal.message
        elif self.talk.permit_until is not None:
            # With a forecast the controller grants a permit only up to the end of the window, without a reason.
            words = "expired while the controller was unreachable" if self.talk.beats.failures else "has expired"
            self.talk.reason = f"the permit {words}"
        self.talk.give_up_permit()
        self.job.order(JobOrders(0.0, True, self.talk.reason))

    def _bury(self, event: Event) -> None:
        """Clean up after a job and ask the controller again before the next one starts."""
        self.job.reap(event is Event.JOB_FAILED, self.edges.clock.monotonic())
        if event is Event.JOB_FAILED:
            self.backoff_until = self.edges.clock.monotonic() + backoff_s(self.job.failures)
        self.talk.ask_anew()

    def _kill(self) -> None:
        self.hooks.kill()
        self.job.kill()

    # -- log lines -----------------------------------------------------------------

    def _line(self, event: Event) -> str:
        if event is Event.JOINED:
            return heartbeat.joined(self.member)
        return heartbeat.line(
            self.state, event, self.talk.reason, self.talk.finished, self._pause_s(), self.job, self.hooks
        )

    def _say(self, text: str) -> None:
        self.edges.say(f"site {self.options.site}: {text}")

    def _pause_s(self) -> float:
        return backoff_s(max(1, self.hooks.failures) if self.hooks.note else self.job.failures)
