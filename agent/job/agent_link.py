"""The job's side of the folder that it shares with its agent (`agent.job_files`).

Reads the agent's orders: drain or hold. Writes the job's status: phase, progress,
and until when a finished contribution may need. Used from several threads. Units:
seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from agent import job_files
from agent.job_files import JobStatus
from curtail import wire
from curtail.errors import CurtailError
from curtail.system.clock import Clock

POLL_S = 0.1
"""Longest sleep without reading the agent's orders."""

STATUS_S = 1.0
"""Between two status files that differ in progress only."""


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
