"""Generates synthetic MCI traces with a small model of grids, for long simulations and tests.

The model, in shares of a region's mean demand, `h` the local solar hour:
  demand  1 + 0.12 cos(2 pi (h-18)/24) + 0.05 cos(2 pi (day-15)/365) - 0.07 on weekends
  sun     S x max(0, sine of the sun's height at the latitude) x clearness of the day
  wind    W x logistic(1.4 x - 0.4); x: normal, autoregressive with a memory of 18 hours
  rest    demand - 0.2 (must-run plants) - sun - wind
If the rest is below 0, power is curtailed and the MCI lies between 0 and 40 g/kWh.
Above 0.06 a fossil plant is at the margin: gas from 380 at a rest of 0 to 480 at 0.5,
beyond that up to 650. In between the MCI is a mixture. Noise with a standard deviation
of 25 g/kWh is added. Clearness and noise are autoregressive, too. Equal seeds give
equal traces. The model has the shape of real signals (short windows at noon, long ones
in storms, seasons); it is not a forecast for any grid. Units: gCO2/kWh, seconds, UTC.
"""

from __future__ import annotations

import io
import math
import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from curtail.errors import UsageError
from curtail.grid.forecast import DAY_S
from curtail.system.disk import SystemDisk

MUST_RUN = 0.2
WIND_MEMORY_S, RIPPLE_MEMORY_S = 18 * 3600.0, 1200.0
CLEARNESS_MEMORY = 0.6  # correlation with the previous day
RIPPLE = 25.0
"""Standard deviation of the noise, gCO2/kWh."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Installed capacity of a region, as shares of its mean demand."""

    sun: float
    wind: float
    latitude: float = 37.0  # degrees


KINDS: Mapping[str, Grid] = {
    "solar": Grid(1.15, 0.15),
    "wind": Grid(0.1, 1.15, 50.0),
    "mixed": Grid(0.8, 0.75, 42.0),
    "thermal": Grid(0.15, 0.15, 50.0),  # hardly ever curtailed
}


@dataclass(frozen=True, slots=True)
class Region:
    """One column of the trace."""

    name: str
    kind: str  # one of `KINDS`
    offset_h: float = 0.0  # of local solar time from UTC


def parse_region(text: str) -> Region:
    """`NAME:KIND` or `NAME:KIND:HOURS`. Raises: UsageError."""
    name, _, rest = text.partition(":")
    kind, _, hours = rest.partition(":")
    try:
        offset = float(hours or 0.0)
    except ValueError:
        offset = math.inf
    if kind not in KINDS or not -14 <= offset <= 14:
        raise UsageError(
            f"--region {text} is not valid with --days",
            f"write NAME:KIND:HOURS, KIND one of {', '.join(KINDS)}, HOURS from UTC, for example WEST:solar:-8",
        )
    return Region(name, kind, offset)


def year(region: Region, start: datetime, days: float, period_s: float, seed: int) -> array[float]:
    """The MCI of one region every `period_s` seconds; independent of the other regions in the trace."""
    grid, rng = KINDS[region.kind], random.Random(f"{seed} {region.name}")
    steps = int(days * DAY_S / period_s)
    first = start.timestamp() + region.offset_h * 3600.0
    keep_wind, keep_ripple = math.exp(-period_s / WIND_MEMORY_S), math.exp(-period_s / RIPPLE_MEMORY_S)
    fresh_wind, fresh_ripple = math.sqrt(1 - keep_wind**2), math.sqrt(1 - keep_ripple**2)
    wind, ripple, cloud, clearness, today = rng.gauss(0, 1), rng.gauss(0, 1), rng.gauss(0, 1), 1.0, -1.0
    rise = noon = base = 0.0
    out = array("d", bytes(8 * steps))
    for index in range(steps):
        at = first + index * period_s
        day, second = divmod(at, DAY_S)
        if day != today:
            today = day
            cloud = CLEARNESS_MEMORY * cloud + math.sqrt(1 - CLEARNESS_MEMORY**2) * rng.gauss(0, 1)
            clearness = 0.3 + 0.7 / (1.0 + math.exp(-1.5 * cloud - 0.7))
            rise, noon = _sun(grid.latitude, day % 365.25)
            base = 1.0 + 0.05 * math.cos(2 * math.pi * (day % 365.25 - 15) / 365.25) - 0.07 * ((day + 3) % 7 >= 5)
        wind = keep_wind * wind + fresh_wind * rng.gauss(0, 1)
        ripple = keep_ripple * ripple + fresh_ripple * rng.gauss(0, 1)
        angle = 2 * math.pi * second / DAY_S
        demand = base + 0.12 * math.cos(angle - 1.5 * math.pi)
        sun = grid.sun * clearness * max(0.0, rise - noon * math.cos(angle))
        rest = demand - MUST_RUN - sun - grid.wind / (1.0 + math.exp(0.4 - 1.4 * wind))
        out[index] = round(_mci(rest, ripple), 1)
    return out


def _sun(latitude: float, day: float) -> tuple[float, float]:
    """(a, b) with: sine of the sun's height = a - b x cos(2 pi x hour / 24), on the day `day` of the year."""
    declination = -math.radians(23.44) * math.cos(2 * math.pi * (day + 10) / 365.25)
    phi = math.radians(latitude)
    return math.sin(phi) * math.sin(declination), math.cos(phi) * math.cos(declination)


def _mci(rest: float, ripple: float) -> float:
    thrown_away = min(40.0, max(0.0, 15.0 + 0.5 * RIPPLE * ripple))
    if rest <= 0.0:
        return thrown_away
    burnt = 380.0 + 200.0 * rest if rest < 0.5 else min(650.0, 480.0 + 400.0 * (rest - 0.5))
    burnt += RIPPLE * ripple
    share = min(1.0, rest / 0.06)
    return max(0.0, share * burnt + (1.0 - share) * thrown_away)


def write_year(out: Path, regions: Sequence[str], days: float, period_s: int, start: str, seed: int) -> int:
    """Run `curtail trace synth --days`; returns the exit code. Raises: UsageError, DiskError."""
    try:
        moment = datetime.fromisoformat(start)
    except ValueError:
        raise UsageError(f"{start!r} is not a time", "write it as 2026-03-01T10:00:00Z") from None
    if moment.tzinfo is None:
        raise UsageError("the start of a trace has no time zone", "give it in UTC")
    parsed = [parse_region(text) for text in regions]
    if len({region.name for region in parsed}) != len(parsed):
        raise UsageError("a region is named twice", "give each region a unique name")
    if not 2 * period_s <= days * DAY_S <= 3700 * DAY_S:
        raise UsageError(f"invalid value for --days: {days:g}", "use two periods to ten years")
    columns = [year(region, moment, days, period_s, seed) for region in parsed]
    text = io.StringIO()
    text.write(",".join(["point_time", *(region.name for region in parsed)]) + "\n")
    step, at = timedelta(seconds=period_s), moment.astimezone(UTC)
    for row in zip(*columns, strict=True):
        text.write(at.isoformat().replace("+00:00", "Z") + "".join(f",{value:.1f}" for value in row) + "\n")
        at += step
    SystemDisk().replace("TRACE", out, text.getvalue().encode())
    print(f"{len(columns[0])} readings of {len(parsed)} regions in {out}, in g/kWh")
    for region, column in zip(parsed, columns, strict=True):
        share = 100.0 * sum(value < 100.0 for value in column) / len(column)
        print(f"  {region.name}: {region.kind}, below 100 g/kWh for {share:.1f} % of the time")
    return 0
