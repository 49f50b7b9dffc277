"""What the policy gets to see of a trace in the planner: late, in error, or as it was.

The truth is the trace, by which the ledger books. The policy sees the signal
`delay` seconds late; every end of a window `miss` seconds late (reading and
forecast alike, as when the newest value is itself an estimate); and the future
by a forecast: the trace's own, another file's, or none. Units: gCO2/kWh, seconds.
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
"""Points (start of validity, gCO2/kWh or None for unknown), ascending; the last one ends the course."""


def course_of(trace: Trace, region: str) -> Course:
    """A column of the trace as a step function that ends unknown."""
    return (*zip(trace.stamps, trace.values[region], strict=True), (trace.end, None))


def missed(course: Course, threshold: float, seconds: float) -> Course:
    """`course` as it looks to one who notices the end of every window `seconds` late."""
    if seconds <= 0:
        return course
    found: list[tuple[float, float | None]] = []
    inside, until = False, -inf  # of a window; when its last value ceases to be seen
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
    """One region as the policy sees it."""

    region: str
    course: Course
    delay: float  # s
    forecast: Forecast | None

    def reading(self, now: float) -> tuple[Reading, float]:
        """The newest value that has arrived by `now`, and when the next one will."""
        index = bisect_right(self.course, now - self.delay, key=_moment) - 1
        if index < 0:
            following = self.course[0][0] + self.delay
            return unknown(self.region, now, "trace", "no reading has arrived yet"), following
        point, value = self.course[index]
        following = self.course[index + 1][0] + self.delay if index + 1 < len(self.course) else inf
        if value is None:
            return unknown(self.region, now, "trace", "the trace says nothing about this time"), following
        # a source that is always late renews its values late, and they hold for as long
        return Reading(self.region, value, point, following, "trace"), following


def _moment(entry: tuple[float, float | None]) -> float:
    return entry[0]


def sight(
    trace: Trace, region: str, threshold: float, delay: float, forecast: str | Trace,
    forecast_miss: float = 0.0, reading_miss: float = 0.0,
) -> Sight:  # fmt: skip
    """How the policy sees `region` of `trace`.

    Args: forecast: `perfect`, `none`, or another trace.
    Raises: UsageError: the other trace is about another time.
    """
    truth = course_of(trace, region)
    seen = missed(truth, threshold, reading_miss)
    if forecast == "none":
        return Sight(region, seen, delay, None)
    expected = truth
    if isinstance(forecast, Trace):
        if forecast.end <= trace.start or forecast.start >= trace.end:
            raise UsageError("the forecast is about another time than the trace", "give one for the time of the trace")
        expected = course_of(forecast, region)
    expected = missed(expected, threshold, forecast_miss)
    points = tuple((point, inf if value is None else value) for point, value in expected)
    return Sight(region, seen, delay, Forecast(region, points))
