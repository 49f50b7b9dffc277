"""Energy and carbon ledger: one row per site and phase with the energy drawn and the CO2 emitted.

Pure functions: an open interval grows until phase, reading, PUE, method or flags
change, and then becomes one append-only row. Power may change in between; the
interval keeps the sum. The MCI of a row is the step-held reading at that time (no
interpolation). Attributed energy is caused by the job (start, train, sync, hold,
drain). Standing energy is drawn while a site is paused, or switched off by
`on_pause` (off); it is always counted, but separately. Units: W, J, kWh, gCO2/kWh,
kg, seconds of the controller's clock. Carbon figures are consequential (marginal),
not Scope 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from curtail.grid.reading import JOULES_PER_KWH

ATTRIBUTED = ("start", "train", "sync", "hold", "drain")
RUNNING = ("start", "train", "sync", "hold")
"""Phases in which a site has its weights on its GPUs, or is loading them."""

STANDING = ("paused", "off")
PHASES = ATTRIBUTED + STANDING


@dataclass(frozen=True, slots=True)
class Basis:
    """Evidence for the MCI of a row, as known when the row was written."""

    mci_raw: float | None = None  # as the source reported it: may be negative; kept even if it was rejected
    source: str = ""
    point_time: float | None = None  # the time the reading is for
    threshold: float | None = None  # gCO2/kWh; decides whether the row is inside a window
    flags: tuple[str, ...] = ()  # sorted: override, suspect zero, flapping, not curtailed, estimated, stale
    reason: str = field(default="", compare=False)  # of the decision in force when the row began


@dataclass(frozen=True, slots=True)
class Draw:
    """Breakdown of the present power draw."""

    gpu_w: float | None = None  # the GPUs' part of the power; None: unknown
    host_w: float | None = None
    sampled: float = 0.0  # share of the machines whose power is measured, 0 to 1


@dataclass(frozen=True, slots=True)
class Grown:
    """Sums of an open interval up to `until`."""

    until: float
    joules: float = 0.0  # at the machines
    grid_joules: float = 0.0  # from the grid, with PUE
    gpu_joules: float = 0.0
    host_joules: float = 0.0
    sampled_s: float = 0.0  # seconds covered by samples
    tokens: int = 0
    steps: int = 0
    network_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Interval:
    """An open interval, in which phase, reading, PUE, method and flags stay the same."""

    site: str
    region: str
    phase: str
    t0: float
    watts: float  # at the machines now, without PUE
    method: str  # nvml-total-energy, nvml-power-integrated, rapl, meter, constant; several with +
    pue: float
    grid_share: float  # share of the power that comes from the grid now, from Vessim; 1: all
    mci: float | None  # None: unknown
    curtailed: bool  # the MCI is known and below the region's threshold
    basis: Basis | None = None
    draw: Draw | None = None
    grown: Grown | None = None  # sums so far; None: constant power since `t0`


@dataclass(frozen=True, slots=True)
class Detail:
    """The columns of a row that the energy and carbon sums do not need."""

    machine_kwh: float  # without PUE, from all sources
    gpu_kwh: float | None  # the GPUs' part of it; None: unknown
    host_kwh: float | None
    coverage: float  # share of the time covered by samples, 0 to 1
    tokens: int = 0  # trained in this time, including contributions that were rejected later
    steps: int = 0
    network_bytes: int = 0
    basis: Basis = Basis()


@dataclass(frozen=True, slots=True)
class Entry:
    """One closed row of the ledger."""

    site: str
    region: str
    phase: str
    t0: float
    t1: float
    watts: float  # mean
    method: str
    pue: float
    grid_share: float  # mean
    kwh: float  # from the grid, with PUE
    mci: float | None
    kg: float | None  # None: the MCI was unknown
    curtailed: bool
    detail: Detail | None = None  # None: planned, not metered


def close(interval: Interval, t1: float) -> Entry | None:
    """The row for `interval` up to `t1`; None if no time has passed."""
    seconds = t1 - interval.t0
    if seconds <= 0:
        return None
    if interval.grown is not None or interval.draw is not None:
        return _close_grown(interval, t1, seconds)
    kwh = interval.watts * interval.pue * interval.grid_share * seconds / JOULES_PER_KWH
    detail = None
    if interval.basis is not None:
        detail = Detail(interval.watts * seconds / JOULES_PER_KWH, None, None, 0.0, basis=interval.basis)
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
        carbon_kg(kwh, interval.mci),
        interval.curtailed,
        detail,
    )


def carbon_kg(kwh: float, mci: float | None) -> float | None:
    """kgCO2 of `kwh`; a negative intensity counts as 0, an unknown one gives None."""
    return None if mci is None else kwh * (mci if mci > 0.0 else 0.0) / 1000.0


def _close_grown(interval: Interval, t1: float, seconds: float) -> Entry:
    sums, draw, basis = grow(interval, t1), interval.draw or Draw(), interval.basis or Basis()
    joules, grid = max(0.0, sums.joules), max(0.0, sums.grid_joules)
    kwh = grid / JOULES_PER_KWH
    gpu = None if draw.gpu_w is None else max(0.0, sums.gpu_joules) / JOULES_PER_KWH
    host = None if draw.host_w is None else max(0.0, sums.host_joules) / JOULES_PER_KWH
    coverage = min(1.0, max(0.0, sums.sampled_s / seconds))
    detail = Detail(
        joules / JOULES_PER_KWH, gpu, host, coverage, sums.tokens, sums.steps, sums.network_bytes, basis
    )  # fmt: skip
    share = grid / (joules * interval.pue) if joules > 0 else interval.grid_share
    return Entry(
        interval.site, interval.region, interval.phase, interval.t0, t1, joules / seconds, interval.method,
        interval.pue, share, kwh, interval.mci, carbon_kg(kwh, interval.mci), interval.curtailed, detail,
    )  # fmt: skip


def grow(interval: Interval, now: float) -> Grown:
    """The sums of `interval` up to `now`, at its present power."""
    sums, draw = interval.grown or Grown(interval.t0), interval.draw or Draw()
    seconds = max(0.0, now - sums.until)
    return replace(
        sums,
        until=max(now, sums.until),
        joules=sums.joules + interval.watts * seconds,
        grid_joules=sums.grid_joules + interval.watts * interval.pue * interval.grid_share * seconds,
        gpu_joules=sums.gpu_joules + (draw.gpu_w or 0.0) * seconds,
        host_joules=sums.host_joules + (draw.host_w or 0.0) * seconds,
        sampled_s=sums.sampled_s + draw.sampled * seconds,
    )


def change(interval: Interval, now: float, following: Interval) -> tuple[Entry | None, Interval]:
    """Close `interval` if `following` needs a new row; otherwise continue it at the power of `following`."""
    if not _same_row(interval, following):
        left = _left_over(interval, now)
        return close(interval, now), replace(following, t0=max(now, interval.t0), grown=left)
    if (interval.watts, interval.grid_share, interval.draw) == (following.watts, following.grid_share, following.draw):
        return None, interval
    grown = grow(interval, now)
    return None, replace(
        interval, watts=following.watts, grid_share=following.grid_share, draw=following.draw, grown=grown
    )


def _same_row(one: Interval, other: Interval) -> bool:
    return (
        one.phase == other.phase
        and one.mci == other.mci
        and one.basis == other.basis
        and (one.site, one.region, one.method, one.pue, one.curtailed)
        == (other.site, other.region, other.method, other.pue, other.curtailed)
    )


def _left_over(interval: Interval, now: float) -> Grown | None:
    """Sums carried over to the next row: everything if the row is empty, otherwise negative corrections only."""
    if interval.grown is None:
        return None
    sums = grow(interval, now)
    if now <= interval.t0:
        return replace(sums, until=max(now, interval.t0))
    debt = Grown(
        now, min(0.0, sums.joules), min(0.0, sums.grid_joules), min(0.0, sums.gpu_joules), min(0.0, sums.host_joules)
    )
    return debt if debt != Grown(now) else None


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
    own_kwh: float = 0.0  # from the regions' own solar panels and batteries; in no other sum, and without carbon

    @property
    def curtailed_pct(self) -> float:
        """Share of the attributed energy drawn while curtailed, 0 to 100; 100 when nothing was drawn."""
        return 100.0 if self.attributed_kwh == 0 else 100.0 * self.curtailed_kwh / self.attributed_kwh


def add(totals: Totals, entries: Iterable[Entry]) -> Totals:
    """`totals` plus `entries`."""
    attributed, standing = totals.attributed_kwh, totals.standing_kwh
    kg_attributed, kg_standing = totals.kg_attributed, totals.kg_standing
    curtailed, unknown, seconds = totals.curtailed_kwh, totals.unknown_kwh, totals.train_seconds
    own = totals.own_kwh
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
        if entry.grid_share < 1.0:
            own += own_kwh(entry)
        if entry.phase == "train":
            seconds += entry.t1 - entry.t0
    return Totals(attributed, standing, kg_attributed, kg_standing, curtailed, unknown, seconds, own)


def own_kwh(entry: Entry) -> float:
    """Energy of a row from the region's own solar panels and battery; not part of its `kwh`."""
    return max(0.0, entry.watts * entry.pue * (entry.t1 - entry.t0) / JOULES_PER_KWH - entry.kwh)


