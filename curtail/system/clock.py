"""Clocks: the only module that reads the time.

Decision functions take `now` as an argument; the loops that call them get a
`Clock`. All times are in seconds. `wall` is Unix time, for display and for files.
`monotonic` never jumps and is shared by all processes of one machine
(CLOCK_MONOTONIC), so permits on one machine are compared with it.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The time functions that a loop needs; tests pass a fake that never sleeps."""

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
    """Wall time that clock adjustments do not affect: the wall time at creation plus the monotonic time since then.

    For deadlines stored as wall time so that they survive a restart: setting the machine's clock in the meantime
    does not shift them. Not for times that other machines compare with their own clocks.
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
