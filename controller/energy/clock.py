"""The controller's clock: the time of a replayed trace, at some speed, or real time."""

from __future__ import annotations

from curtail.errors import UsageError
from curtail.system.clock import Clock


class ReplayClock:
    """Simulated time that runs at `speed` from `start`; readable from any thread."""

    def __init__(self, start: float, speed: float, clock: Clock) -> None:
        self.start = start
        self.speed = speed
        self._clock = clock
        self._origin = clock.monotonic()

    def now(self) -> float:
        """The controller's time, in seconds."""
        return self.start + self.speed * (self._clock.monotonic() - self._origin)


class LiveClock(ReplayClock):
    """Real time, for live signals; monotonic, and never earlier than the time at which the run stopped."""

    def __init__(self, start: float, clock: Clock) -> None:
        super().__init__(max(start, clock.wall()), 1.0, clock)
        self._latest = self.start

    def now(self) -> float:
        """Unix time; it stands still after the machine's clock was set back, until that has caught up."""
        self._latest = max(self._latest, self._clock.wall())
        return self._latest


LATE_S = 60.0
"""By how much this machine's clock may be behind the run's."""


def run_clock(stopped: float, speed: float | None, clock: Clock) -> ReplayClock:
    """The controller's clock: that of a trace, or real time where the signal is live.

    Args: stopped: where the clock of the run stands. speed: of the trace; None: the signal is live.
    Raises: UsageError: the run is already later than now, as after a trace of the future.
    """
    if speed is not None:
        return ReplayClock(stopped, speed, clock)
    ahead = stopped - clock.wall()
    if ahead > LATE_S:
        raise UsageError(
            f"the run's clock is {ahead:.0f} s ahead of this machine's",
            "set the clock right; a run that followed a trace of the future cannot go on with a live signal",
        )
    return LiveClock(stopped, clock)
