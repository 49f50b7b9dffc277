"""Zeros in all regions at once are an outage of the source, not curtailment.

A failing source has served exact zeros for everything for hours (WattTime, on
2026-04-22), and a single region is truly at 0 for hours. So a zero is believed
only beside another region that is not at 0. Wraps any live source, so that its
readings say so; `curtail.policy.decision` doubts the zeros of a trace in the same way, and
a constant confirms itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, unknown

if TYPE_CHECKING:
    from controller.signals.replay import Source

ALL_ZERO = "all regions read exactly 0 at once, as in an outage of the source"


class DoubtingSource:
    """`source`, but unknown while all `regions` that it knows are at exactly 0; needs two regions or more."""

    def __init__(self, source: Source, regions: Iterable[str]) -> None:
        self._source = source
        self._regions = tuple(regions)

    def reading(self, region: str, now: float) -> Reading:
        """What is known of `region` at `now`."""
        reading = self._source.reading(region, now)
        if reading.mci == 0.0 and self._suspect(region, now):
            return unknown(region, now, reading.source, ALL_ZERO)
        return reading

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """What the source expects."""
        return self._source.forecast(region, now, horizon)

    def second(self, region: str, now: float) -> Reading | None:
        """What another source says, if the source has one."""
        return self._source.second(region, now)

    def ended(self, now: float) -> bool:
        """Has the source ended?"""
        return self._source.ended(now)

    def _suspect(self, region: str, now: float) -> bool:
        others = [self._source.reading(other, now).mci for other in self._regions if other != region]
        return bool(others) and all(mci is None or mci == 0.0 for mci in others)
