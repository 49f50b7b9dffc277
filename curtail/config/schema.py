"""The sections of the run file, each key a field with its bound, and the whole run file as one value.

In the order of the file: what is trained and how, when a site trains and what is booked, then single regions and
sites. `RunConfig.to_json` and `config_from_json` are the form in which the store keeps a run file.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from curtail.config.quantities import (
    QUANTITY,
    Duration,
    Intensity,
    OneOf,
    Positive,
    Share,
    SignedIntensity,
    Wattage,
    WholeOrWord,
    parse_quantity,
    quantity,
)
from curtail.config.site_schema import KubernetesSection, ProvisionSection, SiteSection, SlurmSection
from curtail.errors import ConfigError
from curtail.grid.reading import UNITS
from curtail.policy.costs import SHORTEST_WINDOW_S, SiteCosts
from curtail.wire.bounds import Count, Integer, Real, String, Whole


@dataclass(frozen=True, slots=True)
class RunSection:
    """[run]"""

    name: String
    seed: Integer = 1


@dataclass(frozen=True, slots=True)
class ModelSection:
    """[model]"""

    preset: String


@dataclass(frozen=True, slots=True)
class DataSection:
    """[data]"""

    path: String  # folder made by `curtail data prepare`; relative to the run file


@dataclass(frozen=True, slots=True)
class TrainingSection:
    """[training]"""

    token_budget: Positive
    batch_samples: Positive  # samples per optimizer step of a site
    # per rank and pass; 0, in the file "auto": on a GPU what fits, on a CPU the whole slice
    device_batch_samples: Annotated[int, WholeOrWord(0, word="auto", stands_for=0)] = 0
    recipe: String = "reference"  # hyperparameters by name; `nanochat.recipe` knows which there are
    overrides: tuple[String, ...] = ()  # KEY=VALUE, on top of the recipe
    warmdown_fraction: Share | None = None  # default: the recipe's


CODECS = ("fp32", "bf16", "int8", "int4")
"""Forms in which a delta can travel; `nanochat.delta` makes and reads them."""


LEASE_ROUNDS = 50
"""For how many rounds a lease of several sites lasts that train on while their contributions travel."""


@dataclass(frozen=True, slots=True)
class OuterStep:
    """One row of [rounds.outer]: the outer step when `sites` or more contribute, up to the next row."""

    sites: Integer
    lr: Annotated[float, Real(0.0)] = 1.0
    momentum: Annotated[float, Real(0.0, 0.999)] = 0.0  # Nesterov


@dataclass(frozen=True, slots=True)
class RoundsSection:
    """[rounds]"""

    inner_steps: Positive = 100  # most steps of a site in one round, not counting overlapped steps
    length: Annotated[float, quantity("duration", low=0.1)] = 300.0  # wall time after which a site commits
    grace: Duration = 30.0  # wall time that a round waits for late commits
    quorum: Positive = 1  # contributions that a round waits for beyond the grace
    codec: Annotated[str, OneOf(CODECS)] = "int8"  # of deltas
    broadcast: Annotated[str, OneOf(CODECS)] = ""  # of updates; default: as codec
    overlap: bool = False  # FEDERATED sites train on while their contribution is uploaded and merged
    ahead_steps: Count | None = None  # steps a lease exceeds a round by; default: see `ahead`
    rewarm_steps: Count = 20  # learning-rate warm-up of a site without optimizer state
    upload_timeout: Duration = 600.0  # how long a contribution waits for an unreachable controller
    staleness_discount: Share = 0.0  # per version of staleness; 0: late ones are refused
    outer: tuple[OuterStep, ...] = (OuterStep(2, 1.0, 0.0),)  # ascending by sites; chosen in docs/guides/federated.md
    lr_scaling: Share | None = None  # inner rates of K sites at once: * K ** this
    momentum_scaling: Share | None = None  # steps that Muon remembers: * K ** this
    keep_versions: Annotated[int, Whole(2)] = 3

    @property
    def ahead(self) -> int:
        """Steps by which a lease exceeds the round where the job may train on.

        A sole site's lease grows by the samples after it. With several sites the next one holds those, so
        that a lease lasts for what it was made for: `LEASE_ROUNDS`, of which one is not overlapped.
        """
        if self.ahead_steps is not None:
            return self.ahead_steps
        return self.inner_steps * (LEASE_ROUNDS - 1 if self.overlap else 1)

    @property
    def powers(self) -> tuple[float, float]:
        """Powers of the number of sites on inner rates and on Muon's memory.

        By default what suits the plain mean; an outer momentum already makes several sites' steps
        longer, and both together do harm (benchmarks/parity.md), so with one they are 0.
        """
        mean = all(row.momentum == 0.0 for row in self.outer)
        both = 0.5 if mean else 0.0
        return (
            both if self.lr_scaling is None else self.lr_scaling,
            both if self.momentum_scaling is None else self.momentum_scaling,
        )

    @property
    def broadcast_codec(self) -> str:
        """Form in which updates travel."""
        return self.broadcast or self.codec


@dataclass(frozen=True, slots=True)
class PolicySection:
    """[policy]"""

    threshold: SignedIntensity = 100.0
    max_reading_age: Annotated[float, quantity("duration", low=1.0)] = 600.0  # controller clock
    enter_dwell: Duration = 0.0  # controller clock
    leave_lead: Duration = 0.0  # controller clock; needs a forecast
    permit: Annotated[float, quantity("duration", low=0.5)] = 15.0  # wall time a permit lives without renewal
    start_age: Duration | None = None  # controller clock; default: half of max_reading_age
    min_window: Duration = SHORTEST_WINDOW_S  # controller clock; needs a forecast
    leave_above: SignedIntensity | None = None  # default: at the threshold
    deadline: String = ""  # a moment with its zone, or a duration from the run's start; `deadline_at`
    budget_kg: Annotated[float, Real(0.0)] | None = None  # most kgCO2 attributed to the run
    safety: Annotated[float, Real(1.0)] | None = None  # factor on the remaining work; default: by the forecast
    max_sites: Positive | None = None  # train at most this many sites at once
    start: Duration = 100.0  # controller clock; permit to first step, until it is measured
    stop: Duration = 15.0  # controller clock; end of the permit to released GPUs
    sync: Duration = 30.0  # controller clock; of a federated round without training
    tokens_per_s: Annotated[float, Real(0.0)] | None = None  # wall time; of one site that trains, until it is measured

    @property
    def oldest_start(self) -> float:
        """Seconds of age beyond which a reading starts no site: one period, of which two make it stale."""
        return self.max_reading_age / 2 if self.start_age is None else self.start_age

    def deadline_at(self, started: float) -> float | None:
        """The deadline on the controller's clock, None without one.

        Args: started: of the run. Raises: ConfigError: it is neither a moment nor a duration.
        """
        if not self.deadline:
            return None
        if QUANTITY.match(self.deadline):
            return started + parse_quantity("duration", self.deadline, "[policy] deadline")
        try:
            moment = datetime.fromisoformat(self.deadline)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise ConfigError(
                f"[policy] deadline = {self.deadline!r} is no deadline",
                'write a moment with its zone, "2026-03-01T08:00+00:00", or a time after the start, "14.6 h"',
            )
        return moment.timestamp()


@dataclass(frozen=True, slots=True)
class SignalSection:
    """[signal]"""

    source: String = "trace"  # trace, constant, watttime, or a plug-in's name; `controller.signals.select` knows which
    path: String = ""  # of the trace; relative to the run file
    unit: Annotated[str, OneOf(UNITS)] = ""  # of the trace
    forecast: bool = False  # use the trace's own future as the forecast
    value: SignedIntensity | None = None  # of the constant
    poll: Annotated[float, quantity("duration", low=1.0)] = 30.0  # wall time between two answers of a live source
    horizon: Duration = 86400.0  # of a live source's forecast
    credentials: String = ""  # file with names and passwords; relative to the run file
    url: String = ""  # of the source; default: its own
    average: String = ""  # a source of averages, for accounts only
    options: Mapping[str, Any] | None = None  # of a plug-in


@dataclass(frozen=True, slots=True)
class FleetSection:
    """[fleet]"""

    heartbeat: Annotated[float, quantity("duration", low=0.05, high=1e6)] = 2.0  # wall time
    lost_after: Annotated[float, quantity("duration", low=0.2)] = 15.0  # wall time without a heartbeat


@dataclass(frozen=True, slots=True)
class AccountingSection:
    """[accounting]: what the full boundary of the ledger adds; docs/guides/carbon-accounting.md gives the sources."""

    network_kwh_per_gb: Annotated[float, Real(0.0, 100.0)] = 0.06  # of what sites send and fetch
    controller_power: Wattage = 20.0  # of the controller's machine, the whole run long
    intensity: Intensity = 480.0  # of network and controller, wherever they are
    embodied_g_per_site_hour: Annotated[float, Real(0.0, 1e6)] = 29.0  # making of a site's machines, per hour of use


@dataclass(frozen=True, slots=True)
class SolarSection:
    """[regions.NAME.solar]: panels behind the region's grid connection."""

    peak: Annotated[float, quantity("power", low=1.0, high=1e9)]
    path: String = ""  # CSV of shares of the peak; relative to the run file
    column: String = ""  # of it; default: the region's name
    latitude: Annotated[float, Real(-90.0, 90.0)] | None = None  # degrees north; of a sky without clouds
    longitude: Annotated[float, Real(-180.0, 180.0)] | None = None  # degrees east


