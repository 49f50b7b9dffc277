"""The status snapshot, and override requests by operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curtail.wire.bounds import Integer, Key, Loss, NameOrEmpty, Note, Number, Seconds, String, Text, Word
from curtail.wire.provision import MachineStatus


@dataclass(frozen=True, slots=True)
class OverrideRequest:
    """Operator -> controller, POST /v1/override: an override for all sites of a region, limited in time."""

    region: NameOrEmpty
    action: Word  # train, pause, clear
    seconds: Seconds  # of the controller's clock; ignored by `clear`
    by: Annotated[str, Text(128)]  # name of the operator
    reason: Note


@dataclass(frozen=True, slots=True)
class OverrideStatus:
    """An override in force."""

    train: bool  # False: pause
    left_s: Number  # controller clock
    by: String
    reason: String


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """The run's goal and price; times are the controller's clock."""

    reason: String  # why the price is what it is, or why there is none
    price: Number | None  # gCO2/kWh in force; None: the thresholds decide
    work_s: Number | None  # remaining training time of one site, seconds; None: not known yet
    tokens_per_s: Number | None  # of one site that trains
    known_by: String  # source of that figure: measured, reported, assumed, or ""
    deadline: Number | None
    deadline_left_s: Number | None
    budget_kg: Number | None
    budget_left_kg: Number | None


@dataclass(frozen=True, slots=True)
class CostsStatus:
    """Costs of a site's start, stop and exchange, in seconds of the controller's clock, and its power, W."""

    start_s: Number
    stop_s: Number
    sync_s: Number
    train_w: Number
    idle_w: Number
    paused_w: Number
    starts: Integer  # number of measured starts, of the latest; below three the run file's figure counts, too


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
    solar_w: Number | None = None  # output of its panels; None: it has none
    battery_w: Number | None = None  # above 0: charging, below: discharging; None: it has no battery
    battery_soc: Number | None = None  # state of charge, 0 to 1
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
    """A site's lease in a round that continued without it."""

    site: String
    round: Integer
    state: String  # LATE: it may still contribute; COMMITTED: its contribution waits for the next merge
    samples: Integer  # leased, or contributed


@dataclass(frozen=True, slots=True)
class KeptStatus:
    """Samples that a site's job keeps after its commit and trains on."""

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
    kg_always_on: Number | None  # same training without pauses; None: nothing trained yet
    unknown_kwh: Number  # drawn while the MCI was unknown; its kg are not in the totals
    own_kwh: Number = 0.0  # from the regions' panels and batteries; not part of any other figure here
    ledger_records: Integer = 0  # records of the hash chain: rows, readings, settlements
    ledger_head: String = ""  # its last hash; a copy kept elsewhere proves that no earlier record was changed


@dataclass(frozen=True, slots=True)
class Status:
    """Controller -> anyone, GET /v1/status: the snapshot of the run."""

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
    machines: tuple[MachineStatus, ...] = ()  # of sites with a provisioner
