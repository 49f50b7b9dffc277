"""What `curtail report` says of the ledger itself: methods, states, changes of state with their readings, the chain.

All of it is read from the ledger's rows; nothing is estimated here. Energy kWh,
carbon kg, seconds of the controller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controller.store import Transaction
from curtail.carbon import accounting, hash_chain
from curtail.carbon.accounting import Basis, Entry

TOUCHING_S = 1e-6
"""Rows of a site that touch, but for rounding."""


@dataclass(frozen=True, slots=True)
class StateFigures:
    """One site in one state."""

    site: str
    region: str
    state: str
    seconds: float
    kwh: float  # from the grid, with PUE
    kg: float  # of what was drawn while the MCI was known
    in_window_kwh: float
    unknown_kwh: float


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """Energy that was found out in one way."""

    method: str
    kwh: float  # from the grid, with PUE
    machine_kwh: float  # without PUE, wherever it came from
    gpu_kwh: float | None  # of it, where it is known apart
    host_kwh: float | None
    seconds: float  # of all sites
    coverage_pct: float  # part of that time for which there are samples


@dataclass(frozen=True, slots=True)
class Change:
    """A site went from one state to another: why, and by which reading."""

    at: float
    site: str
    region: str
    before: str  # empty: the site's first row, or nothing is booked of the time before
    after: str
    reason: str
    mci: float | None  # gCO2/kWh; None: unknown
    mci_raw: float | None  # as the source said it
    source: str
    point_time: float | None
    threshold: float | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChainFigures:
    """The hash chain of the ledger, computed anew."""

    records: int
    head: str
    problem: str  # the first thing that is wrong; empty: the chain holds

    @property
    def holds(self) -> bool:
        return not self.problem


def states(entries: Iterable[Entry]) -> tuple[StateFigures, ...]:
    """Every site in every state it was in, sites in the order of their first row."""
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
    """Where the energy comes from, the most first."""
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
    """kWh of the rows that have each flag; a row with several is in each of them."""
    sums: dict[str, float] = {}
    for entry in entries:
        for flag in () if entry.detail is None else entry.detail.basis.flags:
            sums[flag] = sums.get(flag, 0.0) + entry.kwh
    return dict(sorted(sums.items()))


def changes(entries: Iterable[Entry]) -> tuple[Change, ...]:
    """Every change of state, in the order of time: the first row of the new state tells why, and by which reading."""
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
    """Share of all energy, standing by included, that was drawn inside windows; None: none was drawn."""
    rows = list(entries)
    whole = sum(entry.kwh for entry in rows)
    return 100.0 * sum(entry.kwh for entry in rows if entry.curtailed) / whole if whole else None


def verified(tx: Transaction, run: str) -> ChainFigures:
    """The chain of the store, computed anew from its records."""
    found = hash_chain.follow(run, tx.links())
    if found.problem:
        return ChainFigures(found.records, found.head, found.problem)
    missing = tx.unchained()
    return ChainFigures(found.records, found.head, f"{missing} is not in the chain" if missing else "")
