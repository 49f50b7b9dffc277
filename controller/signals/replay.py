"""The interface of a source of readings, and two sources without a network: a trace and a constant."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Protocol

from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading
from curtail.grid.trace import Trace


class Source(Protocol):
    """Where readings come from."""

    def reading(self, region: str, now: float) -> Reading:
        """The reading of `region` at `now`; never raises."""
        ...

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """The forecast for at most the next `horizon` seconds; None if there is none."""
        ...

    def second(self, region: str, now: float) -> Reading | None:
        """The reading of a second source, which can confirm a zero that looks like an outage; None if there is none."""
        ...

    def ended(self, now: float) -> bool:
        """Has the source no more readings?"""
        ...


class TraceSource:
    """Readings from a trace.

    Args:
        columns: region -> column of the trace.
        foresight: use the trace's future as a perfect forecast.
    """

    def __init__(self, trace: Trace, columns: Mapping[str, str], foresight: bool) -> None:
        self._trace = trace
        self._columns = dict(columns)
        self._foresight = foresight
        self._whole: dict[str, Forecast] = {}

    def reading(self, region: str, now: float) -> Reading:
        """What is known of `region` at `now`."""
        return self._trace.reading(self._columns[region], region, now)

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """The forecast for the next `horizon` seconds; None without foresight."""
        if not self._foresight:
            return None
        if horizon == inf:  # requested at every step, so the forecast to the end of the trace is cached
            if region not in self._whole:
                start = self._trace.start
                self._whole[region] = self._trace.forecast(self._columns[region], region, start, inf)
            return self._whole[region]
        return self._trace.forecast(self._columns[region], region, now, horizon)

    def second(self, region: str, now: float) -> Reading | None:
        """None: there is no second source."""
        return None

    def ended(self, now: float) -> bool:
        """Has the trace ended?"""
        return now >= self._trace.end


class ConstantSource:
    """The same MCI for all regions at all times: for grids without a signal, and for tests.

    Args: mci: gCO2/kWh; its readings are always current.
    """

    def __init__(self, mci: float, period: float = 300.0) -> None:
        self._mci = mci
        self._period = period

    def reading(self, region: str, now: float) -> Reading:
        """The constant, valid from the start of the current period."""
        point = now - now % self._period
        return Reading(region, self._mci, point, point + self._period, "constant")

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """None: a constant has no forecast, because the user may change it."""
        return None

    def second(self, region: str, now: float) -> Reading | None:
        """The constant: the user set it, so a 0 is not an outage."""
        return self.reading(region, now)

    def ended(self, now: float) -> bool:
        """Never."""
        return False
