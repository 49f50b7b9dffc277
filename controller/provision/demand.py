"""Decides whether a site's machines are wanted: from its region's verdict, the forecast and the lead time. Pure.

With a forecast a machine is requested `lead` seconds before the window opens, so that it trains from
the window's first second. Times are seconds of the controller's clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from curtail.grid.forecast import Forecast

ENOUGH = 3
"""Measured times from which on the assumed one is not used."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Whether machines are wanted, until when, and why."""

    wanted: bool
    until: float  # end of the window; inf: unknown
    reason: str


@dataclass(frozen=True, slots=True)
class DemandFacts:
    """Everything on which the demand depends."""

    now: float
    granted: bool  # the region's verdict
    reason: str  # of that verdict
    forecast: Forecast | None
    limit: float  # gCO2/kWh below which the site may train
    lead: float  # seconds from a request to the first step
    shortest: float  # no machine is requested for a shorter window
    present: bool  # machines of the site exist
    idle_s: float  # how long they have been without a permit
    order: str  # up or down by an operator, or ""
    finished: bool  # the run has reached its budget


def demand(facts: DemandFacts) -> Demand:
    """The demand for a site's machines.

    Machines that exist are kept while a window is open or opens within `lead`; without a forecast they are kept for
    `lead` seconds after the window (the ski-rental rule: a new start would cost as much).
    """
    if facts.finished:
        return Demand(False, facts.now, "the token budget is reached")
    if facts.order:
        return Demand(facts.order == "up", math.inf, f"an operator ordered it {facts.order}")
    if facts.granted:
        end = _window_end(facts, facts.now)
        if not facts.present and end - facts.now < max(facts.shortest, facts.lead):
            return Demand(
                False, facts.now, f"the window ends in {end - facts.now:.0f} s; a start takes {facts.lead:.0f} s"
            )
        return Demand(True, end, facts.reason)
    expected = None if facts.forecast is None else _expected(facts, facts.forecast)
    if expected is not None:
        return expected
    if facts.present and facts.forecast is None and facts.idle_s < facts.lead:
        return Demand(True, facts.now + facts.lead - facts.idle_s, f"{facts.reason}; kept for {facts.lead:.0f} s")
    return Demand(False, facts.now, facts.reason)


def _expected(facts: DemandFacts, forecast: Forecast) -> Demand | None:
    """The demand because of a window that the forecast says has just opened, or opens within `lead`."""
    value, since = forecast.value_at(facts.now), forecast.since(facts.now)
    if value is not None and since is not None and value < facts.limit:
        # The reading may be a little late. But a forecast that stays wrong keeps no machine.
        age = facts.now - since
        kept = facts.present and age < facts.lead
        return Demand(True, _window_end(facts, facts.now), f"the window opened {age:.0f} s ago") if kept else None
    start = forecast.first_below(facts.limit, facts.now, facts.now + facts.lead)
    if start is None:
        return None
    until_start, end = start - facts.now, _window_end(facts, start)
    if end - start < facts.shortest:
        return Demand(False, facts.now, f"the window in {until_start:.0f} s is shorter than {facts.shortest:.0f} s")
    return Demand(True, end, f"a window opens in {until_start:.0f} s")


def _window_end(facts: DemandFacts, start: float) -> float:
    if facts.forecast is None:
        return math.inf
    end = facts.forecast.first_at_or_above(facts.limit, start, facts.forecast.known_until)
    return math.inf if end is None else end


def boot_time(measured: Sequence[float], assumed: float) -> float:
    """90th percentile of the measured times from request to join; with few measurements at least `assumed`."""
    if not measured:
        return assumed
    ordered = sorted(measured)
    p90 = ordered[math.ceil(0.9 * len(ordered)) - 1]
    return p90 if len(ordered) >= ENOUGH else max(p90, assumed)
