"""The status snapshot of a run, for the TUI, `--json` and tests.

Read-only. It is made in one transaction on the store's thread, so all its parts
belong to the same moment.
"""

from __future__ import annotations

from collections.abc import Mapping

from controller.fleet.live import LiveSite
from controller.rounds.lifecycle import Member
from controller.service.service import Service
from controller.store import Transaction
from controller.store.rows import RunRow, SiteRow
from curtail import wire
from curtail.carbon.accounting import Totals
from curtail.policy.rules import Regime

EVENTS = 20
HISTORY = 96  # readings: eight hours of five minutes
HOOKS = ("on_pause", "on_resume")


def make(tx: Transaction, service: Service) -> wire.Status:
    """The snapshot at this moment."""
    run = tx.run()
    assert run is not None
    now = service.replay.now()
    latest = tx.latest_version()
    totals, by_site = service.energy_ledger.present(now)
    known = {site.site: site for site in tx.sites()}
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
        reason=service.regime.reason(run, service.room.reason),
        regime_seconds={**{regime.value: 0.0 for regime in Regime}, **run.regime_seconds},
        tokens=run.tokens,
        token_budget=run.sample_limit * run.sequence_len,
        version=latest.version,
        rounds=latest.version,  # each merged round makes one version; counting rows would take longer with every round
        round=_round(tx, service),
        loss_first=run.loss_first,
        loss_last=run.loss_last,
        checkpoint=str(service.versions.path(latest.version)),
        energy=_energy(tx, service, run, totals, known),
        regions=tuple(_region(tx, service, region, now) for region in service.config.regions),
        sites=_sites(tx, service, by_site, known),
        events=tuple(wire.EventStatus(e.id, e.at, e.kind, e.text) for e in tx.last_events(EVENTS)),
        signal_ended=service.source.ended(now),
        plan=_plan(service, now),
        late=_late(tx),
        machines=service.elastic.machines(),
        kept=tuple(wire.KeptStatus(row.site, row.stop - row.start) for row in tx.all_kept()),
    )


def _plan(service: Service, now: float) -> wire.PlanStatus | None:
    """The carbon price in force and what it is based on; None before the first step."""
    aim, price, budget = service.scheduler.aim, service.scheduler.price, service.config.policy.budget_kg
    if aim is None:
        return None
    deadline = aim.goal.deadline
    if price is not None:
        reason = price.reason
    else:
        reason = aim.problem or "neither a deadline nor a budget is set; the thresholds decide"
    return wire.PlanStatus(
        reason=reason,
        price=None if price is None else price.limit,
        work_s=aim.goal.work,
        tokens_per_s=aim.tokens_per_s,
        known_by=aim.known_by,
        deadline=deadline,
        deadline_left_s=None if deadline is None else deadline - now,
        budget_kg=budget,
        budget_left_kg=aim.goal.budget_kg,
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
        left_s=max(0.0, row.deadline_wall - service.even.wall()),
    )


def _late(tx: Transaction) -> tuple[wire.LateStatus, ...]:
    """Contributions that missed their round: still in training, or waiting for the next merge."""
    live = tx.live_round()
    current = None if live is None else live.round
    late = tx.waiting(Member.LATE.value)
    arrived = [row for row in tx.waiting(Member.COMMITTED.value) if row.round != current]
    return tuple(
        wire.LateStatus(
            row.site,
            row.round,
            row.state,
            row.samples if Member(row.state) is Member.COMMITTED else row.lease_stop - row.lease_start,
        )
        for row in sorted([*late, *arrived], key=lambda row: (row.round, row.site))
    )


