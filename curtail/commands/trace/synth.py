"""Generates synthetic MCI traces in which given regions are curtailed at given times.

A curtailed region is near 50 g/kWh, any other near 500, with small seeded noise that
never crosses a sensible threshold. The traces are for the demo and for tests and say
nothing about real grids. Units: gCO2/kWh, seconds, UTC. The file has the wide format
that `curtail controller start --trace` reads.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from curtail.errors import UsageError
from curtail.system.disk import SystemDisk

Segment = tuple[float, Collection[str]]
"""(seconds, regions that are curtailed during that time)."""


@dataclass(frozen=True, slots=True)
class Level:
    """Mean MCI of a region, and the largest deviation from it by noise, in gCO2/kWh."""

    middle: float
    reach: float


CURTAILED = Level(50.0, 30.0)  # 20 to 80
ORDINARY = Level(500.0, 150.0)  # 350 to 650: a gas or coal plant is at the margin

MOST_READINGS = 2_000_000
"""Nineteen years of five minutes; more is likely a typing error, and would fill the memory."""

RIPPLE_MEMORY = 0.7
"""Correlation of the noise between consecutive readings."""


@dataclass(frozen=True, slots=True)
class Row:
    """The readings of all regions at one time."""

    at: datetime  # UTC
    mci: tuple[float, ...]  # gCO2/kWh, in the order of the regions


def course(
    regions: Sequence[str], segments: Iterable[Segment], period_s: float, start: datetime, seed: int = 1
) -> list[Row]:
    """Readings every `period_s` seconds from `start` to the end of the segments.

    A segment begins with the first reading at or after the end of the previous segment.
    Equal arguments give equal rows on every machine.
    Raises: UsageError: no region, a region named twice, a segment with an unknown region
        or without a duration, or a start without a time zone.
    """
    parts = list(segments)
    _check(regions, parts, period_s, start)
    rng = random.Random(seed)
    ripple = [0.0] * len(regions)
    rows: list[Row] = []
    end = 0.0
    for seconds, curtailed in parts:
        end += seconds
        while len(rows) * period_s < end:
            # autoregressive noise of unit variance, clipped at two standard deviations
            fresh = math.sqrt(1.0 - RIPPLE_MEMORY**2)
            ripple = [RIPPLE_MEMORY * value + fresh * rng.gauss(0.0, 1.0) for value in ripple]
            levels = [CURTAILED if region in curtailed else ORDINARY for region in regions]
            values = tuple(_value(level, value) for level, value in zip(levels, ripple, strict=True))
            rows.append(Row(start + timedelta(seconds=len(rows) * period_s), values))
    return rows


def to_csv(regions: Sequence[str], rows: Iterable[Row]) -> str:
    """The rows in the wide format: `point_time,REGION,...`, ISO 8601 in UTC, g/kWh with one decimal."""
    out = io.StringIO()
    out.write(",".join(["point_time", *regions]) + "\n")
    for row in rows:
        stamp = row.at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        out.write(",".join([stamp, *(f"{value:.1f}" for value in row.mci)]) + "\n")
    return out.getvalue()


def _value(level: Level, ripple: float) -> float:
    return round(level.middle + level.reach * max(-1.0, min(1.0, ripple / 2.0)), 1)


def _check(regions: Sequence[str], segments: Sequence[Segment], period_s: float, start: datetime) -> None:
    if not regions or len(set(regions)) != len(regions) or any("," in region for region in regions):
        raise UsageError(
            "a trace needs at least one region, each named only once and without commas",
            "give for example --region NORTH --region SOUTH",
        )
    # not `<= 0`, so that NaN is rejected, too
    if not segments or period_s < 1 or not all(seconds > 0 for seconds, _ in segments):
        raise UsageError(
            "a trace needs segments longer than 0 s and a period of at least 1 s", "correct --segment or --period"
        )
    if sum(seconds for seconds, _ in segments) / period_s > MOST_READINGS:
        raise UsageError(
            f"the trace would have more than {MOST_READINGS:,} readings", "shorten it, or lengthen --period"
        )
    for _, curtailed in segments:
        if unknown := sorted(set(curtailed) - set(regions)):
            raise UsageError(f"a segment names the unknown region {unknown[0]!r}", f"use one of {', '.join(regions)}")
    if start.tzinfo is None:
        raise UsageError("the start of a trace has no time zone", "give it in UTC")


def write_course(
    out: Path, regions: Sequence[str], segments: Sequence[str], period_s: int, start: str, seed: int
) -> int:
    """Run `curtail trace synth`; returns the exit code.

    Args: segments: each `SECONDS:REGION+REGION`, or `SECONDS:` for no region.
    Raises: UsageError, DiskError.
    """
    try:
        moment = datetime.fromisoformat(start)
    except ValueError:
        raise UsageError(f"{start!r} is not a time", "write it as 2026-03-01T10:00:00Z") from None
    rows = course(regions, [_segment(text) for text in segments], period_s, moment, seed)
    SystemDisk().replace("TRACE", out, to_csv(regions, rows).encode())
    print(f"{len(rows)} readings of {len(regions)} regions in {out}, in g/kWh")
    return 0


def _segment(text: str) -> Segment:
    seconds, colon, names = text.partition(":")
    try:
        if not colon:
            raise ValueError("no colon")
        return float(seconds), tuple(name for name in names.split("+") if name)
    except ValueError:
        raise UsageError(
            f"{text!r} is not a segment", "write it as SECONDS:REGION+REGION, or SECONDS: for no region"
        ) from None
