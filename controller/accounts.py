"""The energy and carbon ledger: what one site drew in one phase, and what it emitted.

Pure bookkeeping: an open interval is closed at every change of phase, power or
reading, and becomes one append-only row. The MCI of a row is the step-held
reading at that time (no interpolation). Attributed energy is what the job
causes (start, train, sync, hold, drain); standing energy is drawn while paused and
counted apart, never left out. Units: W, kWh, gCO2/kWh, kg, seconds of the
controller's clock. Carbon figures are consequential (marginal), not Scope 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

ATTRIBUTED = ("start", "train", "sync", "hold", "drain")
STANDING = ("paused",)
PHASES = ATTRIBUTED + STANDING

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of time in which nothing about a site's draw changed; still growing."""

    site: str
    region: str
    phase: str
    t0: float
    watts: float  # at the machine, without PUE
    method: str  # measured or modelled
    pue: float
    grid_share: float  # part of the draw that comes from the grid, by Vessim; 1: all
    mci: float | None  # None: unknown
    curtailed: bool  # the MCI is known and below the region's threshold


@dataclass(frozen=True, slots=True)
class Entry:
    """One closed row of the ledger."""

    site: str
    region: str
    phase: str
    t0: float
    t1: float
    watts: float
    method: str
    pue: float
    grid_share: float
    kwh: float  # from the grid, with PUE
    mci: float | None
    kg: float | None  # None: the MCI was unknown
    curtailed: bool


def close(interval: Interval, t1: float) -> Entry | None:
    """The row for `interval` up to `t1`; None if no time has passed."""
    seconds = t1 - interval.t0
    if seconds <= 0:
        return None
    kwh = interval.watts * interval.pue * interval.grid_share * seconds / JOULES_PER_KWH
    kg = None if interval.mci is None else kwh * interval.mci / 1000.0
    return Entry(
        interval.site,
        interval.region,
        interval.phase,
        interval.t0,
        t1,
        interval.watts,
        interval.method,
        interval.pue,
        interval.grid_share,
        kwh,
        interval.mci,
        kg,
        interval.curtailed,
    )


def change(interval: Interval, now: float, following: Interval) -> tuple[Entry | None, Interval]:
    """Close `interval` if `following` differs in anything but its start; else let it grow."""
    if replace(following, t0=interval.t0) == interval:
        return None, interval
    return close(interval, now), replace(following, t0=max(now, interval.t0))


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over ledger rows."""

    attributed_kwh: float = 0.0
    standing_kwh: float = 0.0
    kg_attributed: float = 0.0
    kg_standing: float = 0.0
    curtailed_kwh: float = 0.0  # attributed, inside curtailment windows
    unknown_kwh: float = 0.0
    train_seconds: float = 0.0

    @property
    def curtailed_pct(self) -> float:
        """Share of the attributed energy drawn while curtailed, 0 to 100; 100 when nothing was drawn."""
        return 100.0 if self.attributed_kwh == 0 else 100.0 * self.curtailed_kwh / self.attributed_kwh


def add(totals: Totals, entries: Iterable[Entry]) -> Totals:
    """`totals` with `entries` counted in."""
    attributed, standing = totals.attributed_kwh, totals.standing_kwh
    kg_attributed, kg_standing = totals.kg_attributed, totals.kg_standing
    curtailed, unknown, seconds = totals.curtailed_kwh, totals.unknown_kwh, totals.train_seconds
    for entry in entries:
        kg = entry.kg or 0.0
        if entry.phase in ATTRIBUTED:
            attributed += entry.kwh
            kg_attributed += kg
            if entry.curtailed:
                curtailed += entry.kwh
        else:
            standing += entry.kwh
            kg_standing += kg
        if entry.kg is None:
            unknown += entry.kwh
        if entry.phase == "train":
            seconds += entry.t1 - entry.t0
    return Totals(attributed, standing, kg_attributed, kg_standing, curtailed, unknown, seconds)


def always_on_kg(
    train_seconds: float, started: float, sites: Sequence[tuple[float, Sequence[tuple[float, float]]]]
) -> float | None:
    """kgCO2 of the same training done without waiting: the counterfactual.

    Every site starts at `started`, trains at once and without pause until its
    equal share of `train_seconds` is done, whatever its grid emits.

    Args:
        sites: per site the power in W with PUE, and the region's readings as
            (point time, gCO2/kWh), ascending, known ones only; each holds until the next.
    Returns: None if nothing was trained or a site has no reading.
    """
    if train_seconds <= 0 or not sites or any(not readings for _, readings in sites):
        return None
    stop = started + train_seconds / len(sites)
    total = 0.0
    for watts, readings in sites:
        for index, (point, mci) in enumerate(readings):
            begin = started if index == 0 else max(started, point)
            end = stop if index + 1 == len(readings) else min(stop, readings[index + 1][0])
            if end > begin:
                total += watts * (end - begin) / JOULES_PER_KWH * mci / 1000.0
    return total
