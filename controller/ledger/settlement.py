"""Settlement: adds the source's later values for ledger rows as append-only revisions.

A row's settled MCI is the mean of the source's later values over the row's time. Each
value holds until the next, but for at most one period. A row waits while some of its
time has no value. A changed value adds another revision; an unchanged one adds
nothing. `mean`, `revisions` and `settled_entries` are pure; `settle` queries one
source and writes. Units: seconds of the controller's clock, gCO2/kWh, kg.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Protocol, TypeVar

from controller.signals.answer import SignalError
from controller.store import Transaction
from controller.store.rows import SettledRow
from curtail.carbon.accounting import LedgerEntry, carbon_kg

Result = TypeVar("Result")

MARGINAL, AVERAGE = "marginal", "average"


@dataclass(frozen=True, slots=True)
class History:
    """A source's present values for the past of one region."""

    points: Sequence[tuple[float, float]]  # (start of validity, gCO2/kWh), ascending
    period: float  # longest validity of a value, s
    source: str
    model: str = ""  # date of the source's model, or another remark on the values


class Call(Protocol):
    """Runs a function in one transaction of the store."""

    def __call__(self, use_case: Callable[[Transaction], Result], /) -> Result: ...


class Historian(Protocol):
    """A source of later values."""

    basis: str  # marginal, or average

    def history(self, region: str, start: float, stop: float) -> History | None:
        """The values for [start, stop); None if the region has no such source. Raises: SignalError."""
        ...


@dataclass(slots=True)
class Settlement:
    """The result of settling with one source."""

    basis: str
    rows: int = 0  # rows that were checked
    first: int = 0  # settled for the first time
    revised: int = 0
    waiting: int = 0  # rows with time for which the source has no value
    problems: list[str] = field(default_factory=list)


def mean(history: History, start: float, stop: float) -> float | None:
    """The mean over [start, stop); None if some of that time has no value."""
    points, total, at = history.points, 0.0, start
    index = bisect_right(points, start, key=lambda point: point[0]) - 1
    if index < 0:
        return None
    while at < stop:
        if index >= len(points):
            return None
        point, value = points[index]
        end = point + history.period
        if index + 1 < len(points):
            end = min(end, points[index + 1][0])
        if point > at or end <= at:
            return None
        total += value * (min(end, stop) - at)
        at, index = end, index + 1
    return total / (stop - start)


def revisions(
    rows: Sequence[tuple[int, LedgerEntry]], known: Mapping[int, SettledRow], history: History, basis: str, asked: float
) -> tuple[list[SettledRow], int]:
    """New revisions for rows of one region, and how many rows must wait."""
    new, waiting = [], 0
    for number, entry in rows:
        value = mean(history, entry.t0, entry.t1)
        if value is None:
            waiting += 1
            continue
        before = known.get(number)
        if before is not None and before.mci == value:
            continue
        kg = carbon_kg(entry.kwh, value) or 0.0
        revision = 1 if before is None else before.revision + 1
        new.append(SettledRow(number, basis, revision, value, kg, history.source, history.model, asked))
    return new, waiting


def settle(call: Call, historian: Historian, asked: float, since: float = -inf) -> Settlement:
    """Settle all rows that ended after `since` (by default all rows) with `historian`'s values.

    Args: asked: Unix time.
    """
    report = Settlement(historian.basis)
    rows: dict[str, list[tuple[int, LedgerEntry]]] = {}
    for number, entry in call(lambda tx: tx.numbered_entries(since)):
        rows.setdefault(entry.region, []).append((number, entry))
    for region, group in rows.items():
        start, stop = min(entry.t0 for _, entry in group), max(entry.t1 for _, entry in group)
        try:
            history = historian.history(region, start, stop)
        except SignalError as error:
            report.problems.append(f"{region}: {error}")
            continue
        if history is not None:
            _add(call, report, group, history, asked)
    return report


def _add(call: Call, report: Settlement, group: list[tuple[int, LedgerEntry]], history: History, asked: float) -> None:
    def write(tx: Transaction) -> None:
        # Compared inside the writing transaction, because a command and the controller may settle at the same time.
        known = tx.settled(report.basis, min(number for number, _ in group))
        new, waiting = revisions(group, known, history, report.basis, asked)
        for row in new:
            tx.add_settled(row)
        report.rows += len(group)
        report.waiting += waiting
        report.first += sum(row.revision == 1 for row in new)
        report.revised += sum(row.revision > 1 for row in new)

    call(write)


def settled_entries(rows: Sequence[tuple[int, LedgerEntry]], settled: Mapping[int, SettledRow]) -> list[LedgerEntry]:
    """The rows with their settled MCI in place of the MCI at the decision; rows without one are unchanged.

    A row then counts as inside a window if its settled MCI is below its threshold and no order was in force.
    """
    out = []
    for number, entry in rows:
        later = settled.get(number)
        if later is None:
            out.append(entry)
            continue
        basis = None if entry.detail is None else entry.detail.basis
        limit = None if basis is None else basis.threshold
        ordered = basis is not None and "override" in basis.flags
        inside = entry.curtailed if limit is None else later.mci < limit and not ordered
        out.append(replace(entry, mci=later.mci, kg=later.kg, curtailed=inside))
    return out
