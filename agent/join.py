"""`curtail agent join`: the loop that keeps one machine in a run. Poll, decide, act.

Finds out what happened (`agent.decide` says which event that is), goes to the
next state of `agent.lifecycle` and acts: joins, starts, drains, ends, leaves.
Whether the site may train is the controller's decision; here only the end of
its permit is watched, so that no job trains without one. Units: seconds of
`Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import threading
import types
from collections.abc import Iterator
from dataclasses import replace

from agent import launcher
from agent.client import Control
from agent.decide import DRAIN_S, View, backoff_s, next_event, retry_s
from agent.home import Home, Identity, open_home
from agent.hooks import UNREACHABLE_S, Condition, Hook, Hooks, hook_variables
from agent.jobfolder import JobStatus, Orders
from agent.launcher import Job, JobSpec, Place
from agent.lifecycle import WITH_HOOK, Event, State, advance, energy_phase
from agent.options import Edges, JoinOptions, Stop
from agent.trust import Trust
from curtail import wire, wireaccess
from curtail.errors import AuthError, CurtailError, DiskError, Refused, Unreachable, UsageError
from curtail.lifeline import on_signals
from curtail.notify import take_notifier
from curtail.signing import Signer
from curtail.token import parse_token

POLL_S = 0.2
"""Between two looks at the job and at signals."""

TERMINATE_S = 10.0
"""From SIGTERM to SIGKILL."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Agent:
    """One machine in a run: its state, its permit and its job."""

    def __init__(self, options: JoinOptions, edges: Edges, home: Home, control: Control, stop: Stop) -> None:
        self.options, self.edges, self.home, self.control, self.stop = options, edges, home, control, stop
        self.identity: Identity = home.identity(edges.disk)
        self.key = home.key(edges.disk)
        control.signer = Signer(self.key, edges.clock.wall, self.identity.fence)
        self.ranks = options.ranks or launcher.count_devices()
        self.threads = options.threads or launcher.threads_per_rank(self.ranks)
        self.address, self.port = "", 0  # for the site's other machines
        if options.machines > 1:
            self.address = options.address or edges.local_address(control.address)
            self.port = options.rendezvous_port
        self.crew: wire.Crew | None = None  # with which the controller wants this machine to train
        self.crew_changed = self.crew_broken = False
        self.state, self.since = State.JOINING, edges.clock.monotonic()
        self.permit_until: float | None = None
        self.hold_until: float | None = None  # until when the job may stay without a permit
        self.reason = self.note = ""
        self.said = ""  # what the draining job said last, told once
        self.renewed = self.finished = self.credential_refused = self.terminated = self.killed = False
        self.fatal: CurtailError | None = None
        self.job: Job | None = None
        self.job_exit: int | None = None
        self.job_status: JobStatus | None = None
        self.job_failures = self.beat_failures = 0
        self.backoff_until = self.next_beat = 0.0
        self.told: tuple[State, str] | None = None  # what the last heartbeat said
        self.refused = False  # no permit is to be had, by what was heard since the last job
        self.failing_since = 0.0  # since when heartbeats fail
        self.hooks = Hooks(
            options.hooks,
            home.path,
            hook_variables(options.site, options.region, control.address, edges.environment),
            edges.disk,
            edges.clock,
            edges.spawn,
        )
        stop.kill = self._kill

    def first_contact(self) -> None:
        """Join, or take up the stored credential.

        Raises: Unreachable, AuthError, WireError, Refused: a first contact is not retried.
        """
        self.control.credential = self.home.credential()
        if self.control.credential is not None and self._same_machine():
            try:
                reply = self._first_beat()
            except (AuthError, Refused) as error:
                self._admit(error)
            else:
                self._heard(reply, self.edges.clock.monotonic())
        else:
            self._admit(None)
        self._take(Event.JOINED)

    def _first_beat(self) -> wire.HeartbeatReply:
        """A heartbeat with the stored credential, or with a new one that the key gets. Raises: as `heartbeat`."""
        try:
            return self.control.heartbeat(self._heartbeat(State.IDLE))
        except AuthError:
            if not self._renew():
                raise
            return self.control.heartbeat(self._heartbeat(State.IDLE))

    def _renew(self) -> bool:
        """Get a new credential by the key alone, for one that has expired; once, until it was good for something.

        Raises: Unreachable, DiskError.
        """
        if self.renewed:
            return False
        self.renewed = True
        try:
            reply = self.control.renew(wireaccess.RenewRequest(self.identity.agent, self.options.site))
        except (Unreachable, DiskError):
            self.renewed = False
            raise
        except CurtailError:
            return False
        self.identity = replace(self.identity, fence=reply.fence, run=reply.run)
        self.home.remember(self.identity, reply.credential, self.edges.disk)
        return True

    def _same_machine(self) -> bool:
        """Did this agent tell the controller at its last join what is true now?"""
        known, options = self.identity, self.options
        told = (known.site, known.machines, known.address, known.port)
        return told == (options.site, options.machines, self.address, self.port)

    def live(self) -> int:
        """Run until the end; the exit code.

        Raises: AuthError, Refused: the controller turned this agent away.
        """
        try:
            while True:
                self.edges.notifier.alive(self.edges.clock.monotonic())
                self._observe()
                self._settle()
                if self.state is not State.LEFT and self._beat_due():
                    self._beat()
                    self._settle()
                if self.state is State.LEFT:
                    break
                self.edges.clock.sleep(POLL_S)
        finally:
            self.edges.notifier.stopping()
            self._kill()
        if self.fatal is not None:
            raise self.fatal
        return 130 if self.stop.number == signal.SIGINT else 0

    def _admit(self, refusal: CurtailError | None) -> None:
        """Join with the token."""
        if not self.options.token:
            what = f"site {self.options.site} has not joined from {self.home.path} and no token was given"
            if self.identity.site == self.options.site:
                what = f"{self.home.path} joined with another --machines, --address or port, and no token was given"
            if refusal is not None:
                what = f"the controller refuses this agent's credential: {refusal.message}"
            raise AuthError(what, "give a join token: set CURTAIL_TOKEN or use --token-file")
        self.control.credential = None
        request = wire.JoinRequest(
            wire.PROTOCOL,
            self.identity.agent,
            self.options.site,
            self.options.region,
            socket.gethostname(),
            self.ranks,
            self.options.token,
            self.options.machines,
            self.address,
            self.port,
            self.key.public,
            self.options.replace,
        )
        reply = self.control.join(request)
        self.identity = Identity(
            self.identity.agent,
            self.options.site,
            reply.run,
            reply.fence,
            reply.heartbeat_s,
            self.options.machines,
            self.address,
            self.port,
            self.identity.crew,
        )
        self.home.remember(self.identity, reply.credential, self.edges.disk)
        self.credential_refused = False
        self.next_beat = 0.0

    def _observe(self) -> None:
        """Look at the job, or at the command that runs in its place."""
        self.hooks.observe()
        if self.job is not None and self.job_exit is None:
            self.job_exit = self.job.poll()
            status = self.job.status()
            if status is not None:
                # Not only when it changes: the job may have drained by itself a moment before its agent asked for it.
                waits = status.reason and status.reason != self.said
                if waits and self.state is State.DRAINING and self.job_exit is None:
                    self.edges.say(f"site {self.options.site}: {status.reason}")
                    self.said = status.reason
                self.job_status = status

    def _settle(self) -> None:
        """Take events until nothing more happens."""
        while True:
            now = self.edges.clock.monotonic()
            event = next_event(
                View(
                    self.state,
                    now,
                    self.since,
                    self.permit_until,
                    self.hold_until,
                    self.job_exit,
                    self.job_phase,
                    self.job_status.handing_in if self.job_status is not None else None,
                    self.stop.number is not None or self.fatal is not None,
                    self.finished,
                    self.credential_refused,
                    self.backoff_until,
                    self.crew_changed,
                    self.crew_broken,
                    self.refused,
                    self.hooks.pause_due,
                    self.hooks.resume_due,
                    self.hooks.failed,
                )
            )
            if event is None:
                self._press(now)
                return
            self._take(event)

    def _take(self, event: Event) -> None:
        """Go to the next state and do what it asks for."""
        self.state, self.since = advance(self.state, event), self.edges.clock.monotonic()
        if event is Event.PERMIT_GRANTED:
            self._start()
        elif event in (Event.PERMIT_ENDED, Event.CREW_CHANGED):
            self._drain(event)
        elif event in (Event.JOB_ENDED, Event.JOB_FAILED):
            self._bury(event)
        elif event is Event.JOB_TRAINS:
            self.job_failures = 0
        elif event is Event.LEAVE:
            self._leave()
        elif event is Event.CREDENTIAL_REFUSED:
            self.next_beat = 0.0
        elif event in (Event.PAUSE_DUE, Event.RESUME_DUE):
            self.hooks.begin(Hook.ON_PAUSE if event is Event.PAUSE_DUE else Hook.ON_RESUME, self.reason)
        elif event in (Event.HOOK_DONE, Event.HOOK_FAILED):
            self._after_hook()
        self._tell(event)

    def _after_hook(self) -> None:
        """A command is over. After a failed on_resume no job starts for a while."""
        ended = self.hooks.take()
        self.next_beat = 0.0
        if self.state is State.BACKOFF:
            self.backoff_until = self.edges.clock.monotonic() + self._pause_s()
        if not ended.failed:
            self.edges.say(f"site {self.options.site}: {ended.words}")

    def _start(self) -> None:
        assert self.permit_until is not None
        self.home.forget_old_jobs()
        job = secrets.token_hex(6)
        spec = JobSpec(
            job,
            self.home.job_folder(job),
            self.control.address,
            self.home.credential_file,
            self.options.site,
            self.identity.fence,
            self.home.cache,
            self.ranks,
            self.threads,
            self.options.device_batch_samples,
            self.options.link_bytes_s,
            self._place(),
            self.options.server_name or "",
            self.options.insecure,
        )
        self.crew_changed = self.crew_broken = False
        self.job_exit, self.job_status, self.terminated, self.killed = None, None, False, False
        self.said = ""
        orders = Orders(self.permit_until, False, self.reason, self.hold_until or 0.0)
        try:
            self.hooks.wake()
            if spec.place is not None:
                # First of all: after a crash the controller must hear that this crew's job was begun here.
                self.identity = replace(self.identity, crew=spec.place.crew)
                self.home.note(self.identity, self.edges.disk)
            self.job = launcher.start_job(spec, orders, self.edges.spawn, self.edges.environment)
        except CurtailError as error:
            self.job, self.job_exit, self.note = None, 1, str(error)

    def _place(self) -> Place | None:
        crew = self.crew
        return None if crew is None else Place(crew.id, crew.rank, crew.size, crew.endpoint, self.address)

    def _drain(self, event: Event) -> None:
        if event is Event.CREW_CHANGED:
            words = "a machine of the site is gone" if self.crew_broken else "the site's machines have changed"
            self.reason = f"{words}, the job starts again with those that are here"
        elif self.stop.number is not None:
            self.reason = "the agent was stopped"
        elif self.fatal is not None:
            self.reason = self.fatal.message
        elif self.permit_until is not None:
            # With a forecast the controller grants only up to the end of the window, and says no more than that.
            words = "lapsed without word from the controller" if self.beat_failures else "has run out"
            self.reason = f"the permit {words}"
        self.permit_until = self.hold_until = None
        self._order(Orders(0.0, True, self.reason))

    def _order(self, orders: Orders) -> None:
        if self.job is not None:
            # A job that cannot be told drains by itself when its permit lapses.
            with contextlib.suppress(CurtailError):
                self.job.order(orders)

    def _press(self, now: float) -> None:
        """End a job that has not drained in time, first politely."""
        if self.state is not State.STOPPING or self.job is None:
            return
        if not self.terminated:
            self.terminated = True
            self.job.terminate()
        elif not self.killed and now - self.since >= TERMINATE_S:
            self.killed = True
            self.job.kill()

    def _bury(self, event: Event) -> None:
        """The job is over: note how, and ask the controller anew before another starts."""
        if self.job is not None:
            words = self.job.last_words()
            self.note = f"job ended with {self.job_exit}: {words}" if words else f"job ended with {self.job_exit}"
            self.job.kill()  # whatever is left of its group
        if event is Event.JOB_FAILED:
            self.job_failures += 1
            self.backoff_until = self.edges.clock.monotonic() + backoff_s(self.job_failures)
        self.job, self.job_exit, self.job_status, self.permit_until, self.hold_until = None, None, None, None, None
        self.crew_changed = self.crew_broken = self.refused = False
        self.next_beat = 0.0

    def _leave(self) -> None:
        if self.fatal is not None or self.control.credential is None:
            return
        reason = "the run is finished" if self.finished else "the agent was stopped"
        request = wire.LeaveRequest(self.identity.agent, self.options.site, self.identity.fence, reason)
        try:
            self.control.leave(request)
        except CurtailError as error:
            # Without the message the controller notices by the missing heartbeats.
            self.edges.say(f"site {self.options.site}: the controller was not told: {error}")

    def _beat_due(self) -> bool:
        if self.edges.clock.monotonic() >= self.next_beat:
            return True
        # While the controller cannot be reached, a change does not make it reachable.
        return self.beat_failures == 0 and self.told != (self.state, energy_phase(self.state, self.job_phase))

    def _beat(self) -> None:
        """Send a heartbeat and take in the answer; in JOINING, join first."""
        sent = self.edges.clock.monotonic()
        try:
            if self.state is State.JOINING:
                self._admit(None)
                self._take(Event.JOINED)
            beat = self._heartbeat(self.state)
            reply = self.control.heartbeat(beat, max(1.0, min(5.0, self.identity.heartbeat_s * 2)))
        except AuthError as error:
            self._refused(error, sent)
        except Refused as error:
            self.fatal = Refused(
                f"another agent speaks for site {self.options.site} now ({error.message})",
                "run one agent per machine and site, with --machines where it has several;"
                " start this one again to take over",
            )
        except CurtailError as error:
            self._outage(error, sent)
        else:
            if self.beat_failures:
                self.edges.say(f"site {self.options.site}: the controller answers again")
            self.beat_failures = 0
            self.told = (State(beat.state), beat.phase)
            self._heard(reply, sent)

    def _refused(self, error: AuthError, sent: float) -> None:
        """The credential is no good: the key may get another one."""
        try:
            renewed = self.state is not State.JOINING and self._renew()
        except CurtailError as outage:
            self._outage(outage, sent)
            return
        if renewed:
            self.next_beat = self.edges.clock.monotonic()
        else:
            self._turned_away(error)

    def _turned_away(self, error: AuthError) -> None:
        self.permit_until = self.hold_until = None
        self.next_beat = self.edges.clock.monotonic() + self.identity.heartbeat_s
        if self.state is State.JOINING or not self.options.token:
            remedy = "give a join token: set CURTAIL_TOKEN or use --token-file"
            self.fatal = error if error.remedy else AuthError(error.message, remedy)
        self.reason = error.message
        self.credential_refused = True

    def _outage(self, error: CurtailError, sent: float) -> None:
        self.failing_since = self.failing_since if self.beat_failures else sent
        self.beat_failures += 1
        if sent - self.failing_since >= UNREACHABLE_S:
            self._rest()
        self.next_beat = self.edges.clock.monotonic() + retry_s(self.beat_failures, self.identity.heartbeat_s)
        if self.beat_failures > 1:
            return
        left = self.permit_until - sent if self.permit_until is not None else 0.0
        job = f"; the job trains on for {max(0.0, left):.0f} s at most" if self.job is not None else ""
        self.edges.say(f"site {self.options.site}: {error.message}{job}; trying again")

    def _heard(self, reply: wire.HeartbeatReply, sent: float) -> None:
        """Take in an answer to a heartbeat sent at `sent`: the permit counts from then, to be safe."""
        now = self.edges.clock.monotonic()
        self.next_beat = now + reply.heartbeat_s
        self.renewed = False
        if reply.credential is not None:
            self._keep(reply.credential)
        self.finished = reply.finished
        self._muster(reply.crew)
        if self.state in (State.DRAINING, State.STOPPING):
            return  # a drain is not taken back; the next job gets a permit of its own
        self.reason = reply.reason
        if reply.granted:
            self.refused = False
        else:
            self._rest()
        self.permit_until = sent + reply.valid_s if reply.granted and self._startable() else None
        self.hold_until = sent + reply.hold_s if reply.hold_s > 0 else None
        if self.job is not None and (self.permit_until is not None or self.hold_until is not None):
            self._order(Orders(self.permit_until or sent, False, reply.reason, self.hold_until or 0.0))

    def _rest(self) -> None:
        """No permit is to be had: a machine without a job pauses."""
        self.refused = True
        if self.job is None and self.state not in WITH_HOOK:
            self.hooks.rest()

    def _keep(self, credential: str) -> None:
        """Use a new credential once it is on disk, for the job and for a restart; until then the old one is good."""
        try:
            self.home.keep_credential(credential, self.edges.disk)
        except DiskError as error:
            self.edges.say(f"site {self.options.site}: {error}; the old credential is used until it ends")
        else:
            self.control.credential = credential

    def _muster(self, crew: wire.Crew | None) -> None:
        """Take in with which machines this one shall train; None: it is not decided, and a job goes on."""
        self.crew = crew
        if self.job is not None and self.job.spec.place is not None and crew is not None:
            self.crew_changed = crew.id != self.job.spec.place.crew
            self.crew_broken = self.crew_changed and crew.broken

    def _startable(self) -> bool:
        """Could a job go on or start? No crew's job is started twice: the other machines may still be in the first."""
        if self.options.machines == 1 or self.job is not None:
            return True
        return self.crew is not None and self.crew.id != self.identity.crew

    def _heartbeat(self, state: State) -> wire.Heartbeat:
        place = self.job.spec.place if self.job is not None else None
        return wire.Heartbeat(
            self.identity.agent,
            self.options.site,
            self.identity.fence,
            state.value,
            energy_phase(state, self.job_phase),
            self.job.spec.job if self.job is not None else None,
            self.edges.meter.watts(),
            self._why(state),
            self.identity.crew if self.options.machines > 1 else "",
            place.rank if place is not None else 0,
            place.size if place is not None else 1,
            self.edges.meter.power(),
        )

    @property
    def job_phase(self) -> str | None:
        """The phase the job reports, None if it has not said yet."""
        return self.job_status.phase if self.job_status is not None else None

    def _why(self, state: State) -> str:
        """Why the site waits: what a draining job says, else how the last job ended."""
        says = self.job_status.reason if state is State.DRAINING and self.job_status is not None else ""
        if state in WITH_HOOK and self.hooks.running is not None:
            says = f"{self.hooks.running} runs"
        return says or self.hooks.note or self.note

    def _tell(self, event: Event) -> None:
        texts = {
            State.JOINING: f"joining again ({self.reason})",
            State.IDLE: f"waiting ({self.reason})" if self.reason else "waiting",
            State.STARTING: f"starting a job{self._with()} ({self.reason})",
            State.TRAINING: f"training ({self.reason})",
            State.HOLDING: f"holding the weights ({self.reason})",
            State.DRAINING: f"draining ({self.reason})",
            State.STOPPING: f"ending a job that did not drain within {DRAIN_S:.0f} s, or the time it asked for",
            State.PAUSING: f"running on_pause ({self.reason})",
            State.RESUMING: f"running on_resume ({self.reason})",
            State.BACKOFF: f"waiting {self._pause_s():.0f} s ({self.hooks.note or self.note})",
            State.LEFT: "left, the run is finished" if self.finished else "left",
        }
        text = texts[self.state]
        if event is Event.HOOK_FAILED and self.state is State.IDLE:
            text = f"waiting; {self.hooks.note}"
        if self.state is State.LEFT and self.hooks.condition is Condition.PAUSED and self.hooks.commands.on_resume:
            text += "; the machine stays paused, on_resume was not run"
        if event is Event.JOINED:
            text = f"joined the run {self.identity.run} at {self.control.address}"
        self.edges.say(f"site {self.options.site}: {text}")

    def _pause_s(self) -> float:
        return backoff_s(max(1, self.hooks.failures if self.hooks.note else self.job_failures))

    def _with(self) -> str:
        place = self.job.spec.place if self.job is not None else None
        return "" if place is None else f" as machine {place.rank + 1} of {place.size}"

    def _kill(self) -> None:
        self.hooks.kill()
        if self.job is not None and self.job_exit is None:
            self.job.kill()


