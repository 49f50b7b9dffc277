"""Starts, watches and ends this machine's job, and tracks the crew in which it trains.

Decides what a job is told and whether one may start. `agent.loop` decides when;
`agent.launcher` does it. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable

from agent import launcher
from agent.job_files import JobOrders, JobStatus
from agent.launcher import Job, JobSpec, Place
from agent.lifecycle import failures_now
from agent.membership import Membership
from curtail import wire
from curtail.errors import CurtailError

TERMINATE_S = 10.0
"""Time from the termination signal to SIGKILL."""


class JobSupervisor:
    """At most one job, its status, and how the latest one ended."""

    def __init__(self, member: Membership) -> None:
        self.member, self.options, self.edges = member, member.options, member.edges
        self.threads = self.options.threads or launcher.threads_per_rank(member.ranks)
        self.job: Job | None = None
        self.exit: int | None = None
        self.status: JobStatus | None = None
        self.note = ""  # how the latest one ended
        self.failures = 0  # in a row
        self._trains_since: float | None = None  # monotonic
        self.crew: wire.Crew | None = None  # in which this machine shall train, as the controller decided
        self.crew_changed = self.crew_broken = False
        self._terminated = self._killed = False
        self._said = ""  # the last reason of the draining job, so that it is logged once

    @property
    def phase(self) -> str | None:
        """The phase that the job reports; None if it has not reported one yet."""
        return self.status.phase if self.status is not None else None

    @property
    def handing_in(self) -> float | None:
        """Until when the job may need to upload a finished contribution."""
        return self.status.handing_in if self.status is not None else None

    @property
    def place(self) -> Place | None:
        """This machine's place in the crew of the running job."""
        return self.job.spec.place if self.job is not None else None

    def observe(self, draining: bool) -> None:
        """Poll the job; log what a draining job waits for."""
        if self.job is None or self.exit is not None:
            return
        self.exit = self.job.poll()
        status = self.job.status()
        if status is None:
            return
        # Checked at each poll, not only on a change: the job may have begun to drain before its agent asked for it.
        if status.reason and status.reason != self._said and draining and self.exit is None:
            self.edges.say(f"site {self.options.site}: {status.reason}")
            self._said = status.reason
        self.status = status

    def start(self, orders: JobOrders, first: Callable[[], None]) -> None:
        """Start a job. A failed start counts as a failed job. Args: first: called before anything is started."""
        home = self.member.home
        home.forget_old_jobs()
        spec = self._spec(secrets.token_hex(6))
        self.crew_changed = self.crew_broken = self._terminated = self._killed = False
        self.exit, self.status, self._said = None, None, ""
        try:
            first()
            if spec.place is not None:
                self.member.begins_in(spec.place.crew)
            self.job = launcher.start_job(spec, orders, self.edges.spawn, self.edges.environment)
        except CurtailError as error:
            self.job, self.exit, self.note = None, 1, str(error)

    def _spec(self, job: str) -> JobSpec:
        options, home, crew = self.options, self.member.home, self.crew
        return JobSpec(
            job,
            home.job_folder(job),
            self.member.control.address,
            home.credential_file,
            options.site,
            self.member.identity.fence,
            home.cache,
            self.member.ranks,
            self.threads,
            options.device_batch_samples,
            options.link_bytes_s,
            None if crew is None else Place(crew.id, crew.rank, crew.size, crew.endpoint, self.member.address),
            options.server_name or "",
            options.insecure,
        )

    def order(self, orders: JobOrders) -> None:
        """Write orders for the job, if there is one. If that fails, the job drains when its permit expires."""
        if self.job is not None:
            with contextlib.suppress(CurtailError):
                self.job.order(orders)

    def terminate(self, waited: float) -> None:
        """Terminate a job that did not drain in time; kill it later. Args: waited: seconds since the first call."""
        if self.job is None:
            return
        if not self._terminated:
            self._terminated = True
            self.job.terminate()
        elif not self._killed and waited >= TERMINATE_S:
            self._killed = True
            self.job.kill()

    def trains(self, now: float) -> None:
        """Note that the job made its first step."""
        self._trains_since = now

    def reap(self, failed: bool, now: float) -> None:
        """Note how the job ended and kill the rest of its process group."""
        if self.job is not None:
            words = self.job.last_words()
            self.note = f"job ended with {self.exit}: {words}" if words else f"job ended with {self.exit}"
            self.job.kill()  # the rest of its process group
        if failed:
            self.failures = failures_now(self.failures, now - (self._trains_since or now))
        elif self._trains_since is not None:
            self.failures = 0
        self._trains_since = None
        self.job, self.exit, self.status = None, None, None
        self.crew_changed = self.crew_broken = False

    def kill(self) -> None:
        """Kill the job, if one runs."""
        if self.job is not None and self.exit is None:
            self.job.kill()

    def set_crew(self, crew: wire.Crew | None) -> None:
        """Set the crew that the controller decided; None: not decided yet, and a running job continues."""
        self.crew = crew
        if self.place is not None and crew is not None:
            self.crew_changed = crew.id != self.place.crew
            self.crew_broken = self.crew_changed and crew.broken

    def startable(self) -> bool:
        """May a job continue or start? A crew's job is never started twice: other machines may still run the first."""
        if self.options.machines == 1 or self.job is not None:
            return True
        return self.crew is not None and self.crew.id != self.member.identity.crew
