"""Ledger figures of a report: measurement methods, states, changes of state, hash chain.

All figures come from the ledger's rows; nothing is estimated here. Units: kWh, kg,
seconds of the controller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controller.store import Transaction
from curtail.carbon import accounting, hash_chain
from curtail.carbon.accounting import Basis, Entry

TOUCHING_S = 1e-6
"""Largest gap in seconds between two adjacent rows of a site, from rounding."""


@dataclass(frozen=True, slots=True)
class StateFigures:
    """One site in one state."""

    site: str
    region: str
    state: str
    seconds: float
    kwh: float  # from the grid, with PUE
    kg: float  # of the energy drawn while the MCI was known
    in_window_kwh: float
    unknown_kwh: float


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """Energy measured or estimated by one method."""

    method: str
    kwh: float  # from the grid, with PUE
    machine_kwh: float  # without PUE, from all sources
    gpu_kwh: float | None  # the GPUs' part, where it is known
    host_kwh: float | None
    seconds: float  # of all sites
    coverage_pct: float  # share of that time covered by samples


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a site's state, with its reason and reading."""

    at: float
    site: str
    region: str
    before: str  # empty: the site's first row, or nothing was booked before
    after: str
    reason: str
    mci: float | None  # gCO2/kWh; None: unknown
    mci_raw: float | None  # as the source reported it
    source: str
    point_time: float | None
    threshold: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChainFigures:
    """Result of verifying the ledger's hash chain."""

    records: int
    head: str
    problem: str  # the first error; empty: the chain is valid

    @property
    def holds(self) -> bool:
        return not self.problem


def states(entries: Iterable[Entry]) -> tuple[StateFigures, ...]:
    """Figures per site and state, sites in the order of their first row."""
    groups: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries:
        groups.setdefault(entry.site, {}).setdefault(entry.phase, []).append(entry)
    order = {phase: number for number, phase in enumerate(accounting.PHASES)}
    return tuple(
        _state(rows) for phases in groups.values() for _, rows in sorted(phases.items(), key=lambda one: order[one[0]])
    )


def _state(rows: Sequence[Entry]) -> StateFigures:
    return StateFigures(
        site=rows[-1].site,
        region=rows[-1].region,
        state=rows[-1].phase,
        seconds=sum(row.t1 - row.t0 for row in rows),
        kwh=sum(row.kwh for row in rows),
        kg=sum(row.kg or 0.0 for row in rows),
        in_window_kwh=sum(row.kwh for row in rows if row.curtailed),
        unknown_kwh=sum(row.kwh for row in rows if row.kg is None),
    )


def methods(entries: Iterable[Entry]) -> tuple[MethodFigures, ...]:
    """Energy by method, the largest first."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.method, []).append(entry)
    return tuple(sorted((_method(rows) for rows in groups.values()), key=lambda one: -one.kwh))


def _method(rows: Sequence[Entry]) -> MethodFigures:
    details = [(row.t1 - row.t0, row.detail) for row in rows if row.detail is not None]
    gpu = [detail.gpu_kwh for _, detail in details if detail.gpu_kwh is not None]
    host = [detail.host_kwh for _, detail in details if detail.host_kwh is not None]
    seconds = sum(row.t1 - row.t0 for row in rows)
    covered = sum(lasted * detail.coverage for lasted, detail in details)
    return MethodFigures(
        method=rows[0].method,
        kwh=sum(row.kwh for row in rows),
        machine_kwh=sum(detail.machine_kwh for _, detail in details),
        gpu_kwh=sum(gpu) if gpu else None,
        host_kwh=sum(host) if host else None,
        seconds=seconds,
        coverage_pct=100.0 * covered / seconds if seconds > 0 else 0.0,
    )


def flagged(entries: Iterable[Entry]) -> dict[str, float]:
    """kWh of the rows by flag; a row with several flags counts for each of them."""
    sums: dict[str, float] = {}
    for entry in entries:
        for flag in () if entry.detail is None else entry.detail.basis.flags:
            sums[flag] = sums.get(flag, 0.0) + entry.kwh
    return dict(sorted(sums.items()))


def changes(entries: Iterable[Entry]) -> tuple[Change, ...]:
    """Every change of state in time order; reason and reading come from the first row of the new state."""
    found: list[Change] = []
    last: dict[str, Entry] = {}
    for entry in sorted(entries, key=lambda row: (row.t0, row.t1, row.site)):
        before = last.get(entry.site)
        last[entry.site] = entry
        touches = before is not None and entry.t0 - before.t1 <= TOUCHING_S
        if touches and before is not None and before.phase == entry.phase:
            continue
        basis = Basis() if entry.detail is None else entry.detail.basis
        found.append(
            Change(
                entry.t0, entry.site, entry.region, before.phase if before is not None and touches else "",
                entry.phase, basis.reason, entry.mci, basis.mci_raw, basis.source, basis.point_time, basis.threshold,
                basis.flags,
            )
        )  # fmt: skip
    return tuple(found)


def with_standing_pct(entries: Iterable[Entry]) -> float | None:
    """Percentage of all energy, including standing energy, drawn inside windows; None: no energy was drawn."""
    rows = list(entries)
    whole = sum(entry.kwh for entry in rows)
    return 100.0 * sum(entry.kwh for entry in rows if entry.curtailed) / whole if whole else None


def verified(tx: Transaction, run: str) -> ChainFigures:
    """Verify the chain of the store from its records."""
    found = hash_chain.follow(run, tx.links())
    if found.problem:
        return ChainFigures(found.records, found.head, found.problem)
    missing = tx.unchained()
    return ChainFigures(found.records, found.head, f"{missing} is not in the chain" if missing else "")
