"""`curtail ledger totals`: energy and carbon within three boundaries, and counterfactuals.

Reads one snapshot of the controller's store, even while the controller runs. The
arithmetic is in `curtail.carbon.accounting`, `curtail.carbon.boundaries` and
`curtail.carbon.counterfactual`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from controller.ledger.settlement import AVERAGE, MARGINAL, settled_entries
from controller.store import Transaction, reading
from curtail.carbon.accounting import Entry, Totals, add, close
from curtail.carbon.boundaries import Boundaries, Sensitivity, boundaries, per_tokens, sensitivity
from curtail.carbon.counterfactual import Counterfactuals, counterfactuals, trained, training_end
from curtail.config import config_from_json
from curtail.errors import NotFound
from curtail.system.home_files import STORE


@dataclass(frozen=True, slots=True)
class View:
    """Sums of a run's rows, with the MCI at the decision or with the settled MCI."""

    totals: Totals
    boundaries: Boundaries
    full_kg: float
    sci_kg_per_1e9_tokens: float | None  # of the full boundary
    attributed_kg_per_1e9_tokens: float | None


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """All totals of a run's ledger."""

    tokens: int  # merged
    records: int
    head: str
    at_decision: View
    settled: View  # rows that are not settled count as at the decision
    unsettled_kwh: float
    average_kg: float | None  # location-based, of the rows with a known average; None: there are none
    average_kwh: float  # of these rows
    sensitivity: Sensitivity
    counterfactuals: Counterfactuals


def collect(tx: Transaction) -> LedgerTotals:
    """The totals of the run in the store, including open intervals up to the last step.

    Raises: NotFound: the store holds no run.
    """
    run = tx.run()
    if run is None:
        raise NotFound("the store holds no run yet", "start its controller first")
    config = config_from_json(run.config)
    rows = [*tx.numbered_entries(), *_open(tx)]
    entries, settled = [entry for _, entry in rows], tx.settled(MARGINAL)
    readings = {region: tx.readings(region) for region in {entry.region for entry in entries}}
    seconds = max(0.0, max([run.clock, *(entry.t1 for entry in entries)]) - run.started)

    def view(of: list[Entry]) -> View:
        found = boundaries(of, seconds, config.accounting)
        return View(
            add(Totals(), of), found, found.full_kg, per_tokens(found.full_kg, run.tokens),
            per_tokens(found.attributed_kg, run.tokens),
        )  # fmt: skip

    at_decision = view(entries)
    average = tx.settled(AVERAGE)
    known = {region: [(at, mci) for at, mci in points if mci is not None] for region, points in readings.items()}
    records, head = tx.chain_head()
    return LedgerTotals(
        tokens=run.tokens, records=records, head=head, at_decision=at_decision,
        settled=view(settled_entries(rows, settled)),
        unsettled_kwh=sum(entry.kwh for number, entry in rows if number not in settled),
        average_kg=sum(row.kg for row in average.values()) if average else None,
        average_kwh=sum(entry.kwh for number, entry in rows if number in average),
        sensitivity=sensitivity(entries, readings),
        counterfactuals=counterfactuals(
            [site for site in trained(entries, config) if site.train_s > 0 or known.get(site.region)],
            known, run.started, training_end(entries, run.started),
            {region: config.threshold(region) for region in config.regions},
            at_decision.totals.kg_attributed,
        ),
    )  # fmt: skip


def _open(tx: Transaction) -> Iterator[tuple[int, Entry]]:
    """Open intervals up to their last confirmed time; they have no number yet."""
    for number, (interval, seen) in enumerate(tx.open_intervals(), start=1):
        entry = close(interval, seen)
        if entry is not None:
            yield -number, entry


def run_totals(home: Path, as_json: bool) -> int:
    """Print the totals of the run in the folder `home`; returns the exit code.

    Raises: NotFound, CurtailError.
    """
    with reading(home / STORE) as tx:
        found = collect(tx)
    print(json.dumps(asdict(found), allow_nan=False) if as_json else "\n".join(_lines(found)))
    return 0


def _lines(found: LedgerTotals) -> Iterator[str]:
    decided, settled = found.at_decision, found.settled
    yield f"{'':<38}{'kWh':>12}{'kgCO2':>12}{'settled kg':>12}"
    rows = (
        ("attributed, at the machines", "attributed"),
        ("reserved: plus standing energy", "reserved"),
        ("PUE overhead of the reserved", "pue"),
        ("network", "network"),
        ("controller", "controller"),
    )
    for name, field in rows:
        kwh, kg, later = (
            getattr(decided.boundaries, f"{field}_kwh"),
            getattr(decided.boundaries, f"{field}_kg"),
            getattr(settled.boundaries, f"{field}_kg"),
        )
        yield f"{name:<38}{kwh:>12.4f}{kg:>12.4f}{later:>12.4f}"
    b = decided.boundaries
    yield f"{'embodied carbon of the hardware':<38}{'':>12}{b.embodied_kg:>12.4f}{b.embodied_kg:>12.4f}"
    yield f"{'full':<38}{b.full_kwh:>12.4f}{decided.full_kg:>12.4f}{settled.full_kg:>12.4f}"
    yield f"{'MCI unknown, not in any kg':<38}{b.unknown_kwh:>12.4f}{'':>12}{'':>12}"
    yield f"{'not settled':<38}{found.unsettled_kwh:>12.4f}"
    yield (
        f"inside windows: {decided.totals.curtailed_pct:.2f} % of the attributed energy,"
        f" {settled.totals.curtailed_pct:.2f} % settled"
    )
    if decided.sci_kg_per_1e9_tokens is not None:
        yield f"SCI: {decided.sci_kg_per_1e9_tokens:.3f} kgCO2 per 1e9 tokens (full, {found.tokens} tokens)"
    if found.average_kg is not None:
        yield f"location-based (average): {found.average_kg:.4f} kgCO2e of {found.average_kwh:.4f} kWh"
    s = found.sensitivity
    yield (
        f"sensitivity, kg: booked {s.step_kg:.4f}, linear {s.linear_kg:.4f}, +20 % {s.plus_20_kg:.4f},"
        f" -20 % {s.minus_20_kg:.4f}, zeros at 50 g {s.zeros_at_50_kg:.4f}"
    )
    yield from _otherwise(found.counterfactuals)
    yield f"ledger: {found.records} records, head {found.head}"


def _otherwise(found: Counterfactuals) -> Iterator[str]:
    for one in found.alone:
        held = "" if one.known_share >= 1 else f", readings for {one.known_share:.0%} of it"
        yield f"{one.site} alone: {one.kg:.4f} kgCO2 in {one.hours:.2f} h{held}"
    if found.unconstrained_kg is not None:
        yield f"all sites at once: {found.unconstrained_kg:.4f} kgCO2 in {found.unconstrained_h or 0.0:.2f} h"
    if found.oracle_kg is not None:
        share = "" if found.efficiency_pct is None else f", {found.efficiency_pct:.0f} % of the run's emissions"
        yield f"lower bound in the same time: {found.oracle_kg:.4f} kgCO2{share}"
