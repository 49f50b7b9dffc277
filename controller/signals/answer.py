"""The interface of a live grid signal (a feed), and the validation of its answers.

A feed may block, raise, or return wrong values. `controller.signals.polling` calls
it in a separate thread and turns its answers into readings. This module validates
the answers of built-in feeds and plug-ins: marginal intensity, a known unit,
plausible numbers, points in order, a first point that is current. Units: Unix
seconds; intensity in the unit that the answer names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from curtail.grid.forecast import Forecast
from curtail.grid.reading import UNITS, Reading, check_value, to_g_per_kwh

DAY_OF_ZEROS_S = 23 * 3600.0
"""A forecast that is exactly 0 at all its points, for at least this long, counts as an outage of its source."""

RENEWAL_S = 120.0
"""How late a new value may be. A zero counts only while it is renewed in time, and sources publish with some delay.
Without this margin a region that really is at 0 would stop at the end of every period."""


class SignalError(Exception):
    """A feed has no answer. The last known value stays and becomes older.

    Args:
        reason: one sentence without a full stop and without secrets.
        retry_s: wait at least this many seconds before the next attempt; None: the usual backoff.
    """

    def __init__(self, reason: str, retry_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_s = retry_s


class Unbelievable(SignalError):
    """An answer is implausible. The last known value is discarded, too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A feed's values for one region."""

    points: tuple[tuple[float, float], ...]  # (start of validity, value), ascending; the first is the live value
    unit: str  # one of `curtail.grid.reading.UNITS`; never guessed
    period: float  # s for which the first value is valid
    made: float | None = None  # when the source computed it
    basis: str = "marginal"  # anything else is refused


class Feed(Protocol):
    """A source of live values; plug-ins of the entry point group `curtail.signals` create one."""

    name: str  # for messages, e.g. "watttime"

    def fetch(self, region: str, now: float) -> Answer:
        """The current values of `region`, which is the source's name for it.

        Raises: SignalError: the reason; any other exception counts as a failure, too.
        """
        ...


class Plugin(Protocol):
    """The callable that an entry point of the group `curtail.signals` refers to."""

    def __call__(self, regions: Mapping[str, str], options: Mapping[str, Any]) -> Feed:
        """Create the feed.

        Args:
            regions: region of the run -> the source's name for it.
            options: `[signal.options]` of the run file.
        Raises: ConfigError: the options are wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """A validated answer: the live value, and a forecast if the answer has more points."""

    reading: Reading
    forecast: Forecast | None


def believe(region: str, source: str, answer: Answer, now: float, max_age: float) -> Known:
    """Validate `answer` and convert it to a reading and a forecast in gCO2/kWh.

    Args: max_age: the oldest usable value, in seconds.
    Raises: Unbelievable: why the answer is implausible.
    """
    if answer.basis != "marginal":
        raise Unbelievable(f"the values are {answer.basis}, not marginal: they do not say what is curtailed")
    if answer.unit not in UNITS:
        raise Unbelievable(f"the unit is {answer.unit}, not one of {', '.join(UNITS)}")
    if not answer.points:
        raise Unbelievable("the answer has no values")
    if not 1.0 <= answer.period <= max_age:
        raise Unbelievable(f"the values are valid for {answer.period:.0f} s, not for 1 to {max_age:.0f} s")
    points = tuple((at, to_g_per_kwh(value, answer.unit)) for at, value in answer.points)
    for _, value in points:
        problem = check_value(value)
        if problem:
            raise Unbelievable(problem)
    if any(after[0] <= before[0] for before, after in pairwise(points)):
        raise Unbelievable("the points of the answer are not in chronological order")
    _check_times(points[0][0], answer, now, max_age)
    at, value = points[0]
    reading = Reading(region, value, at, at + answer.period + RENEWAL_S, source)
    until = points[-1][0] + answer.period
    forecast = Forecast(region, points, until) if len(points) > 1 else None
    if forecast is not None and until - at >= DAY_OF_ZEROS_S and all(value == 0.0 for _, value in points):
        raise Unbelievable("the forecast is exactly 0 for a whole day, as in an outage of the source")
    return Known(reading, forecast)


def _check_times(first: float, answer: Answer, now: float, max_age: float) -> None:
    if first > now + answer.period:
        raise Unbelievable(f"the value is for {first - now:.0f} s in the future; check the clocks")
    if now - first > max_age:
        raise Unbelievable(f"the value is {now - first:.0f} s old; at most {max_age:.0f} s are allowed")
    if answer.made is not None and now - answer.made > max_age:
        raise Unbelievable(f"the values were computed {now - answer.made:.0f} s ago and are not renewed")
    if answer.made is not None and answer.made > now + answer.period:
        raise Unbelievable(f"the values were computed {answer.made - now:.0f} s in the future; check the clocks")
