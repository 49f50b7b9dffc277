"""A grid signal at one moment: a number with proof of freshness, or unknown.

A reading says what it knows and why it does not know. Whether a reading is
good enough to train on is decided here (`usable`), never by its value alone.
Units: marginal carbon intensity (MCI) in gCO2/kWh, times in seconds of the
controller's clock (Unix time; simulated while a trace is replayed).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

POUNDS_PER_MWH = 0.45359237
"""gCO2/kWh in one lb/MWh (453.59237 g per pound, 1000 kWh per MWh)."""

HIGHEST_PLAUSIBLE = 3000.0
"""gCO2/kWh; no grid's marginal plant emits more, so a larger number is an error of unit."""

JOULES_PER_KWH = 3.6e6
"""1000 W for 3600 s."""

UNITS = ("g/kWh", "lb/MWh")


def to_g_per_kwh(value: float, unit: str) -> float:
    """`value` in gCO2/kWh.

    Raises: ValueError: `unit` is none of `UNITS`.
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
    point_time: float  # the moment the value is for; when unknown, the moment of asking
    valid_until: float  # the value holds in [point_time, valid_until)
    source: str  # for people: "trace mci.csv", "watttime CAISO_NORTH"
    reason: str = ""  # why it is unknown; empty when known


def unknown(region: str, now: float, source: str, reason: str) -> Reading:
    """A reading that says nothing, and why."""
    return Reading(region, None, now, now, source, reason)


def check_value(value: float) -> str | None:
    """Why `value` (gCO2/kWh) cannot be an MCI, or None if it can."""
    if not math.isfinite(value):
        return "the value is not a finite number"
    if value > HIGHEST_PLAUSIBLE:
        return f"{value:.0f} g/kWh is above {HIGHEST_PLAUSIBLE:.0f}; is the unit right?"
    return None


def unusable(reading: Reading | None, now: float, max_age: float) -> str | None:
    """Why `reading` cannot justify training at `now`, or None if it can.

    A value past its own validity is accepted until it is `max_age` seconds
    past its point time; after that it is stale. An exact 0 is not: sources that
    fail have served zeros for hours, so a zero counts only while it is renewed.
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
