"""Where the seconds of a job's rounds go, phase by phase, from any thread.

Decides nothing. What happens beside the inner steps (encoding, upload, merge,
download) is counted too, so the phases of an overlapped round add up to more than
its length; `step`, `snapshot`, `idle` and `apply` are those of the training thread
and add up to it. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from curtail.system.clock import Clock

PHASES = ("step", "snapshot", "idle", "apply", "encode", "keep", "upload", "wait", "fetch")
"""step: inner steps. snapshot: copies to the host. idle: nothing to train on. apply: new weights into the model.
Beside it: encode: delta, hashes, the file. keep: the optimizer's state to disk. upload: bytes and commit.
wait: for the other sites and the merge. fetch: the next version, onto the base copy."""


class Phases:
    """Adds up seconds until somebody takes them."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._began = clock.monotonic()

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the block's time as `phase`."""
        began = self._clock.monotonic()
        try:
            yield
        finally:
            self.add(phase, self._clock.monotonic() - began)

    def add(self, phase: str, seconds: float) -> None:
        """Count `seconds` as `phase`; one that is not in `PHASES` is a KeyError."""
        with self._lock:
            self._seconds[phase] += seconds

    def take(self) -> str:
        """The seconds since the last call, as `total 3.21, step 3.00, ...` without phases that took none."""
        with self._lock:
            now = self._clock.monotonic()
            total, self._began = now - self._began, now
            parts = {"total": total} | {name: seconds for name, seconds in self._seconds.items() if seconds >= 0.0005}
            self._seconds = dict.fromkeys(PHASES, 0.0)
        return ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items())
