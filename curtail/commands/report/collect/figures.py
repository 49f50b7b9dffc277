"""All figures of a report, from one snapshot of a controller's store.

Sums over ledger rows use `curtail.carbon.accounting`, as the controller's status
does. Times are in seconds of the controller's clock (Unix time of the signal), energy
in kWh, carbon in kg. Curves are thinned to what a picture can show, and keep their
extremes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.aggregation.loss import span_tokens
from controller.store import Transaction
from controller.store.rows import RunRow, SiteRow
from curtail.carbon import accounting
from curtail.carbon.accounting import Entry, Totals
from curtail.commands.report.collect import ledger
from curtail.commands.report.collect.carbon import CarbonFigures, carbon_figures
from curtail.commands.report.collect.energy import (
    Sums,
    always_on,
    baseline,
    cumulative,
    entries_of,
    grouped,
    sums_of,
    whole_kwh,
)
from curtail.commands.report.collect.ledger import ChainFigures, Change, MethodFigures, StateFigures
from curtail.commands.report.collect.rounds import RoundFigures, VersionFigures, regimes, round_figures, version_figures
from curtail.config import RunConfig, config_from_json
from curtail.errors import CurtailError, NotFound
from curtail.plotting.svg import MOST_POINTS, Point, Span, joined, thin
from curtail.policy.rules import Regime

DECIDING = ("policy", "regime", "signal", "order", "power", "controller", "run")
_EVERY = 1 << 40
"""Limit for reading the whole log: more lines than any log has."""


@dataclass(frozen=True, slots=True)
class RegionFigures:
    """One region: its signal, and its sites' energy and carbon."""

    region: str
    threshold: float | None  # gCO2/kWh; None: the region is no longer in the run file
    readings: int
    unknown_readings: int
    lowest: float | None
    highest: float | None
    curtailed_s: float
    curve: tuple[Point, ...]  # MCI, held until the next point
    thinned: bool  # the points of the curve are ends and extremes of time spans, and do not hold until the next
    windows: tuple[Span, ...]
    sums: Sums
    curtailed_pct_with_standing: float | None


