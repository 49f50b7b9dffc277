"""What tests put in the place of time."""

from __future__ import annotations


class FakeClock:
    """Time stands still until the test moves it, or somebody sleeps."""

    def __init__(self, t: float = 1_000_000.0, set_by: float = 0.0) -> None:
        self.t = t
        self.set_by = set_by  # s by which somebody set the wall clock
        self.slept: list[float] = []

    def wall(self) -> float:
        return self.t + self.set_by

    def monotonic(self) -> float:
        return self.t

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.t += seconds


class TickingClock(FakeClock):
    """A second passes whenever somebody looks."""

    def monotonic(self) -> float:
        self.t += 1.0
        return self.t
