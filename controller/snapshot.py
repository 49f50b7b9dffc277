"""The status snapshot: one picture of the run for the TUI, `--json` and tests.

Read-only; runs inside a transaction on the store's thread, so that all its
parts belong to the same moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from controller.accounts import Totals
from controller.rounds import Member
from controller.rows import RunRow
from controller.store import Transaction
from curtail import wire
from curtail.policy import Regime

if TYPE_CHECKING:
    from controller.service import Service

EVENTS = 20
HISTORY = 96  # readings: eight hours of five minutes


def make(tx: Transaction, service: Service) -> wire.Status:
    """The snapshot at this moment."""
    run = tx.run()
    assert run is not None
    now = service.replay.now()
    latest = tx.latest_version()
    totals, by_site = service.booking.present(now)
    readings = {region: tx.readings(region) for region in service.config.regions}
    return wire.Status(
        protocol=wire.PROTOCOL,
        run=run.id,
        name=service.config.run.name,
        state=run.state,
        now=now,
        started=run.started,
        speed=service.replay.speed,
        regime=run.regime,
        regime_since=run.regime_since,
        reason=service.reason(run, Regime(run.regime)),
        regime_seconds={**{regime.value: 0.0 for regime in Regime}, **run.regime_seconds},
        tokens=run.tokens,
        token_budget=run.sample_limit * run.sequence_len,
        version=latest.version,
        rounds=tx.merged_rounds(),
        round=_round(tx, service),
        loss_first=run.loss_first,
        loss_last=run.loss_last,
        checkpoint=str(service.versions.path(latest.version)),
        energy=_energy(tx, service, run, totals, readings),
        regions=tuple(_region(service, region, readings[region], now) for region in service.config.regions),
        sites=_sites(tx, service, by_site),
        events=tuple(wire.EventStatus(e.id, e.at, e.kind, e.text) for e in tx.last_events(EVENTS)),
        signal_ended=service.source.ended(now),
    )


def _round(tx: Transaction, service: Service) -> wire.RoundStatus | None:
    row = tx.live_round()
    if row is None:
        return None
    members = tx.members(row.round)
    return wire.RoundStatus(
        round=row.round,
        state=row.state,
        base_version=row.base_version,
        members=tuple(m.site for m in members),
        committed=tuple(m.site for m in members if Member(m.state) is Member.COMMITTED),
        left_s=max(0.0, row.deadline_wall - service.clock.wall()),
    )


def _energy(
    tx: Transaction,
    service: Service,
    run: RunRow,
    totals: Totals,
    readings: dict[str, list[tuple[float, float | None]]],
) -> wire.EnergyStatus:
    sites = {site.site: site.region for site in tx.sites()}
    return wire.EnergyStatus(
        attributed_kwh=totals.attributed_kwh,
        standing_kwh=totals.standing_kwh,
        kg_attributed=totals.kg_attributed,
        kg_standing=totals.kg_standing,
        curtailed_pct=totals.curtailed_pct,
        kg_always_on=service.booking.always_on_kg(totals, run.started, sites, readings),
        unknown_kwh=totals.unknown_kwh,
    )


def _region(service: Service, region: str, history: list[tuple[float, float | None]], now: float) -> wire.RegionStatus:
    reading, verdict = service.readings.get(region), service.verdicts.get(region)
    return wire.RegionStatus(
        region=region,
        mci=None if reading is None else reading.mci,
        threshold=service.config.threshold(region),
        age_s=None if reading is None or reading.mci is None else max(0.0, now - reading.point_time),
        source="" if reading is None else reading.source,
        granted=verdict is not None and verdict.granted,
        reason="no reading has arrived yet" if verdict is None else verdict.reason,
        history=tuple(mci for _, mci in history[-HISTORY:]),
        grid_w=service.grid.get(region),
    )


def _sites(tx: Transaction, service: Service, by_site: dict[str, Totals]) -> tuple[wire.SiteStatus, ...]:
    mono = service.clock.monotonic()
    row = tx.live_round()
    members = {} if row is None else {m.site: m for m in tx.members(row.round)}
    known = {site.site: site for site in tx.sites()}
    out = []
    for live in service.fleet:
        totals = by_site.get(live.site, Totals())
        in_round = row is not None and live.site in members
        lost = not live.heard(mono, service.config.fleet.lost_after)
        waiting = live.note if live.granted and live.note and live.job is None else live.reason
        out.append(
            wire.SiteStatus(
                site=live.site,
                region=live.region,
                state="SILENT" if lost and live.seen is not None else live.state,
                phase=live.phase,
                granted=live.granted,
                reason=waiting,
                round=row.round if row is not None and in_round else None,
                step=live.step,
                loss=live.loss,
                tokens_per_s=live.tokens_per_s if live.phase == "train" else 0.0,
                tokens=known[live.site].tokens if live.site in known else 0,
                seen_s=None if live.seen is None else mono - live.seen,
                energy_kwh=totals.attributed_kwh + totals.standing_kwh,
                kg_co2=totals.kg_attributed + totals.kg_standing,
            )
        )
    return tuple(out)
