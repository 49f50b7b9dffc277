"""Sources of readings that need no network: a recorded trace, and a constant."""

from __future__ import annotations

from collections.abc import Mapping

from controller.signals.trace import Trace
from curtail.policy import Forecast
from curtail.reading import Reading


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

    def reading(self, region: str, now: float) -> Reading:
        """What is known of `region` at `now`."""
        return self._trace.reading(self._columns[region], region, now)

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """What is expected within `horizon` seconds, or None without foresight."""
        if not self._foresight:
            return None
        return self._trace.forecast(self._columns[region], region, now, horizon)

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

    def ended(self, now: float) -> bool:
        """Never."""
        return False
