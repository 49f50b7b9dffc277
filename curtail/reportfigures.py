"""The figures of `curtail report`, from one moment of a controller's store.

Sums come from the energy ledger's rows by `controller.accounts`, as the
controller's own status does; nothing is integrated anew. Times are seconds of
the controller's clock (Unix time of the signal), energy kWh, carbon kg. Curves
are thinned to what a picture can show, without losing extremes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from controller import accounts
from controller.accounts import Entry, Totals
from controller.rounds import Member
from controller.rows import EventRow, MemberRow, RoundRow, RunRow, SiteRow
from controller.store import Transaction
from curtail.config import RunConfig, config_from_json
from curtail.errors import CurtailError, NotFound
from curtail.policy import Regime
from curtail.reportenergy import Sums, always_on, baseline, cumulative, entries_of, grouped, sums_of, whole_kwh
from curtail.svg import MOST_POINTS, Point, Span, joined, thin

DECISIONS = 200
"""Latest lines of the decision log that are kept."""
DECIDING = ("policy", "regime", "signal", "controller", "run")
_VERSION = re.compile(r"version (\d+) from round ")
_EVERY = 1 << 40
"""More lines than any log has."""


@dataclass(frozen=True, slots=True)
class RegionFigures:
    """One region: its signal and what its sites drew."""

    region: str
    threshold: float | None  # gCO2/kWh; None: the run file knows the region no more
    readings: int
    unknown_readings: int
    lowest: float | None
    highest: float | None
    curtailed_s: float
    curve: tuple[Point, ...]  # MCI, held until the next point
    thinned: bool  # the curve: its points are then ends and extremes of stretches, and hold for no time
    windows: tuple[Span, ...]
    sums: Sums


@dataclass(frozen=True, slots=True)
class SiteFigures:
    """One site."""

    site: str
    region: str
    tokens: int
    training: tuple[Span, ...]
    kwh_by_phase: dict[str, float]
    sums: Sums


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round; the members and tokens are those merged, the duration in wall seconds up to the version."""

    round: int
    kind: str
    state: str
    members: tuple[str, ...]
    missing: tuple[str, ...]  # took part, contributed nothing that was merged
    tokens: int
    duration_s: float | None
    version: int | None


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """One merged version: the members' mean loss, weighted by their tokens."""

    version: int
    at: float | None
    tokens: int  # of all versions up to it
    loss: float | None


@dataclass(frozen=True, slots=True)
class Figures:
    """All that the report says."""

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
    kwh_by_method: dict[str, float]
    curtailed_pct_with_standing: float | None
    kg_always_on: float | None
    rows: int
    regions: tuple[RegionFigures, ...]
    sites: tuple[SiteFigures, ...]
    regimes: tuple[tuple[float, float, str], ...]
    kg_attributed: tuple[Point, ...]  # cumulative
    kg_reserved: tuple[Point, ...]
    kg_baseline: tuple[Point, ...]
    rounds: tuple[RoundFigures, ...]
    versions: tuple[VersionFigures, ...]
    decisions: tuple[tuple[float, str, str], ...]


