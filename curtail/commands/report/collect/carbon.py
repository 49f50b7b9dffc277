"""Carbon figures of a report: boundaries, settlements, counterfactuals, sensitivities.

The arithmetic is that of `curtail ledger totals` and `controller.ledger.settlement`. Units: kWh, kg.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from controller.ledger.settlement import AVERAGE, MARGINAL, settled_entries
from controller.store import Transaction
from controller.store.rows import SettledRow
from curtail.carbon import accounting
from curtail.carbon.accounting import Entry, Totals
from curtail.carbon.boundaries import Boundaries, Sensitivity, per_tokens
from curtail.carbon.counterfactual import Counterfactuals
from curtail.commands.ledger.totals import collect


@dataclass(frozen=True, slots=True)
class SettledFigures:
    """The settled rows of one basis. Decided: the same rows with the MCI known then; without kg if it was unknown."""

    basis: str  # marginal; average: location-based, never added to a marginal figure
    rows: int
    revised: int  # settled more than once
    sources: tuple[str, ...]
    models: tuple[str, ...]
    kwh: float  # of the settled rows
    left_kwh: float  # of the rows that are not settled yet
    was_unknown_kwh: float  # of the settled rows: drawn while the MCI was unknown
    kg_attributed_decided: float
    kg_attributed: float
    kg_reserved_decided: float  # attributed and standing
    kg_reserved: float
    curtailed_pct: float | None  # of the attributed energy, with the settled MCI; None: an average, or no energy


def settled_figures(
    rows: Sequence[tuple[int, Entry]], settled: Mapping[int, SettledRow], basis: str
) -> SettledFigures | None:
    """The figures of one basis; None if nothing is settled.

    Args: rows: of the ledger, by id. settled: the newest revision of each row that has one.
    """
    known = [(number, entry) for number, entry in rows if number in settled]
    if not known:
        return None
    then = accounting.add(Totals(), (entry for _, entry in known))
    later = accounting.add(Totals(), settled_entries(known, settled))
    newest = [settled[number] for number, _ in known]
    kwh = then.attributed_kwh + then.standing_kwh
    return SettledFigures(
        basis=basis,
        rows=len(known),
        revised=sum(row.revision > 1 for row in newest),
        sources=tuple(sorted({row.source for row in newest})),
        models=tuple(sorted({row.model for row in newest if row.model})),
        kwh=kwh,
        left_kwh=sum(entry.kwh for number, entry in rows if number not in settled),
        was_unknown_kwh=then.unknown_kwh,
        kg_attributed_decided=then.kg_attributed,
        kg_attributed=later.kg_attributed,
        kg_reserved_decided=then.kg_attributed + then.kg_standing,
        kg_reserved=later.kg_attributed + later.kg_standing,
        curtailed_pct=later.curtailed_pct if basis == MARGINAL and later.attributed_kwh else None,
    )


@dataclass(frozen=True, slots=True)
class CarbonFigures:
    """All carbon figures of one run; the boundaries are attributed, reserved and full."""

    boundaries: Boundaries
    full_kwh: float
    full_kg: float
    settled_kg: dict[str, float]  # by boundary; rows that are not settled count as decided
    kg_per_1e9_tokens: dict[str, float | None]  # by boundary; the SCI for the full boundary
    unsettled_kwh: float
    settled: tuple[SettledFigures, ...]
    sensitivity: Sensitivity
    counterfactuals: Counterfactuals


def carbon_figures(tx: Transaction) -> CarbonFigures:
    """The carbon figures of the run in the store, including those of `curtail ledger totals`."""
    found, rows = collect(tx), tx.numbered_entries()
    decided = found.at_decision.boundaries
    settled = (settled_figures(rows, tx.settled(basis), basis) for basis in (MARGINAL, AVERAGE))
    return CarbonFigures(
        boundaries=decided,
        full_kwh=decided.full_kwh,
        full_kg=decided.full_kg,
        settled_kg=_by_boundary(found.settled.boundaries),
        kg_per_1e9_tokens={name: per_tokens(kg, found.tokens) for name, kg in _by_boundary(decided).items()},
        unsettled_kwh=found.unsettled_kwh,
        settled=tuple(one for one in settled if one is not None),
        sensitivity=found.sensitivity,
        counterfactuals=found.counterfactuals,
    )


def _by_boundary(found: Boundaries) -> dict[str, float]:
    return {"attributed": found.attributed_kg, "reserved": found.reserved_kg, "full": found.full_kg}
