"""Sources of readings that need no network: a recorded trace, and a constant."""

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
        """What is known of `region` at `now`; never raises."""
        ...

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """What is expected within `horizon` seconds, or as far as is known; or None."""
        ...

    def second(self, region: str, now: float) -> Reading | None:
        """What another source says, which can confirm a zero that looks like an outage; or None."""
        ...

    def ended(self, now: float) -> bool:
        """Will no reading come any more?"""
        ...


class TraceSource:
    """Readings from a trace.

    Args:
        columns: region -> column of the trace.
        foresight: use the trace's own future as a (perfect) forecast.
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
        """What is expected within `horizon` seconds, or None without foresight."""
        if not self._foresight:
            return None
        if horizon == inf:  # asked for at every step: the whole course, made once
            if region not in self._whole:
                start = self._trace.start
                self._whole[region] = self._trace.forecast(self._columns[region], region, start, inf)
            return self._whole[region]
        return self._trace.forecast(self._columns[region], region, now, horizon)

    def second(self, region: str, now: float) -> Reading | None:
        """None: nobody else is asked."""
        return None

    def ended(self, now: float) -> bool:
        """Has the trace ended?"""
        return now >= self._trace.end


class ConstantSource:
    """The same MCI everywhere and always: for grids without a signal, and to try things out.

    Args: mci: gCO2/kWh. It is as fresh as the moment of asking.
    """

    def __init__(self, mci: float, period: float = 300.0) -> None:
        self._mci = mci
        self._period = period

    def reading(self, region: str, now: float) -> Reading:
        """The constant, from the beginning of the present period on."""
        point = now - now % self._period
        return Reading(region, self._mci, point, point + self._period, "constant")

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """None: a constant is set by a person, who may change it."""
        return None

    def second(self, region: str, now: float) -> Reading | None:
        """The constant itself: a person wrote it, so that a 0 is no outage."""
        return self.reading(region, now)

    def ended(self, now: float) -> bool:
        """Never."""
        return False