def collect(tx: Transaction) -> Figures:
    """The figures of the run in the store.

    Raises: NotFound: it holds no run. CurtailError: the row of the run is damaged.
    """
    run, config = _run(tx)
    entries = entries_of(tx)
    names = list(dict.fromkeys([*config.regions, *(e.region for e in entries)]))
    readings = {region: tx.readings(region) for region in names}
    sites, events = tx.sites(), tx.last_events(_EVERY)
    rounds = [row for number in range(1, tx.next_round()) if (row := tx.round(number)) is not None]
    members = {row.round: tx.members(row.round) for row in rounds}
    total, end = accounts.add(Totals(), entries), max([run.clock, *(e.t1 for e in entries)])
    regions = grouped(entries, lambda e: e.region)
    # counted as if training had caused all of it, the curtailed share is that of the reserved energy
    everything = accounts.add(Totals(), (replace(e, phase="train") for e in entries))
    attributed, reserved = cumulative(entries, run.started, end)
    return Figures(
        name=config.run.name, run=run.id, state=run.state, started=run.started, now=end, tokens=run.tokens,
        token_budget=run.sample_limit * run.sequence_len, version=tx.latest_version().version,
        rounds_merged=tx.merged_rounds(),
        regime_seconds={**{regime.value: 0.0 for regime in Regime}, **run.regime_seconds},
        sums=sums_of(total),
        kwh_by_method={method: whole_kwh(sums) for method, sums in grouped(entries, lambda e: e.method).items()},
        curtailed_pct_with_standing=everything.curtailed_pct if everything.attributed_kwh else None,
        kg_always_on=always_on(config, total, run, sites, readings), rows=len(entries),
        regions=tuple(
            _region(config, name, readings[name], regions.get(name, Totals()), run.started, end) for name in names
        ),
        sites=_sites(sites, entries, run.started, end),
        regimes=tuple(_regimes(events, run.started, end)),
        kg_attributed=tuple(attributed), kg_reserved=tuple(reserved),
        kg_baseline=tuple(baseline(config, total, run, sites, readings, end)),
        rounds=tuple(_round(tx, row, members[row.round]) for row in rounds),
        versions=tuple(_versions(tx, [m for part in members.values() for m in part], events)),
        decisions=tuple((e.at, e.kind, e.text) for e in events if e.kind in DECIDING)[-DECISIONS:],
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
    totals: Totals,
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
        windows=tuple(joined(windows, (end - start) / 2000)), sums=sums_of(totals),
    )  # fmt: skip


def held(readings: Sequence[tuple[float, float | None]], max_age: float, start: float, end: float) -> list[Point]:
    """The MCI from `start` to `end`: a reading holds until the next one, at most `max_age` seconds."""
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
    """Stretches of a held course that are known and below `threshold`."""
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
                kwh_by_phase={phase: whole_kwh(phases[phase]) for phase in accounts.PHASES if phase in phases},
                sums=sums_of(accounts.add(Totals(), group)),
            )
        )
    return tuple(out)


# -- rounds and regimes ------------------------------------------------------


def _regimes(events: Sequence[EventRow], start: float, end: float) -> list[tuple[float, float, str]]:
    """Which regime held when; a controller that starts again is PAUSED until it decides."""
    changes = [(start, Regime.PAUSED.value)]
    for event in events:
        word = event.text.partition(":")[0]
        if event.kind == "controller":
            changes.append((event.at, Regime.PAUSED.value))
        elif event.kind == "regime" and word in list(Regime):
            changes.append((event.at, word))
    stops = [*(at for at, _ in changes[1:]), end]
    out: list[tuple[float, float, str]] = []
    for (at, regime), stop in zip(changes, stops, strict=True):
        if out and out[-1][2] == regime:
            out[-1] = (out[-1][0], max(stop, out[-1][1]), regime)
        elif stop > at:
            out.append((at, stop, regime))
    return out


def _round(tx: Transaction, row: RoundRow, members: list[MemberRow]) -> RoundFigures:
    merged = [m for m in members if m.state == Member.MERGED.value]
    made = None if row.version is None else tx.version(row.version)
    return RoundFigures(
        round=row.round,
        kind=row.kind,
        state=row.state,
        members=tuple(m.site for m in merged),
        missing=tuple(m.site for m in members if m not in merged),
        tokens=sum(m.tokens for m in merged),
        duration_s=None if made is None else max(0.0, made.created_wall - row.opened_wall),
        version=row.version,
    )


def _versions(tx: Transaction, members: Iterable[MemberRow], events: Sequence[EventRow]) -> list[VersionFigures]:
    groups: dict[int, list[MemberRow]] = {}
    for member in members:
        if member.state == Member.MERGED.value and member.version is not None:
            groups.setdefault(member.version, []).append(member)
    # the rows of versions and rounds tell wall time only; the log tells both
    moments = {int(found[1]): e.at for e in events if e.kind == "version" and (found := _VERSION.match(e.text))}
    out, tokens = [], 0
    for number in sorted(groups):
        group = groups[number]
        tokens += sum(m.tokens for m in group)
        known = [(m.tokens, m.loss_mean) for m in group if m.loss_mean is not None]
        weight = sum(count for count, _ in known)
        loss = sum(count * mean for count, mean in known) / weight if weight else None
        out.append(VersionFigures(number, moments.get(number), tokens, loss))
    return out
