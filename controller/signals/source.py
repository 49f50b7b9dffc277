"""A trace as the controller's source of readings for the regions of a run."""

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