def always_on_kg(
    train_seconds: float, started: float, sites: Sequence[tuple[float, Sequence[tuple[float, float]]]]
) -> float | None:
    """kgCO2 of the always-on counterfactual: the same training without waiting for clean power.

    Every site starts at `started` and trains without a pause until its equal share of
    `train_seconds` is done, regardless of its grid's MCI.

    Args:
        sites: per site the power in W with PUE, and the region's known readings as
            (point time, gCO2/kWh), ascending; each holds until the next.
    Returns: None if nothing was trained or a site has no reading.
    """
    if train_seconds <= 0 or not sites or any(not readings for _, readings in sites):
        return None
    stop = started + train_seconds / len(sites)
    total = 0.0
    held: dict[int, float] = {}
    for watts, readings in sites:
        key = id(readings)  # sites of one region share one list, which is often long
        if key not in held:
            held[key] = _held(readings, started, stop)
        total += watts * held[key] / JOULES_PER_KWH / 1000.0
    return total


def _held(readings: Sequence[tuple[float, float]], started: float, stop: float) -> float:
    """The integral of the readings over [started, stop), gCO2/kWh x s."""
    total = 0.0
    for index, (point, mci) in enumerate(readings):
        begin = started if index == 0 else max(started, point)
        if begin >= stop:
            break
        end = stop if index + 1 == len(readings) else min(stop, readings[index + 1][0])
        if end > begin:
            total += (end - begin) * mci
    return total
