"""Treats exact zeros in all regions at once as an outage of the source, not as curtailment.

A failing source served exact zeros for all regions for hours (WattTime, on
2026-04-22), while a single region can really be at 0 for hours. So a zero counts
only while another region is not at 0. The wrapper works with any live source.
`curtail.policy.decision` applies the same rule to the zeros of a trace. A constant
source confirms its own zeros.
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
    """Wraps `source`; readings are unknown while all known `regions` are at exactly 0. Needs at least two regions."""

    def __init__(self, source: Source, regions: Iterable[str]) -> None:
        self._source = source
        self._regions = tuple(regions)

    def reading(self, region: str, now: float) -> Reading:
        """The reading of `region` at `now`; unknown while all regions are at 0."""
        reading = self._source.reading(region, now)
        if reading.mci == 0.0 and self._suspect(region, now):
            return unknown(region, now, reading.source, ALL_ZERO)
        return reading

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """The source's forecast."""
        return self._source.forecast(region, now, horizon)

    def second(self, region: str, now: float) -> Reading | None:
        """The reading of the source's second source, if it has one."""
        return self._source.second(region, now)

    def ended(self, now: float) -> bool:
        """Has the source ended?"""
        return self._source.ended(now)

    def _suspect(self, region: str, now: float) -> bool:
        others = [self._source.reading(other, now).mci for other in self._regions if other != region]
        return bool(others) and all(mci is None or mci == 0.0 for mci in others)
