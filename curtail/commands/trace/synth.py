"""An invented MCI trace: which regions are curtailed when, as a course that the caller gives.

Decides the numbers only: a curtailed region lies near 50 g/kWh, any other near
500, with a small seeded ripple that stays on its side of every sensible
threshold. It claims nothing about real grids; it exists for the demo and for
tests. Units: gCO2/kWh, seconds, UTC. The file is the wide form that
`curtail controller start --trace` reads.
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
"""How many seconds, and the regions that are curtailed meanwhile."""


@dataclass(frozen=True, slots=True)
class Level:
    """Where the MCI of a region lies, and how far the ripple may carry it. gCO2/kWh."""

    middle: float
    reach: float


CURTAILED = Level(50.0, 30.0)  # 20 to 80
ORDINARY = Level(500.0, 150.0)  # 350 to 650: a gas or coal plant is at the margin

MOST_READINGS = 2_000_000
"""Nineteen years of five minutes; more is a slip of the pen, and would fill the memory."""

RIPPLE_MEMORY = 0.7
"""Share of the ripple that carries over to the next reading, so that a course looks like one."""


@dataclass(frozen=True, slots=True)
class Row:
    """The readings of all regions at one moment."""

    at: datetime  # UTC
    mci: tuple[float, ...]  # gCO2/kWh, in the order of the regions


def course(
    regions: Sequence[str], segments: Iterable[Segment], period_s: float, start: datetime, seed: int = 1
) -> list[Row]:
    """Readings every `period_s` seconds from `start` while the segments last.

    A segment begins with the first reading at or after the end of the segment
    before it. Equal arguments give equal rows on every machine.
    Raises: UsageError: no region, one named twice, a segment that names a
        stranger or does not last, or a start without a time zone.
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
            # an autoregressive ripple of unit variance, cut at two deviations
            fresh = math.sqrt(1.0 - RIPPLE_MEMORY**2)
            ripple = [RIPPLE_MEMORY * value + fresh * rng.gauss(0.0, 1.0) for value in ripple]
            levels = [CURTAILED if region in curtailed else ORDINARY for region in regions]
            values = tuple(_value(level, value) for level, value in zip(levels, ripple, strict=True))
            rows.append(Row(start + timedelta(seconds=len(rows) * period_s), values))
    return rows


def to_csv(regions: Sequence[str], rows: Iterable[Row]) -> str:
    """The rows in the wide form: `point_time,REGION,...`, ISO 8601 in UTC, g/kWh with one decimal."""
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
        raise UsageError("a trace needs regions, each named once and without commas", "give for example NORTH SOUTH")
    # not `<= 0`: nan is refused, too
    if not segments or period_s < 1 or not all(seconds > 0 for seconds, _ in segments):
        raise UsageError("a trace needs segments and a period that last", "give seconds above 0, the period at least 1")
    if sum(seconds for seconds, _ in segments) / period_s > MOST_READINGS:
        raise UsageError(
            f"the trace would have more than {MOST_READINGS:,} readings", "shorten it, or lengthen --period"
        )
    for _, curtailed in segments:
        if strangers := sorted(set(curtailed) - set(regions)):
            raise UsageError(f"a segment names the unknown region {strangers[0]!r}", f"known are {', '.join(regions)}")
    if start.tzinfo is None:
        raise UsageError("the start of a trace has no time zone", "give it in UTC")


def write_course(
    out: Path, regions: Sequence[str], segments: Sequence[str], period_s: int, start: str, seed: int
) -> int:
    """Carry out `curtail trace synth`; returns the exit code.

    Args: segments: each `SECONDS:REGION+REGION`, or `SECONDS:` for no region at all.
    Raises: UsageError, DiskError.
    """
    try:
        moment = datetime.fromisoformat(start)
    except ValueError:
        raise UsageError(f"{start!r} is no moment", "write it as 2026-03-01T10:00:00Z") from None
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
        raise UsageError(f"{text!r} is no segment", "write it as SECONDS:REGION+REGION, or SECONDS: for none") from None