def run(options: JoinOptions, edges: Edges | None = None, stop: Stop | None = None) -> int:
    """Keep this machine in the run until it is finished or the agent is told to stop.

    Returns: the exit code: 0, or 130 after SIGINT.
    Raises: CurtailError: the agent could not join, or was turned away.
    """
    # Out of the environment first: the jobs must not speak for the agent.
    edges, stop = edges or Edges(notifier=take_notifier(os.environ)), stop or Stop()
    for what, name in (("site", options.site), ("region", options.region)):
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name of a {what}", "use letters, digits, '.', '_' and '-', at most 63")
    token = parse_token(options.token) if options.token else None  # mistyped: said before anybody is asked
    with open_home(options.home) as home, _signals(stop):
        url = options.url or edges.find(options.discover_s).url
        control = edges.open_control(url, Trust(home, edges.disk, token, options.server_name, options.insecure))
        with control.http:
            agent = Agent(options, edges, home, control, stop)
            agent.first_contact()
            edges.notifier.ready()
            return agent.live()


@contextlib.contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM end the agent in order while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; the caller stops through `stop`
        return

    def ask(number: int, frame: types.FrameType | None) -> None:
        stop.ask(number)

    with on_signals((signal.SIGINT, signal.SIGTERM), ask):
        yield


__all__ = ["Agent", "Edges", "JoinOptions", "Stop", "run"]
