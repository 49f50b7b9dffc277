"""How long each phase of a job's rounds takes; may be used from any thread.

`step`, `snapshot`, `idle` and `apply` are phases of the training thread and add up to
the length of a round. What happens beside it (encoding, upload, merge, download)
is counted too, so all phases together may add up to more. Units: seconds of
`Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from curtail.system.clock import Clock

PHASES = ("step", "snapshot", "idle", "apply", "encode", "keep", "upload", "wait", "fetch")
"""step: inner steps. snapshot: copies to the host. idle: nothing to train on. apply: new weights into the model.
Beside these: encode: pseudo-gradient, hashes, file. keep: optimizer state to disk. upload: bytes and commit.
wait: for the other sites and the merge. fetch: the next version, applied to the base weights."""


class Phases:
    """Sums of seconds by phase since they were last taken."""

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
        """Count `seconds` as `phase`. Raises: KeyError: it is not in `PHASES`."""
        with self._lock:
            self._seconds[phase] += seconds

    def take(self) -> str:
        """The seconds since the last call, as `total 3.21, step 3.00, ...`; omits phases that took none."""
        with self._lock:
            now = self._clock.monotonic()
            total, self._began = now - self._began, now
            parts = {"total": total} | {name: seconds for name, seconds in self._seconds.items() if seconds >= 0.0005}
            self._seconds = dict.fromkeys(PHASES, 0.0)
        return ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts.items())