def _energy(
    tx: Transaction, service: Service, run: RunRow, totals: Totals, sites: Mapping[str, SiteRow]
) -> wire.EnergyStatus:
    regions = (site.region for site in sites.values())
    records, head = tx.chain_head()
    return wire.EnergyStatus(
        attributed_kwh=totals.attributed_kwh,
        standing_kwh=totals.standing_kwh,
        kg_attributed=totals.kg_attributed,
        kg_standing=totals.kg_standing,
        curtailed_pct=totals.curtailed_pct,
        kg_always_on=service.energy_ledger.always_on_now(tx, totals, run.started, regions),
        unknown_kwh=totals.unknown_kwh,
        own_kwh=totals.own_kwh,
        ledger_records=records,
        ledger_head=head,
    )


def _region(tx: Transaction, service: Service, region: str, now: float) -> wire.RegionStatus:
    reading, verdict = service.readings.get(region), service.verdicts.get(region)
    supply = service.supplies.get(region)
    return wire.RegionStatus(
        region=region,
        mci=None if reading is None else reading.mci,
        threshold=service.config.threshold(region),
        age_s=None if reading is None or reading.mci is None else max(0.0, now - reading.point_time),
        source="" if reading is None else reading.source,
        granted=verdict is not None and verdict.granted,
        reason="no reading has arrived yet" if verdict is None else verdict.reason,
        history=tuple(mci for _, mci in tx.last_readings(region, HISTORY)),
        grid_w=None if supply is None else supply.grid_w,
        solar_w=None if supply is None else supply.solar_w,
        battery_w=None if supply is None else supply.battery_w,
        battery_soc=None if supply is None else supply.soc,
        override=_override(service, region, now),
    )


def _override(service: Service, region: str, now: float) -> wire.OverrideStatus | None:
    order = service.scheduler.orders.of(region, now)
    return None if order is None else wire.OverrideStatus(order.train, order.until - now, order.by, order.why)


def _costs(service: Service, live: LiveSite) -> wire.CostsStatus:
    known = service.scheduler.costs(live)
    return wire.CostsStatus(
        known.start_s, known.stop_s, known.sync_s, known.train_w, known.idle_w, known.paused_w,
        service.scheduler.learned(live.site).starts,
    )  # fmt: skip


def _sites(
    tx: Transaction, service: Service, by_site: Mapping[str, Totals], known: Mapping[str, SiteRow]
) -> tuple[wire.SiteStatus, ...]:
    mono = service.clock.monotonic()
    row = tx.live_round()
    members = {} if row is None else {m.site: m for m in tx.members(row.round)}
    out = []
    for live in service.fleet:
        totals = by_site.get(live.site, Totals())
        in_round = row is not None and live.site in members
        lost = not live.heard(mono, service.config.fleet.lost_after)
        state = "SILENT" if lost and live.seen is not None else live.state
        if service.switches.away(live.site):
            state = service.switches.state(live.site).value
        out.append(
            wire.SiteStatus(
                site=live.site,
                region=live.region,
                state=state,
                phase=live.phase,
                granted=live.permit.granted,
                reason=_waiting(service, live),
                round=row.round if row is not None and in_round else None,
                step=live.step if row is not None and live.working_on == row.round else 0,
                loss=live.loss,
                tokens_per_s=live.tokens_per_s if live.phase == "train" else 0.0,
                tokens=known[live.site].tokens if live.site in known else 0,
                seen_s=None if live.seen is None else mono - live.seen,
                energy_kwh=totals.attributed_kwh + totals.standing_kwh,
                kg_co2=totals.kg_attributed + totals.kg_standing,
                costs=_costs(service, live),
            )
        )
    return tuple(out)


def _waiting(service: Service, live: LiveSite) -> str:
    """Why a site waits: the machine's reason if it has a permit, else the controller's."""
    reason = live.permit.reason
    if live.job is None and live.note and live.permit.granted:
        reason = live.note
    elif live.job is None and live.note.startswith(HOOKS):
        # The machine is paused by the controller, and one of its own commands runs or has failed.
        reason = f"{reason}; {live.note}"
    verdict = service.verdicts.get(live.region)
    return service.switches.reason(
        live.site, reason, "" if verdict is None else verdict.reason, service.clock.wall()
    )  # fmt: skip
