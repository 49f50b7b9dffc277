"""Readings of the grid signal: an MCI value with time and validity, or why it is unknown.

`unusable` decides whether a reading is good enough to train on; its value alone
never does. Units: marginal carbon intensity (MCI) in gCO2/kWh, times in seconds of
the controller's clock (Unix time; simulated while a trace is replayed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

POUNDS_PER_MWH = 0.45359237
"""gCO2/kWh in one lb/MWh (453.59237 g per pound, 1000 kWh per MWh)."""

HIGHEST_PLAUSIBLE = 3000.0
"""gCO2/kWh; no grid's marginal plant emits more, so a larger number means a wrong unit."""

JOULES_PER_KWH = 3.6e6
"""1000 W for 3600 s."""

UNITS = ("g/kWh", "lb/MWh")


def to_g_per_kwh(value: float, unit: str) -> float:
    """`value` in gCO2/kWh.

    Raises: ValueError: `unit` is not one of `UNITS`.
    """
    if unit == "g/kWh":
        return value
    if unit == "lb/MWh":
        return value * POUNDS_PER_MWH
    raise ValueError(f"unknown unit {unit!r}; use one of {', '.join(UNITS)}")


@dataclass(frozen=True, slots=True)
class Reading:
    """One region's MCI, or the reason why it is unknown."""

    region: str
    mci: float | None  # gCO2/kWh; None: unknown; may be negative
    point_time: float  # the time the value is for; if unknown, the time of the query
    valid_until: float  # the value holds in [point_time, valid_until)
    source: str  # for display: "trace mci.csv", "watttime CAISO_NORTH"
    reason: str = ""  # why it is unknown; empty when known


def unknown(region: str, now: float, source: str, reason: str) -> Reading:
    """A reading without a value, and the reason."""
    return Reading(region, None, now, now, source, reason)


def check_value(value: float) -> str | None:
    """Why `value` (gCO2/kWh) cannot be an MCI, or None if it can."""
    if not math.isfinite(value):
        return "the value is not a finite number"
    if value > HIGHEST_PLAUSIBLE:
        return f"{value:.0f} g/kWh is above {HIGHEST_PLAUSIBLE:.0f}, the highest plausible value"
    return None


def unusable(reading: Reading | None, now: float, max_age: float) -> str | None:
    """Why `reading` cannot justify training at `now`, or None if it can.

    A value is accepted beyond its own validity until it is `max_age` seconds older
    than its point time; after that it is stale. An exact 0 is accepted only while it
    is valid: failing sources have served zeros for hours.
    """
    if reading is None:
        return "no reading has arrived yet"
    if reading.mci is None:
        return reading.reason or "the reading is unknown"
    problem = check_value(reading.mci)
    if problem:
        return problem
    if reading.point_time > now + min(max_age, reading.valid_until - reading.point_time):
        return f"the reading is {reading.point_time - now:.0f} s in the future; check the clocks"
    age = now - reading.point_time
    if age > max_age:
        return f"the reading is stale: {age:.0f} s old, at most {max_age:.0f} s are allowed"
    if reading.mci == 0.0 and now > reading.valid_until:
        return f"the reading is exactly 0 and has not been renewed for {age:.0f} s"
    return None
