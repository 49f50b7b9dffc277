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


class EvenClock:
    """Wall time that nobody sets: that of `clock` when this was made, and as much later as has passed since.

    For deadlines that are kept as wall time so that they outlive a restart: a machine's clock
    that is set meanwhile moves none of them. Not for what other machines compare with their own clocks.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._behind = clock.wall() - clock.monotonic()

    def wall(self) -> float:
        return self._clock.monotonic() + self._behind

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)
