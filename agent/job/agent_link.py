"""The job's side of its link to the agent: environment variables at the start, then two files.

In the folder that both share (`agent.job_files`) it reads the agent's orders, drain or
hold, and writes the job's status: phase, progress, and until when a finished
contribution may need. Used from several threads. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent import job_files
from agent.job_files import JobStatus
from curtail import wire
from curtail.errors import CurtailError, UsageError
from curtail.system.clock import Clock

POLL_S = 0.1
"""Longest sleep without reading the agent's orders."""

STATUS_S = 1.0
"""Between two status files that differ in progress only."""


@dataclass(frozen=True, slots=True)
class JobEnvironment:
    """What the agent tells its job through environment variables."""

    url: str  # of the controller
    credential_file: Path
    site: str
    fence: int
    job: str
    cache: Path
    folder: Path  # of this job
    threads: int
    device_batch_samples: int = 0  # samples per rank and forward pass at this site; 0: the run's value
    link_bytes_s: float = 0.0  # limit of transfers, bytes per second; 0: no limit
    server_name: str = ""  # that the controller's certificate must hold; "": the host in `url`
    insecure: bool = False  # plain HTTP to another machine is allowed


def read_environment(values: Mapping[str, str]) -> JobEnvironment:
    """Parse the environment of this process.

    Raises: UsageError: a variable is missing or not a number.
    """
    try:
        return JobEnvironment(
            url=values["CURTAIL_URL"],
            credential_file=Path(values["CURTAIL_CREDENTIAL_FILE"]),
            site=values["CURTAIL_SITE"],
            fence=int(values["CURTAIL_FENCE"]),
            job=values["CURTAIL_JOB"],
            cache=Path(values["CURTAIL_CACHE"]),
            folder=Path(values["CURTAIL_JOB_FOLDER"]),
            threads=int(values.get("CURTAIL_THREADS", "1")),
            device_batch_samples=int(values.get("CURTAIL_DEVICE_BATCH", "0")),
            link_bytes_s=float(values.get("CURTAIL_LINK", "0")),
            server_name=values.get("CURTAIL_SERVER_NAME", ""),
            insecure=values.get("CURTAIL_INSECURE", "0") == "1",
        )
    except (KeyError, ValueError) as error:
        raise UsageError(f"this job was started without {error}", "jobs are started by `curtail agent join`") from None


class AgentLink:
    """What the agent orders, and what it is told."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.phase = "start"
        self._folder, self._clock = folder, clock
        self._progress: wire.Progress | None = None
        self._handing_in: float | None = None
        self._written = float("-inf")
        self._lock = threading.RLock()

    # -- orders ----------------------------------------------------------------

    def drain_reason(self) -> str | None:
        """Why the job must drain now, or None."""
        return job_files.must_drain(job_files.read_orders(self._folder), self._clock.monotonic())

    def draining(self) -> bool:
        """Whether the job must drain now."""
        return self.drain_reason() is not None

    def hold_reason(self) -> str | None:
        """Why the job must not train now but may keep its weights on the GPUs, or None."""
        return job_files.must_hold(job_files.read_orders(self._folder), self._clock.monotonic())

    def stopping(self) -> bool:
        """Whether the job must not train now: it drains or holds."""
        orders, now = job_files.read_orders(self._folder), self._clock.monotonic()
        return job_files.must_drain(orders, now) is not None or job_files.must_hold(orders, now) is not None

    def wait(self, seconds: float) -> str | None:
        """Sleep, but not past a drain; returns why to drain, or None."""
        end = self._clock.monotonic() + seconds
        while True:
            reason = self.drain_reason()
            left = end - self._clock.monotonic()
            if reason is not None or left <= 0:
                return reason
            self._clock.sleep(min(left, POLL_S))

    # -- status ----------------------------------------------------------------

    def tell(self, phase: str, reason: str = "", exit_code: int | None = None) -> None:
        """Write the status. A failure to write is ignored: it is not worth ending a job."""
        with self._lock, contextlib.suppress(CurtailError):
            self.phase = phase
            latest = self._progress
            job_files.write_status(
                self._folder,
                JobStatus(
                    phase,
                    latest.round if latest else None,
                    latest.step if latest else 0,
                    latest.loss if latest else None,
                    latest.tokens_per_s if latest else 0.0,
                    reason,
                    exit_code,
                    self._handing_in,
                ),
            )
        self._written = self._clock.monotonic()

    def tell_progress(self, progress: wire.Progress) -> None:
        """Inner steps were made; writes the status at most every `STATUS_S`."""
        with self._lock:
            self._progress = progress
        if self.phase != "train" or self._clock.monotonic() - self._written >= STATUS_S:
            self.tell("train")

    def tell_handing_in(self, until: float, reason: str = "") -> None:
        """A finished contribution may need until `until`: the agent lets the job live that long, also in a drain."""
        with self._lock:
            self._handing_in = until
            self.tell(self.phase, reason if self.phase != "train" else "")
