"""What a live source of grid signals answers, and whether that can be believed.

A feed fetches; it may block, fail, lie and raise. `controller.signals.polling`
calls it in a thread of its own and gives the controller readings. What an answer
must fulfil is decided here, for built-in feeds and for plug-ins alike: marginal
intensity, a known unit, plausible numbers, points in order, a first point of now.
Units: seconds of Unix time; intensity in the unit that the answer names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from curtail.grid.forecast import Forecast
from curtail.grid.reading import UNITS, Reading, check_value, to_g_per_kwh

DAY_OF_ZEROS_S = 23 * 3600.0
"""A forecast that is exactly 0 for so long, and for all it knows, is an outage of its source."""

RENEWAL_S = 120.0
"""How late a new value may be. A zero counts only while it is renewed in time, and sources publish with some delay:
without this a region that is truly at 0 would stop at the end of every period."""


class SignalError(Exception):
    """Why a feed has no answer: one sentence without a full stop, without secrets. What was known ages on.

    Args: retry_s: do not ask again before so many seconds have passed; None: as always after a failure.
    """

    def __init__(self, reason: str, retry_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_s = retry_s


class Unbelievable(SignalError):
    """There was an answer, and it cannot be true: what was known before is not believed any more, either."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a feed knows of one region."""

    points: tuple[tuple[float, float], ...]  # (start of validity, value), ascending; the first is the live value
    unit: str  # one of `curtail.grid.reading.UNITS`; never guessed
    period: float  # s that the first value holds
    made: float | None = None  # when the source computed it
    basis: str = "marginal"  # anything else is refused


class Feed(Protocol):
    """A source of live values; plug-ins of the entry point group `curtail.signals` make one."""

    name: str  # for people: "watttime"

    def fetch(self, region: str, now: float) -> Answer:
        """What is known of `region`, by the source's own name for it.

        Raises: SignalError: the reason; anything else counts as a failure, too.
        """
        ...


class Plugin(Protocol):
    """What an entry point of the group `curtail.signals` leads to."""

    def __call__(self, regions: Mapping[str, str], options: Mapping[str, Any]) -> Feed:
        """The feed.

        Args:
            regions: region of the run -> the source's name for it.
            options: `[signal.options]` of the run file.
        Raises: ConfigError: the options make no sense.
        """
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """An answer that can be believed: the live value, and a forecast where there is more than that."""

    reading: Reading
    forecast: Forecast | None


def believe(region: str, source: str, answer: Answer, now: float, max_age: float) -> Known:
    """`answer` as a reading and a forecast in gCO2/kWh.

    Args: max_age: s; an answer that was made or is for longer ago says nothing of now.
    Raises: Unbelievable: why it cannot be believed.
    """
    if answer.basis != "marginal":
        raise Unbelievable(f"the values are {answer.basis}, not marginal: they do not say what is curtailed")
    if answer.unit not in UNITS:
        raise Unbelievable(f"the unit is {answer.unit}, not one of {', '.join(UNITS)}")
    if not answer.points:
        raise Unbelievable("the answer has no values")
    if not 1.0 <= answer.period <= max_age:
        raise Unbelievable(f"a value that holds {answer.period:.0f} s cannot be used; 1 to {max_age:.0f} s can")
    points = tuple((at, to_g_per_kwh(value, answer.unit)) for at, value in answer.points)
    for _, value in points:
        problem = check_value(value)
        if problem:
            raise Unbelievable(problem)
    if any(after[0] <= before[0] for before, after in pairwise(points)):
        raise Unbelievable("the points of the answer are not in order of time")
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
        raise Unbelievable(f"the value is {now - first:.0f} s old, at most {max_age:.0f} s are allowed")
    if answer.made is not None and now - answer.made > max_age:
        raise Unbelievable(f"the values were made {now - answer.made:.0f} s ago and are not renewed")
    if answer.made is not None and answer.made > now + answer.period:
        raise Unbelievable(f"the values were made {answer.made - now:.0f} s in the future; check the clocks")
