"""Historical values of each signal source, for settlement only.

WattTime revises its historical values. A trace and a constant do not change.
Electricity Maps has averages of the last day. A plug-in can settle if its feed has a
method `historical(region, start, stop)` that returns a
`controller.ledger.settlement.History`. Units: Unix seconds, gCO2/kWh.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from controller.ledger.settlement import AVERAGE, MARGINAL, Historian, History
from controller.signals.electricitymaps import ElectricityMaps
from controller.signals.select import DECIDING, Surroundings, columns, names, open_averages, open_feed
from controller.signals.watttime import WattTime
from curtail.config import RunConfig
from curtail.grid.trace import Trace

MARGIN_S = 3600.0
"""Requests start this much earlier, so that they include the value that is valid at the start."""

AVERAGE_PERIOD_S = 3600.0


class TraceHistory:
    """The trace's own values. Args: columns: region -> column."""

    basis = MARGINAL

    def __init__(self, trace: Trace, columns: Mapping[str, str]) -> None:
        self._trace, self._columns = trace, dict(columns)

    def history(self, region: str, start: float, stop: float) -> History | None:
        """The whole trace of the region."""
        column = self._columns.get(region)
        if column is None:
            return None
        values = zip(self._trace.stamps, self._trace.values[column], strict=True)
        # Unknown values are left out: each value holds for at most one period, so the gap stays unknown.
        points = [(at, mci) for at, mci in values if mci is not None]
        return History(points, self._trace.period, f"trace {self._trace.name}")


class ConstantHistory:
    """The constant. Args: mci: gCO2/kWh."""

    basis = MARGINAL

    def __init__(self, mci: float) -> None:
        self._mci = mci

    def history(self, region: str, start: float, stop: float) -> History:
        """The constant, at all times."""
        return History(((start, self._mci),), math.inf, "constant")


class WattTimeHistory:
    """WattTime's historical values. Not thread-safe. Args: names: region -> WattTime's name for it."""

    basis = MARGINAL

    def __init__(self, feed: WattTime, names: Mapping[str, str]) -> None:
        self._feed, self._names = feed, dict(names)

    def history(self, region: str, start: float, stop: float) -> History | None:
        """The present values for [start, stop) and a margin. Raises: SignalError."""
        name = self._names.get(region)
        if name is None:
            return None
        found = self._feed.historical(name, start - MARGIN_S, stop)
        return History(found.points, found.period, f"{self._feed.name} {name} historical", found.model)


class PluginHistory:
    """A plug-in's feed with historical values. Args: names: region -> the feed's name for it."""

    basis = MARGINAL

    def __init__(self, feed: Any, names: Mapping[str, str]) -> None:
        self._feed, self._names = feed, dict(names)

    def history(self, region: str, start: float, stop: float) -> History | None:
        """The feed's historical values. Raises: SignalError."""
        found: History | None = self._feed.historical(self._names[region], start - MARGIN_S, stop)
        return found


class AverageHistory:
    """Average intensities of the last day. Not thread-safe. Args: zones: region -> zone."""

    basis = AVERAGE

    def __init__(self, source: ElectricityMaps, zones: Mapping[str, str]) -> None:
        self._source, self._zones = source, dict(zones)

    def history(self, region: str, start: float, stop: float) -> History | None:
        """The hourly averages of the last day. Raises: SignalError."""
        zone = self._zones.get(region, "")
        if not zone:
            return None
        found = self._source.history(zone)
        words = "estimated by its source" if any(average.estimated for average in found) else ""
        points = [(average.at, average.g_per_kwh) for average in found]
        return History(points, AVERAGE_PERIOD_S, f"{self._source.name} {zone}", words)


def open_historians(config: RunConfig, around: Surroundings, trace: Trace | None) -> list[Historian]:
    """All sources with which the run can be settled.

    Args: trace: the trace that was replayed; None: the signal is live.
    Raises: ConfigError, AuthError, NotFound.
    """
    out: list[Historian] = []
    if trace is not None:
        out.append(TraceHistory(trace, columns(config)))
    elif config.signal.source == "constant" and config.signal.value is not None:
        out.append(ConstantHistory(config.signal.value))
    elif config.signal.source == "watttime" or config.signal.source not in DECIDING:
        feed = open_feed(config, around)
        if isinstance(feed, WattTime):
            out.append(WattTimeHistory(feed, names(config)))
        elif callable(getattr(feed, "historical", None)):
            out.append(PluginHistory(feed, names(config)))
    averages = open_averages(config, around)
    if averages is not None:
        zones = {region: section.zone for region, section in config.regions.items()}
        out.append(AverageHistory(averages, zones))
    return out
