"""Energy figures of a report: sums over ledger rows, cumulative curves, the always-on baseline.

The arithmetic is that of `curtail.carbon.accounting`. Units: kWh, kg, seconds of the
controller's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from controller.ledger.recorder import Booking
from controller.store import Transaction
from controller.store.rows import RunRow, SiteRow
from curtail.carbon import accounting
from curtail.carbon.accounting import Entry, Totals
from curtail.config import RunConfig
from curtail.plotting.svg import Point

CARBON_POINTS = 500
BASELINE_POINTS = 200
"""Numbers of points of the cumulative curves."""

Readings = dict[str, list[tuple[float, float | None]]]
"""Region -> (point time, gCO2/kWh or None), ascending."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over ledger rows."""

    attributed_kwh: float
    standing_kwh: float
    kg_attributed: float
    kg_standing: float
    kg_reserved: float  # attributed and standing
    curtailed_pct: float | None  # of the attributed energy; None: no energy was drawn
    unknown_kwh: float  # drawn while the MCI was unknown, so not in any kg
    train_s: float


def entries_of(tx: Transaction) -> list[Entry]:
    """All rows, and the open intervals up to their last confirmed time, as after a restart."""
    still = (accounting.close(interval, seen) for interval, seen in tx.open_intervals())
    return [*tx.entries(), *(entry for entry in still if entry is not None)]


def grouped(entries: Iterable[Entry], key: Callable[[Entry], str]) -> dict[str, Totals]:
    """The totals of the rows by key."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return {name: accounting.add(Totals(), group) for name, group in groups.items()}


def whole_kwh(totals: Totals) -> float:
    """Attributed plus standing energy."""
    return totals.attributed_kwh + totals.standing_kwh


def sums_of(totals: Totals) -> Sums:
    """The totals as `Sums`."""
    return Sums(
        attributed_kwh=totals.attributed_kwh,
        standing_kwh=totals.standing_kwh,
        kg_attributed=totals.kg_attributed,
        kg_standing=totals.kg_standing,
        kg_reserved=totals.kg_attributed + totals.kg_standing,
        curtailed_pct=totals.curtailed_pct if totals.attributed_kwh else None,
        unknown_kwh=totals.unknown_kwh,
        train_s=totals.train_seconds,
    )


def cumulative(entries: Sequence[Entry], start: float, end: float) -> tuple[list[Point], list[Point]]:
    """Cumulative attributed and reserved kg; rows are split over equal time spans in proportion."""
    if not entries or end <= start:
        return [], []
    width = (end - start) / CARBON_POINTS
    cells: list[list[Entry]] = [[] for _ in range(CARBON_POINTS)]
    for entry in entries:
        for number in range(_cell(entry.t0, start, width), _cell(entry.t1, start, width) + 1):
            first = entry.t0 if number == 0 else max(entry.t0, start + number * width)
            last = entry.t1 if number == CARBON_POINTS - 1 else min(entry.t1, start + (number + 1) * width)
            if last > first:
                cells[number].append(_share(entry, (last - first) / (entry.t1 - entry.t0)))
    totals = Totals()
    attributed: list[Point] = [(start, 0.0)]
    reserved: list[Point] = [(start, 0.0)]
    for number, cell in enumerate(cells, 1):
        totals = accounting.add(totals, cell)
        attributed.append((start + number * width, totals.kg_attributed))
        reserved.append((start + number * width, totals.kg_attributed + totals.kg_standing))
    return attributed, reserved


def _cell(at: float, start: float, width: float) -> int:
    return min(CARBON_POINTS - 1, max(0, int((at - start) / width)))


def _share(entry: Entry, part: float) -> Entry:
    return replace(entry, kwh=entry.kwh * part, kg=None if entry.kg is None else entry.kg * part)


def always_on(config: RunConfig, total: Totals, run: RunRow, sites: list[SiteRow], readings: Readings) -> float | None:
    if any(site.region not in config.regions for site in sites):
        return None
    return Booking(config).always_on_kg(total, run.started, {s.site: s.region for s in sites}, readings)


def baseline(
    config: RunConfig, total: Totals, run: RunRow, sites: list[SiteRow], readings: Readings, end: float
) -> list[Point]:
    """Cumulative kg of the always-on counterfactual, computed span by span with the same arithmetic."""
    if always_on(config, total, run, sites, readings) is None:
        return []
    known = {name: [(at, mci) for at, mci in rows if mci is not None] for name, rows in readings.items()}
    watts = {site.site: config.watts(site.region, "train") * config.regions[site.region].pue for site in sites}
    step = total.train_seconds / len(sites) / BASELINE_POINTS
    points: list[Point] = [(run.started, 0.0)]
    grown, first = 0.0, dict.fromkeys(known, 0)
    for number in range(BASELINE_POINTS):
        start, stop = run.started + number * step, run.started + (number + 1) * step
        cut: dict[str, list[tuple[float, float]]] = {}
        for name in {site.region for site in sites}:
            rows = known[name]
            while first[name] + 1 < len(rows) and rows[first[name] + 1][0] <= start:
                first[name] += 1
            last = first[name] + 1
            while last < len(rows) and rows[last][0] < stop:
                last += 1
            cut[name] = rows[first[name] : last]
        part = accounting.always_on_kg(
            (stop - start) * len(sites), start, [(watts[site.site], cut[site.region]) for site in sites]
        )
        grown += part or 0.0
        points.append((stop, grown))
    return points if points[-1][0] >= end else [*points, (end, grown)]
