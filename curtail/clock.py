"""The only place where time is read.

Decisions take `now` as an argument; the loops that call them get a `Clock`.
Seconds everywhere. `wall` is Unix time, for people and for files; `monotonic`
never jumps and is shared by all processes of one machine (CLOCK_MONOTONIC), so
permits on one machine are compared with it.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What a loop needs of time; tests pass a fake that never sleeps."""

    def wall(self) -> float:
        """Unix time in seconds."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return after `seconds` have passed."""
        ...


class SystemClock:
    """The machine's own clock."""

    def wall(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
