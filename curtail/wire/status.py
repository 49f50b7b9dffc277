"""The snapshot that every view is made of, and the orders that a person gives on seeing it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OverrideRequest:
    """Operator -> controller, POST /v1/override: an order for all sites of a region, limited in time."""

    region: str
    action: str  # train, pause, clear
    seconds: float  # of the controller's clock; nothing to `clear`
    by: str  # who orders it
    reason: str


@dataclass(frozen=True, slots=True)
class OverrideStatus:
    """An order in force in the snapshot."""

    train: bool  # False: pause
    left_s: float  # controller clock
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlanStatus:
    """What the run is to achieve, in the snapshot; times are the controller's clock."""

    reason: str  # why the price is what it is, or why there is none
    price: float | None  # gCO2/kWh in force; None: the thresholds are
    work_s: float | None  # training that is left, seconds of one site; None: not known yet
    tokens_per_s: float | None  # of one site that trains
    known_by: str  # how that is known: measured, reported, assumed, or ""
    deadline: float | None
    deadline_left_s: float | None
    budget_kg: float | None
    budget_left_kg: float | None


@dataclass(frozen=True, slots=True)
class CostsStatus:
    """What a start, a stop and an exchange of a site cost, in the snapshot; seconds of the controller's clock, W."""

    start_s: float
    stop_s: float
    sync_s: float
    train_w: float
    idle_w: float
    paused_w: float
    starts: int  # of the latest, how many were measured; below three the run file's figure counts too


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One region in the snapshot."""

    region: str
    mci: float | None  # gCO2/kWh, None: unknown
    threshold: float
    age_s: float | None
    source: str
    granted: bool
    reason: str
    history: tuple[float | None, ...]  # latest readings, oldest first
    grid_w: float | None  # power drawn from the grid by the region's microgrid (Vessim)
    solar_w: float | None = None  # that its panels give; None: it has none
    battery_w: float | None = None  # above 0 its battery is charged, below it is discharged; None: it has none
    battery_soc: float | None = None  # share of the capacity that it holds, 0 to 1
    override: OverrideStatus | None = None


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """One site in the snapshot."""

    site: str
    region: str
    state: str
    phase: str
    granted: bool
    reason: str
    round: int | None
    step: int  # inner steps reported of the open round
    loss: float | None
    tokens_per_s: float
    tokens: int  # committed by this site so far
    seen_s: float | None  # since the last heartbeat; None: not since the controller's start
    energy_kwh: float
    kg_co2: float
    costs: CostsStatus | None = None


@dataclass(frozen=True, slots=True)
class RoundStatus:
    """The open round in the snapshot."""

    round: int
    state: str
    base_version: int
    members: tuple[str, ...]
    committed: tuple[str, ...]
    left_s: float


@dataclass(frozen=True, slots=True)
class LateStatus:
    """A site's part in a round that went on without it."""

    site: str
    round: int
    state: str  # LATE: it may still contribute; COMMITTED: its contribution waits for the next merge
    samples: int  # leased, or contributed


@dataclass(frozen=True, slots=True)
class KeptStatus:
    """Samples that stay with a site's job beyond what it committed: it trains ahead on them."""

    site: str
    samples: int


@dataclass(frozen=True, slots=True)
class EventStatus:
    """One line of the event log."""

    id: int
    at: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class EnergyStatus:
    """Totals of the energy ledger. Attributed: start, train, sync, drain; standing: paused."""

    attributed_kwh: float
    standing_kwh: float
    kg_attributed: float
    kg_standing: float
    curtailed_pct: float  # share of the attributed energy drawn inside curtailment windows
    kg_always_on: float | None  # same training without waiting; None: nothing trained yet
    unknown_kwh: float  # drawn while the MCI was unknown; its kg are not in the totals
    own_kwh: float = 0.0  # from the regions' panels and batteries; in no other figure here
    ledger_records: int = 0  # of the hash chain: rows, readings, settlements
    ledger_head: str = ""  # its last hash; noted elsewhere it shows that nothing before it was changed


@dataclass(frozen=True, slots=True)
class Status:
    """Controller -> anyone, GET /v1/status: one snapshot for every view."""

    protocol: int
    run: str
    name: str
    state: str  # RUNNING, FINISHED
    now: float  # controller clock
    started: float  # controller clock at the start of the run
    speed: float
    regime: str
    regime_since: float
    reason: str
    regime_seconds: dict[str, float]
    tokens: int
    token_budget: int
    version: int
    rounds: int  # merged rounds
    round: RoundStatus | None
    loss_first: float | None  # of the run's first step
    loss_last: float | None  # smoothed over the last steps, up to the newest version
    checkpoint: str
    energy: EnergyStatus
    regions: tuple[RegionStatus, ...]
    sites: tuple[SiteStatus, ...]
    events: tuple[EventStatus, ...]
    signal_ended: bool  # every region's trace has ended
    plan: PlanStatus | None = None
    late: tuple[LateStatus, ...] = ()
    kept: tuple[KeptStatus, ...] = ()