@dataclass(frozen=True, slots=True)
class BatterySection:
    """[regions.NAME.battery]: charged by the region's own panels, never from the grid."""

    capacity: Annotated[float, quantity("energy", low=1.0, high=1e10)]  # Wh
    min_soc: Share = 0.0  # never discharged below this share of the capacity
    initial_soc: Share | None = None  # when the run begins; default: min_soc
    max_charge: Wattage | None = None  # default: no limit
    max_discharge: Wattage | None = None


@dataclass(frozen=True, slots=True)
class RegionSection:
    """[regions.NAME]"""

    power_train: Wattage  # of one site while it trains
    power_idle: Wattage  # loading, syncing, draining
    power_paused: Wattage | None = None  # standing by; default: power_idle
    power_off: Wattage | None = None  # switched off by on_pause; default: power_paused
    pue: Annotated[float, Real(1.0, 5.0)] = 1.0
    threshold: SignedIntensity | None = None  # default: [policy] threshold
    column: String = ""  # of the trace; default: the region's name
    signal: String = ""  # the region's name at a live source; default: the region's name
    zone: String = ""  # the region's name at a source of averages
    start: Duration | None = None  # controller clock; default: [policy] start
    stop: Duration | None = None
    sync: Duration | None = None
    solar: SolarSection | None = None
    battery: BatterySection | None = None


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The whole run file."""

    run: RunSection
    model: ModelSection
    data: DataSection
    training: TrainingSection
    regions: Mapping[str, RegionSection]
    rounds: RoundsSection = field(default=RoundsSection())
    policy: PolicySection = field(default=PolicySection())
    signal: SignalSection = field(default=SignalSection())
    fleet: FleetSection = field(default=FleetSection())
    accounting: AccountingSection = field(default=AccountingSection())
    provision: ProvisionSection = field(default=ProvisionSection())
    sites: Mapping[str, SiteSection] = field(default_factory=dict)

    def threshold(self, region: str) -> float:
        """gCO2/kWh below which `region` counts as curtailed."""
        own = self.regions[region].threshold
        return self.policy.threshold if own is None else own

    def watts(self, region: str, phase: str) -> float:
        """Modelled power of one site of `region` in an energy phase, W, without PUE."""
        section = self.regions[region]
        if phase == "train":
            return section.power_train
        if phase == "off" and section.power_off is not None:
            return section.power_off
        if phase in ("paused", "off"):
            return section.power_idle if section.power_paused is None else section.power_paused
        return section.power_idle

    def costs(self, region: str) -> SiteCosts:
        """What a site of `region` costs before anything is measured: seconds of the controller's clock, W."""
        own, policy = self.regions[region], self.policy
        return SiteCosts(
            start_s=policy.start if own.start is None else own.start,
            stop_s=policy.stop if own.stop is None else own.stop,
            sync_s=policy.sync if own.sync is None else own.sync,
            train_w=self.watts(region, "train"),
            idle_w=self.watts(region, "sync"),
            paused_w=self.watts(region, "paused"),
        )

    def to_json(self) -> str:
        """Canonical JSON, as the store keeps it."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


RENAMED: dict[type, dict[str, str]] = {
    TrainingSection: {"set": "overrides"},
    RoundsSection: {
        "outage": "upload_timeout",
        "stale_weight": "staleness_discount",
        "rate_power": "lr_scaling",
        "memory_power": "momentum_scaling",
    },
    PolicySection: {"most_sites": "max_sites"},
}
"""Section -> old key -> new key. Run files may use old keys until release 0.3; older stores always hold them."""


def config_from_json(text: str) -> RunConfig:
    """The inverse of `RunConfig.to_json`."""
    value = json.loads(text)
    hints = typing.get_type_hints(RunConfig)
    sections = {name: _stored(hints[name], value[name]) for name in value if name not in ("regions", "sites")}
    sites = {name: _stored(SiteSection, site) for name, site in value.get("sites", {}).items()}
    regions = {name: _stored(RegionSection, region) for name, region in value["regions"].items()}
    return RunConfig(regions=regions, sites=sites, **sections)


def _stored(kind: Any, value: Mapping[str, Any]) -> Any:
    """A section from its stored form. Keys of older releases are ignored; lists become tuples."""
    value = {RENAMED.get(kind, {}).get(name, name): held for name, held in value.items()}
    known = {f.name: value[f.name] for f in dataclasses.fields(kind) if f.name in value}
    if kind is RoundsSection:
        if "outer" in known:
            known["outer"] = tuple(OuterStep(**row) for row in known["outer"])
        # a run from before these keys existed keeps its behaviour
        known = {"lr_scaling": 0.0, "momentum_scaling": 0.0} | known
    for name, inner in INNER.get(kind, {}).items():
        if known.get(name) is not None:
            known[name] = _stored(inner, known[name])
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is tuple and name in known:
            known[name] = tuple(known[name])
    return kind(**known)


INNER: dict[type, dict[str, type]] = {
    RegionSection: {"solar": SolarSection, "battery": BatterySection},
    SiteSection: {"slurm": SlurmSection, "kubernetes": KubernetesSection},
}
"""Section -> key -> the section inside of it."""