@dataclass(frozen=True, slots=True)
class SiteFigures:
    """One site."""

    site: str
    region: str
    tokens: int
    training: tuple[Span, ...]
    kwh_by_phase: dict[str, float]
    sums: Sums
    curtailed_pct_with_standing: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of the report."""

    name: str
    run: str
    state: str
    started: float
    now: float  # the last step of the controller
    tokens: int
    token_budget: int
    version: int
    rounds_merged: int
    regime_seconds: dict[str, float]
    sums: Sums
    methods: tuple[MethodFigures, ...]
    states: tuple[StateFigures, ...]
    flagged_kwh: dict[str, float]
    curtailed_pct_with_standing: float | None
    kg_always_on: float | None
    carbon: CarbonFigures
    rows: int
    regions: tuple[RegionFigures, ...]
    sites: tuple[SiteFigures, ...]
    regimes: tuple[tuple[float, float, str], ...]
    kg_attributed: tuple[Point, ...]  # cumulative
    kg_reserved: tuple[Point, ...]
    kg_baseline: tuple[Point, ...]
    rounds: tuple[RoundFigures, ...]
    versions: tuple[VersionFigures, ...]
    decisions: tuple[tuple[float, str, str], ...]  # all that are still in the log
    changes: tuple[Change, ...]  # all changes of state
    chain: ChainFigures


def collect(tx: Transaction) -> Figures:
    """The figures of the run in the store.

    Raises: NotFound: the store holds no run. CurtailError: the row of the run is damaged.
    """
    run, config = _run(tx)
    entries = entries_of(tx)
    names = list(dict.fromkeys([*config.regions, *(e.region for e in entries)]))
    readings = {region: tx.readings(region) for region in names}
    sites, events = tx.sites(), tx.last_events(_EVERY)
    rounds = [row for number in range(1, tx.next_round()) if (row := tx.round(number)) is not None]
    members = {row.round: tx.members(row.round) for row in rounds}
    total, end = accounting.add(Totals(), entries), max([run.clock, *(e.t1 for e in entries)])
    attributed, reserved = cumulative(entries, run.started, end)
    span = span_tokens(config.training.batch_samples, run.sequence_len)
    return Figures(
        name=config.run.name, run=run.id, state=run.state, started=run.started, now=end, tokens=run.tokens,
        token_budget=run.sample_limit * run.sequence_len, version=tx.latest_version().version,
        rounds_merged=tx.merged_rounds(),
        regime_seconds={**{regime.value: 0.0 for regime in Regime}, **run.regime_seconds},
        sums=sums_of(total),
        methods=ledger.methods(entries), states=ledger.states(entries), flagged_kwh=ledger.flagged(entries),
        curtailed_pct_with_standing=ledger.with_standing_pct(entries),
        kg_always_on=always_on(config, total, run, sites, readings), rows=len(entries),
        carbon=carbon_figures(tx),
        regions=tuple(
            _region(config, name, readings[name], [e for e in entries if e.region == name], run.started, end)
            for name in names
        ),
        sites=_sites(sites, entries, run.started, end),
        regimes=tuple(regimes(events, run.started, end)),
        kg_attributed=tuple(attributed), kg_reserved=tuple(reserved),
        kg_baseline=tuple(baseline(config, total, run, sites, readings, end)),
        rounds=tuple(round_figures(tx, row, members[row.round]) for row in rounds),
        versions=tuple(version_figures([m for part in members.values() for m in part], events, span)),
        decisions=tuple((e.at, e.kind, e.text) for e in events if e.kind in DECIDING),
        changes=ledger.changes(entries), chain=ledger.verified(tx, run.id),
    )  # fmt: skip


def _run(tx: Transaction) -> tuple[RunRow, RunConfig]:
    try:
        run = tx.run()
        if run is None:
            raise NotFound("the store holds no run yet", "start its controller first")
        return run, config_from_json(run.config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CurtailError(
            f"the configuration of the run in the store is damaged: {error}", "restore the store from a backup"
        ) from error


# -- regions and sites -------------------------------------------------------


def _region(
    config: RunConfig,
    name: str,
    readings: Sequence[tuple[float, float | None]],
    rows: Sequence[Entry],
    start: float,
    end: float,
) -> RegionFigures:
    threshold = config.threshold(name) if name in config.regions else None
    course = held(readings, config.policy.max_reading_age, start, end)
    windows = [] if threshold is None else below(course, threshold, end)
    values = [mci for _, mci in readings if mci is not None]
    return RegionFigures(
        region=name, threshold=threshold, readings=len(readings), unknown_readings=len(readings) - len(values),
        lowest=min(values, default=None), highest=max(values, default=None),
        curtailed_s=sum(b - a for a, b in windows), curve=tuple(thin(course)), thinned=len(course) > MOST_POINTS,
        windows=tuple(joined(windows, (end - start) / 2000)), sums=sums_of(accounting.add(Totals(), rows)),
        curtailed_pct_with_standing=ledger.with_standing_pct(rows),
    )  # fmt: skip


def held(readings: Sequence[tuple[float, float | None]], max_age: float, start: float, end: float) -> list[Point]:
    """The MCI from `start` to `end`; a reading holds until the next one, but for at most `max_age` seconds."""
    points: list[Point] = []
    for index, (at, mci) in enumerate(readings):
        stop = readings[index + 1][0] if index + 1 < len(readings) else end
        if stop <= start or at >= end:
            continue
        if at + max_age > start or mci is None:
            points.append((max(at, start), mci))
        if mci is not None and start < at + max_age < min(stop, end):
            points.append((at + max_age, None))
    return points


def below(course: Sequence[Point], threshold: float, end: float) -> list[Span]:
    """Time spans of a step function that are known and below `threshold`."""
    after = [*(at for at, _ in course), end][1:]
    inside = [(at, stop) for (at, mci), stop in zip(course, after, strict=True) if mci is not None and mci < threshold]
    return joined(inside, 0.0)


def _sites(rows: list[SiteRow], entries: Sequence[Entry], start: float, end: float) -> tuple[SiteFigures, ...]:
    known = {row.site: row for row in rows}
    groups: dict[str, list[Entry]] = {row.site: [] for row in rows}
    for entry in entries:
        groups.setdefault(entry.site, []).append(entry)
    out = []
    for name, group in groups.items():
        phases = grouped(group, lambda e: e.phase)
        row = known.get(name)
        spans = sorted((e.t0, e.t1) for e in group if e.phase == "train")
        out.append(
            SiteFigures(
                site=name,
                region=row.region if row else group[-1].region,
                tokens=row.tokens if row else 0,
                training=tuple(joined(spans, (end - start) / 2000)),
                kwh_by_phase={phase: whole_kwh(phases[phase]) for phase in accounting.PHASES if phase in phases},
                sums=sums_of(accounting.add(Totals(), group)),
                curtailed_pct_with_standing=ledger.with_standing_pct(group),
            )
        )
    return tuple(out)
