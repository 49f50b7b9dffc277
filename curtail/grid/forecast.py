"""Forecast of a region's marginal carbon intensity (MCI), as a step function.

Each value holds from its point until the next. Nothing is known beyond
`known_until`, the forecast horizon. Decisions on forecasts are made in
`curtail.policy.rules`. Units: gCO2/kWh, seconds of the controller's clock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from math import inf

DAY_S = 86400.0

Segment = tuple[float, float, float]
"""(from, to, gCO2/kWh)."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast MCI of a region: `points` are (start of validity, gCO2/kWh), ascending."""

    region: str
    points: tuple[tuple[float, float], ...]
    known_until: float = inf

    def first_at_or_above(self, threshold: float, start: float, stop: float) -> float | None:
        """The first point in [start, stop] at which the forecast reaches `threshold`."""
        points = self.points
        for index in range(bisect_left(points, (start,)), len(points)):
            moment, value = points[index]
            if moment > stop:
                return None
            if value >= threshold:
                return moment
        return None

    def first_below(self, threshold: float, start: float, stop: float) -> float | None:
        """The first point in [start, stop] at which the forecast falls below `threshold`."""
        points = self.points
        for index in range(bisect_left(points, (start,)), len(points)):
            moment, value = points[index]
            if moment > stop:
                return None
            if value < threshold:
                return moment
        return None

    def value_at(self, moment: float) -> float | None:
        """The forecast value at `moment`; None before the first point and beyond `known_until`."""
        index = bisect_right(self.points, (moment, inf)) - 1
        return None if index < 0 or moment >= self.known_until else self.points[index][1]

    def since(self, moment: float) -> float | None:
        """The start of validity of the value at `moment`; None before the first point."""
        index = bisect_right(self.points, (moment, inf)) - 1
        return None if index < 0 else self.points[index][0]

    def segments(self, start: float, stop: float, first: float | None, below: float) -> list[Segment]:
        """The parts of [start, stop) in which the forecast is known and below `below`, in time order.

        Args: first: gCO2/kWh from `start` to the next point, for example from a measurement; None: unknown.
        """
        points, stop = self.points, min(stop, self.known_until)
        index = bisect_right(points, (start, inf))
        last = bisect_left(points, (stop,))
        inner = points[index:last]
        ends = [point for point, _ in inner[1:]]
        ends.append(stop)
        until = inner[0][0] if inner else stop
        head = [(start, until, first)] if first is not None and first < below and until > start else []
        return head + [(at, end, mci) for (at, mci), end in zip(inner, ends, strict=False) if mci < below]

    def is_all_zero(self, now: float, span: float = DAY_S) -> bool:
        """Is the forecast exactly 0 for all of the next `span` seconds? False if it does not reach that far."""
        points = self.points
        if not points or min(self.known_until, points[-1][0]) < now + span:
            return False
        index = max(0, bisect_right(points, (now, inf)) - 1)
        while index < len(points) and points[index][0] <= now + span:
            if points[index][1] != 0.0:
                return False
            index += 1
        return True
