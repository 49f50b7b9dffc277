"""The controller's clock: a trace's time at some speed, or real time."""

from __future__ import annotations

from curtail.system.clock import Clock


class ReplayClock:
    """Simulated time that runs at `speed` from `start`; readable from any thread."""

    def __init__(self, start: float, speed: float, clock: Clock) -> None:
        self.start = start
        self.speed = speed
        self._clock = clock
        self._origin = clock.monotonic()

    def now(self) -> float:
        """The controller's clock, seconds."""
        return self.start + self.speed * (self._clock.monotonic() - self._origin)


class LiveClock(ReplayClock):
    """Real time, for live signals: never goes back, and never behind where the run stopped."""

    def __init__(self, start: float, clock: Clock) -> None:
        super().__init__(max(start, clock.wall()), 1.0, clock)
        self._latest = self.start

    def now(self) -> float:
        """Unix time; stands still while the machine's clock is set back."""
        self._latest = max(self._latest, self._clock.wall())
        return self._latest
