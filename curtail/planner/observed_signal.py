"""The signal as the planner's policy observes it: delayed, with missed window ends, or exact.

The ledger books by the trace itself. The policy observes the signal `delay` seconds
late. It notices the end of every window `miss` seconds late, in readings and in
forecasts, as if the newest value were an estimate. Its forecast is the trace itself,
another trace, or none. Units: gCO2/kWh, seconds.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import inf

from curtail.errors import UsageError
from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, unknown
from curtail.grid.trace import Trace

Course = tuple[tuple[float, float | None], ...]
"""Step function: points (start of validity, gCO2/kWh; None: unknown), ascending; the last one marks the end."""


def course_of(trace: Trace, region: str) -> Course:
    """A column of the trace as a step function that ends unknown."""
    return (*zip(trace.stamps, trace.values[region], strict=True), (trace.end, None))


def missed(course: Course, threshold: float, seconds: float) -> Course:
    """`course` as observed if the end of every window is noticed `seconds` late."""
    if seconds <= 0:
        return course
    found: list[tuple[float, float | None]] = []
    inside, until = False, -inf  # inside a window; until when its last value is still observed
    hidden: float | None = None
    *points, last = course
    for point, value in points:
        if -inf < until < point:
            found.append((until, hidden))
            until = -inf
        if value is not None and value < threshold:
            found.append((point, value))
            inside, until = True, -inf
            continue
        if inside:
            inside, until = False, point + seconds
        hidden = value
        if point >= until:
            found.append((point, value))
            until = -inf
    if -inf < until < last[0]:
        found.append((until, hidden))
    return (*found, last)


@dataclass(frozen=True, slots=True)
class Sight:
    """One region as the policy observes it."""

    region: str
    course: Course
    delay: float  # s
    forecast: Forecast | None

    def reading(self, now: float) -> tuple[Reading, float]:
        """The newest value that has arrived by `now`, and the time when the next one arrives."""
        index = bisect_right(self.course, now - self.delay, key=_moment) - 1
        if index < 0:
            following = self.course[0][0] + self.delay
            return unknown(self.region, now, "trace", "no reading has arrived yet"), following
        point, value = self.course[index]
        following = self.course[index + 1][0] + self.delay if index + 1 < len(self.course) else inf
        if value is None:
            return unknown(self.region, now, "trace", "the trace has no value for this time"), following
        # a delayed source also renews its values late, so each stays valid until the next arrives
        return Reading(self.region, value, point, following, "trace"), following


def _moment(entry: tuple[float, float | None]) -> float:
    return entry[0]


def sight(
    trace: Trace, region: str, threshold: float, delay: float, forecast: str | Trace,
    forecast_miss: float = 0.0, reading_miss: float = 0.0,
) -> Sight:  # fmt: skip
    """How the policy observes `region` of `trace`.

    Args: forecast: `perfect`, `none`, or another trace.
    Raises: UsageError: the other trace does not overlap in time.
    """
    truth = course_of(trace, region)
    seen = missed(truth, threshold, reading_miss)
    if forecast == "none":
        return Sight(region, seen, delay, None)
    expected = truth
    if isinstance(forecast, Trace):
        if forecast.end <= trace.start or forecast.start >= trace.end:
            raise UsageError(
                "the forecast does not overlap with the trace in time", "give a forecast for the period of the trace"
            )
        expected = course_of(forecast, region)
    expected = missed(expected, threshold, forecast_miss)
    points = tuple((point, inf if value is None else value) for point, value in expected)
    return Sight(region, seen, delay, Forecast(region, points))
