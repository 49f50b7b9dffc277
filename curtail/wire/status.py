"""The snapshot that every view is made of, and the orders that a person gives on seeing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curtail.wire.bounds import Integer, Key, Loss, NameOrEmpty, Note, Number, Seconds, String, Text, Word


@dataclass(frozen=True, slots=True)
class OverrideRequest:
    """Operator -> controller, POST /v1/override: an order for all sites of a region, limited in time."""

    region: NameOrEmpty
    action: Word  # train, pause, clear
    seconds: Seconds  # of the controller's clock; nothing to `clear`
    by: Annotated[str, Text(128)]  # who orders it
    reason: Note


@dataclass(frozen=True, slots=True)
class OverrideStatus:
    """An order in force in the snapshot."""

    train: bool  # False: pause
    left_s: Number  # controller clock
    by: String
    reason: String


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """What the run is to achieve, in the snapshot; times are the controller's clock."""

    reason: String  # why the price is what it is, or why there is none
    price: Number | None  # gCO2/kWh in force; None: the thresholds are
    work_s: Number | None  # training that is left, seconds of one site; None: not known yet
    tokens_per_s: Number | None  # of one site that trains
    known_by: String  # how that is known: measured, reported, assumed, or ""
    deadline: Number | None
    deadline_left_s: Number | None
    budget_kg: Number | None
    budget_left_kg: Number | None


@dataclass(frozen=True, slots=True)
class CostsStatus:
    """What a start, a stop and an exchange of a site cost, in the snapshot; seconds of the controller's clock, W."""

    start_s: Number
    stop_s: Number
    sync_s: Number
    train_w: Number
    idle_w: Number
    paused_w: Number
    starts: Integer  # of the latest, how many were measured; below three the run file's figure counts too


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One region in the snapshot."""

    region: String
    mci: Number | None  # gCO2/kWh, None: unknown
    threshold: Number
    age_s: Number | None
    source: String
    granted: bool
    reason: String
    history: tuple[Number | None, ...]  # latest readings, oldest first
    grid_w: Number | None  # power drawn from the grid by the region's microgrid (Vessim)
    solar_w: Number | None = None  # that its panels give; None: it has none
    battery_w: Number | None = None  # above 0 its battery is charged, below it is discharged; None: it has none
    battery_soc: Number | None = None  # share of the capacity that it holds, 0 to 1
    override: OverrideStatus | None = None


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """One site in the snapshot."""

    site: String
    region: String
    state: String
    phase: String
    granted: bool
    reason: String
    round: Integer | None
    step: Integer  # inner steps reported of the open round
    loss: Loss | None
    tokens_per_s: Number
    tokens: Integer  # committed by this site so far
    seen_s: Number | None  # since the last heartbeat; None: not since the controller's start
    energy_kwh: Number
    kg_co2: Number
    costs: CostsStatus | None = None


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """The open round in the snapshot."""

    round: Integer
    state: String
    base_version: Integer
    members: tuple[String, ...]
    committed: tuple[String, ...]
    left_s: Number


@dataclass(frozen=True, slots=True)
class LateStatus:
    """A site's part in a round that went on without it."""

    site: String
    round: Integer
    state: String  # LATE: it may still contribute; COMMITTED: its contribution waits for the next merge
    samples: Integer  # leased, or contributed


@dataclass(frozen=True, slots=True)
class KeptStatus:
    """Samples that stay with a site's job beyond what it committed: it trains ahead on them."""

    site: String
    samples: Integer


@dataclass(frozen=True, slots=True)
class EventStatus:
    """One line of the event log."""

    id: Integer
    at: Number
    kind: String
    text: String


@dataclass(frozen=True, slots=True)
class EnergyStatus:
    """Totals of the energy ledger. Attributed: start, train, sync, drain; standing: paused."""

    attributed_kwh: Number
    standing_kwh: Number
    kg_attributed: Number
    kg_standing: Number
    curtailed_pct: Number  # share of the attributed energy drawn inside curtailment windows
    kg_always_on: Number | None  # same training without waiting; None: nothing trained yet
    unknown_kwh: Number  # drawn while the MCI was unknown; its kg are not in the totals
    own_kwh: Number = 0.0  # from the regions' panels and batteries; in no other figure here
    ledger_records: Integer = 0  # of the hash chain: rows, readings, settlements
    ledger_head: String = ""  # its last hash; noted elsewhere it shows that nothing before it was changed


@dataclass(frozen=True, slots=True)
class Status:
    """Controller -> anyone, GET /v1/status: one snapshot for every view."""

    protocol: Integer
    run: String
    name: String
    state: String  # RUNNING, FINISHED
    now: Number  # controller clock
    started: Number  # controller clock at the start of the run
    speed: Number
    regime: String
    regime_since: Number
    reason: String
    regime_seconds: dict[Key, Number]
    tokens: Integer
    token_budget: Integer
    version: Integer
    rounds: Integer  # merged rounds
    round: RoundStatus | None
    loss_first: Loss | None  # of the run's first step
    loss_last: Loss | None  # smoothed over the last steps, up to the newest version
    checkpoint: String
    energy: EnergyStatus
    regions: tuple[RegionStatus, ...]
    sites: tuple[SiteStatus, ...]
    events: tuple[EventStatus, ...]
    signal_ended: bool  # every region's trace has ended
    plan: PlanStatus | None = None
    late: tuple[LateStatus, ...] = ()
    kept: tuple[KeptStatus, ...] = ()
