"""The run file: one TOML file that describes a run, read strictly.

An unknown key, a missing key, a wrong type or a quantity without its unit is a
`ConfigError` that names the key and says what to write instead. Quantities
carry their unit in the file ("100 g/kWh", "2.024 kW", "60 s") and are plain
numbers in one unit afterwards: gCO2/kWh, W, s. What each key means is in
docs/run-file.md.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from curtail.costs import SHORTEST_WINDOW_S, SiteCosts
from curtail.errors import ConfigError, NotFound
from curtail.reading import POUNDS_PER_MWH, UNITS

_QUANTITY = re.compile(r"^\s*([-+]?\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*([A-Za-z/%]+)\s*$")

_UNITS: dict[str, dict[str, float]] = {
    "intensity": {"g/kWh": 1.0, "lb/MWh": POUNDS_PER_MWH},
    "power": {"W": 1.0, "kW": 1000.0, "MW": 1e6},
    "duration": {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0},
    "energy": {"Wh": 1.0, "kWh": 1000.0, "MWh": 1e6},
}

_SECRET = re.compile(r"passw|secret|token|credential|api_?key", re.IGNORECASE)

_EXAMPLES = {"intensity": "100 g/kWh", "power": "2.024 kW", "duration": "60 s", "energy": "10 kWh"}


def _quantity(
    kind: str,
    default: float | object | None = dataclasses.MISSING,
    *,
    low: float | None = 0.0,
    high: float | None = None,
) -> Any:
    metadata = {"quantity": kind, "low": low, "high": high}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def _number(default: Any = dataclasses.MISSING, *, low: float | None = None, high: float | None = None) -> Any:
    metadata = {"low": low, "high": high}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class RunSection:
    """[run]"""

    name: str
    seed: int = 1


@dataclass(frozen=True, slots=True)
class ModelSection:
    """[model]"""

    preset: str


@dataclass(frozen=True, slots=True)
class DataSection:
    """[data]"""

    path: str  # folder made by `curtail data prepare`; relative to the run file


@dataclass(frozen=True, slots=True)
class TrainingSection:
    """[training]"""

    token_budget: int = _number(low=1)
    batch_samples: int = _number(low=1)  # samples per optimizer step of a site
    # per rank and pass; 0, in the file "auto": on a GPU what fits, on a CPU the whole slice
    device_batch_samples: int = field(default=0, metadata={"low": 0, "high": None, "words": {"auto": 0}})
    recipe: str = "reference"  # hyperparameters by name; `nanochat.recipe` knows which there are
    set: tuple[str, ...] = ()  # KEY=VALUE, on top of the recipe
    warmdown_fraction: float | None = _number(None, low=0.0, high=1.0)  # default: the recipe's


CODECS = ("fp32", "bf16", "int8", "int4")
"""Forms in which a delta can travel; `nanochat.delta` makes and reads them."""


@dataclass(frozen=True, slots=True)
class OuterStep:
    """One row of [rounds.outer]: the outer step when `sites` or more contribute, up to the next row."""

    sites: int
    lr: float = _number(1.0, low=0.0)
    momentum: float = _number(0.0, low=0.0, high=0.999)  # Nesterov


@dataclass(frozen=True, slots=True)
class RoundsSection:
    """[rounds]"""

    inner_steps: int = _number(100, low=1)  # most steps of a site in one round
    length: float = _quantity("duration", 300.0, low=0.1)  # wall time after which a site commits
    grace: float = _quantity("duration", 30.0)  # most wall time that a round waits for commits after that
    quorum: int = _number(1, low=1)  # contributions without which a round waits longer than the grace
    codec: str = field(default="int8", metadata={"choices": CODECS})  # of deltas
    broadcast: str = field(default="", metadata={"choices": CODECS})  # of updates; default: as codec
    overlap: bool = False  # FEDERATED sites train on while their contribution travels and is merged
    ahead_steps: int | None = _number(None, low=0)  # steps a lease exceeds a round by; default: see `ahead`
    rewarm_steps: int = _number(20, low=0)  # over which a site without inner state raises its learning rate
    outage: float = _quantity("duration", 600.0)  # how long a contribution waits for an unreachable controller
    stale_weight: float = _number(0.0, low=0.0, high=1.0)  # per version of staleness; 0: late ones are refused
    outer: tuple[OuterStep, ...] = (OuterStep(2, 0.7, 0.5),)  # ascending by sites; chosen in docs/federated.md
    keep_versions: int = _number(3, low=2)

    @property
    def ahead(self) -> int:
        """Steps by which a lease exceeds the round where the job may train on.

        A sole site's lease grows by the samples after it. With several sites the next one holds those, so
        that a lease lasts for what it was made for: ten rounds, of which one is not overlapped.
        """
        if self.ahead_steps is not None:
            return self.ahead_steps
        return self.inner_steps * (9 if self.overlap else 1)

    @property
    def broadcast_codec(self) -> str:
        """Form in which updates travel."""
        return self.broadcast or self.codec


@dataclass(frozen=True, slots=True)
class PolicySection:
    """[policy]"""

    threshold: float = _quantity("intensity", 100.0, low=None)
    max_reading_age: float = _quantity("duration", 600.0, low=1.0)  # controller clock
    enter_dwell: float = _quantity("duration", 0.0)  # controller clock
    leave_lead: float = _quantity("duration", 0.0)  # controller clock; needs a forecast
    permit: float = _quantity("duration", 15.0, low=0.5)  # wall time a permit lives without renewal
    start_age: float | None = _quantity("duration", None)  # controller clock; default: half of max_reading_age
    min_window: float = _quantity("duration", SHORTEST_WINDOW_S)  # controller clock; needs a forecast
    leave_above: float | None = _quantity("intensity", None, low=None)  # default: at the threshold
    deadline: str = ""  # a moment with its zone, or a duration from the run's start; `deadline_at`
    budget_kg: float | None = _number(None, low=0.0)  # most kgCO2 attributed to the run
    safety: float | None = _number(None, low=1.0)  # factor on the work; default: by how sure the forecast is
    most_sites: int | None = _number(None, low=1)  # more than these are of no use
    start: float = _quantity("duration", 100.0)  # controller clock; permit to first step, until it is measured
    stop: float = _quantity("duration", 15.0)  # controller clock; end of the permit to released GPUs
    sync: float = _quantity("duration", 30.0)  # controller clock; of a federated round without training
    tokens_per_s: float | None = _number(None, low=0.0)  # wall time; of one site that trains, until it is measured

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
        if _QUANTITY.match(self.deadline):
            return started + _parse_quantity("duration", self.deadline, "[policy] deadline")
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

    source: str = "trace"  # trace, constant, watttime, or a plug-in's name; `controller.signals.choose` knows which
    path: str = ""  # of the trace; relative to the run file
    unit: str = field(default="", metadata={"choices": UNITS})  # of the trace
    forecast: bool = False  # the trace's own future is the forecast
    value: float | None = _quantity("intensity", None, low=None)  # of the constant
    poll: float = _quantity("duration", 30.0, low=1.0)  # wall time between two answers of a live source
    horizon: float = _quantity("duration", 86400.0)  # of a live source's forecast
    credentials: str = ""  # file with names and passwords; relative to the run file
    url: str = ""  # of the source; default: its own
    average: str = ""  # a source of averages, for accounts only
    options: Mapping[str, Any] | None = None  # of a plug-in


@dataclass(frozen=True, slots=True)
class FleetSection:
    """[fleet]"""

    heartbeat: float = _quantity("duration", 2.0, low=0.05)  # wall time
    lost_after: float = _quantity("duration", 15.0, low=0.2)  # wall time without a heartbeat


@dataclass(frozen=True, slots=True)
class AccountingSection:
    """[accounting]: what the full boundary of the ledger adds; docs/carbon-accounting.md gives the sources."""

    network_kwh_per_gb: float = _number(0.06, low=0.0, high=100.0)  # of what sites send and fetch
    controller_power: float = _quantity("power", 20.0)  # of the controller's machine, the whole run long
    intensity: float = _quantity("intensity", 480.0)  # of network and controller, wherever they are
    embodied_g_per_site_hour: float = _number(29.0, low=0.0, high=1e6)  # making of a site's machines, per hour of use


@dataclass(frozen=True, slots=True)
class SolarSection:
    """[regions.NAME.solar]: panels behind the region's grid connection."""

    peak: float = _quantity("power", low=1.0, high=1e9)
    path: str = ""  # CSV of shares of the peak; relative to the run file
    column: str = ""  # of it; default: the region's name
    latitude: float | None = _number(None, low=-90.0, high=90.0)  # degrees north; of a sky without clouds
    longitude: float | None = _number(None, low=-180.0, high=180.0)  # degrees east


@dataclass(frozen=True, slots=True)
class BatterySection:
    """[regions.NAME.battery]: charged by the region's own panels, never from the grid."""

    capacity: float = _quantity("energy", low=1.0, high=1e10)  # Wh
    min_soc: float = _number(0.0, low=0.0, high=1.0)  # never discharged below this share of the capacity
    initial_soc: float | None = _number(None, low=0.0, high=1.0)  # when the run begins; default: min_soc
    max_charge: float | None = _quantity("power", None)  # default: no limit
    max_discharge: float | None = _quantity("power", None)


@dataclass(frozen=True, slots=True)
class SiteSection:
    """[sites.NAME]: how the controller switches a site's machines off and on."""

    on_pause: str = ""  # command for the shell, on the controller's machine
    on_resume: str = ""
    off_after: float = _quantity("duration", 900.0)  # controller clock; shorter pauses are not worth it
    limit: float = _quantity("duration", 300.0, low=1.0)  # wall time that each command may take
    wake_limit: float = _quantity("duration", 900.0, low=1.0)  # wall time until the agent must be heard from


@dataclass(frozen=True, slots=True)
class RegionSection:
    """[regions.NAME]"""

    power_train: float = _quantity("power")  # of one site while it trains
    power_idle: float = _quantity("power")  # loading, syncing, draining
    power_paused: float | None = _quantity("power", None)  # standing by; default: power_idle
    power_off: float | None = _quantity("power", None)  # switched off by on_pause; default: power_paused
    pue: float = _number(1.0, low=1.0, high=5.0)
    threshold: float | None = _quantity("intensity", None, low=None)  # default: [policy] threshold
    column: str = ""  # of the trace; default: the region's name
    signal: str = ""  # the region's name at a live source; default: the region's name
    zone: str = ""  # the region's name at a source of averages
    start: float | None = _quantity("duration", None)  # controller clock; default: [policy] start
    stop: float | None = _quantity("duration", None)
    sync: float | None = _quantity("duration", None)
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
    rounds: RoundsSection = RoundsSection()
    policy: PolicySection = PolicySection()
    signal: SignalSection = SignalSection()
    fleet: FleetSection = FleetSection()
    accounting: AccountingSection = AccountingSection()
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
        """Canonical JSON, the form kept in the store."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def load_config(path: Path) -> RunConfig:
    """The run file at `path`; its paths are made absolute.

    Raises: NotFound, ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"there is no run file {path}", "write one as docs/run-file.md shows") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the run file {path}: {error}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no valid TOML: {error}") from error
    config = parse_config(table, str(path))

    def beside(file: str) -> str:
        return str((path.parent / file).resolve()) if file else ""

    signal = config.signal
    regions = {
        name: region
        if region.solar is None
        else dataclasses.replace(region, solar=dataclasses.replace(region.solar, path=beside(region.solar.path)))
        for name, region in config.regions.items()
    }
    return dataclasses.replace(
        config,
        regions=regions,
        data=DataSection(path=beside(config.data.path)),
        signal=dataclasses.replace(signal, path=beside(signal.path), credentials=beside(signal.credentials)),
    )


def parse_config(table: Mapping[str, Any], where: str = "run file") -> RunConfig:
    """The run described by a parsed TOML table.

    Raises: ConfigError: names the key and what to write instead.
    """
    hints: dict[str, Any] = {
        "run": RunSection,
        "model": ModelSection,
        "data": DataSection,
        "training": TrainingSection,
        "rounds": RoundsSection,
        "policy": PolicySection,
        "signal": SignalSection,
        "fleet": FleetSection,
        "accounting": AccountingSection,
    }
    _refuse_unknown(table, [*hints, "regions", "sites"], where, "section")
    sections: dict[str, Any] = {}
    for name, kind in hints.items():
        if name in table:
            sections[name] = _section(kind, table[name], f"{where}: [{name}]")
        elif name in ("run", "model", "data", "training"):
            raise ConfigError(f"{where}: section [{name}] is missing", "docs/run-file.md shows a whole run file")
    regions = table.get("regions")
    if not isinstance(regions, Mapping) or not regions:
        raise ConfigError(f"{where}: no region is described", "add a section [regions.NAME] with power_train")
    parsed = {name: _section(RegionSection, value, f"{where}: [regions.{name}]") for name, value in regions.items()}
    sites = table.get("sites", {})
    if not isinstance(sites, Mapping):
        raise ConfigError(f"{where}: [sites] holds one section for each site", "write [sites.NAME]")
    named = {name: _section(SiteSection, value, f"{where}: [sites.{name}]") for name, value in sites.items()}
    config = RunConfig(regions=parsed, sites=named, **sections)
    _check_together(config, where)
    for name, region in parsed.items():
        _check_microgrid(region, f"{where}: [regions.{name}")
    for name, site in named.items():
        if bool(site.on_pause) != bool(site.on_resume):
            given, lacks = ("on_pause", "on_resume") if site.on_pause else ("on_resume", "on_pause")
            raise ConfigError(
                f"{where}: [sites.{name}] has {given} and no {lacks}",
                f'a site that is switched off must be switched on again: add {lacks} = "..."',
            )
    return config


def config_from_json(text: str) -> RunConfig:
    """The inverse of `RunConfig.to_json`."""
    value = json.loads(text)
    hints = typing.get_type_hints(RunConfig)
    sections = {name: _stored(hints[name], value[name]) for name in value if name not in ("regions", "sites")}
    sites = {name: _stored(SiteSection, site) for name, site in value.get("sites", {}).items()}
    regions = {name: _stored(RegionSection, region) for name, region in value["regions"].items()}
    return RunConfig(regions=regions, sites=sites, **sections)


def _stored(kind: Any, value: Mapping[str, Any]) -> Any:
    """A section in its stored form; keys that an older version had are passed over. JSON knows no tuples."""
    known = {f.name: value[f.name] for f in dataclasses.fields(kind) if f.name in value}
    if kind is TrainingSection and "set" in known:
        known["set"] = tuple(known["set"])
    if kind is RoundsSection and "outer" in known:
        known["outer"] = tuple(OuterStep(**row) for row in known["outer"])
    for name, inner in (("solar", SolarSection), ("battery", BatterySection)):
        if kind is RegionSection and known.get(name) is not None:
            known[name] = _stored(inner, known[name])
    return kind(**known)


def _check_microgrid(region: RegionSection, where: str) -> None:
    solar, battery = region.solar, region.battery
    if solar is not None:
        placed = solar.latitude is not None and solar.longitude is not None
        if bool(solar.path) == placed or (solar.latitude is None) != (solar.longitude is None):
            raise ConfigError(
                f"{where}.solar] says no course of the power, or two",
                "give path, a CSV with shares of the peak, or both latitude and longitude for a sky without clouds",
            )
    if battery is None:
        return
    if solar is None:
        raise ConfigError(
            f"{where}.battery] has nothing that charges it",
            f"it is charged by the region's own panels only: add {where.rpartition(' ')[2]}.solar]",
        )
    if battery.initial_soc is not None and battery.initial_soc < battery.min_soc:
        raise ConfigError(
            f"{where}.battery] initial_soc = {battery.initial_soc:g} is below min_soc = {battery.min_soc:g}",
            "raise it, or leave it out to begin at min_soc",
        )


def _check_together(config: RunConfig, where: str) -> None:
    if config.fleet.lost_after < 2 * config.fleet.heartbeat:
        raise ConfigError(
            f"{where}: [fleet] lost_after is shorter than two heartbeats",
            "one lost message would lose a site; raise lost_after or lower heartbeat",
        )
    if config.policy.permit < 2 * config.fleet.heartbeat:
        raise ConfigError(
            f"{where}: [policy] permit is shorter than two heartbeats",
            "permits would lapse between renewals; raise permit or lower [fleet] heartbeat",
        )
    policy = config.policy
    if policy.deadline_at(0.0) is not None and policy.budget_kg is not None:
        raise ConfigError(
            f"{where}: [policy] deadline and budget_kg do not go together",
            "a deadline asks for the cleanest power in time, a budget for the least time within the kg; keep one",
        )
    for region in config.regions:
        if policy.leave_above is not None and policy.leave_above < config.threshold(region):
            raise ConfigError(
                f"{where}: [policy] leave_above is below the threshold of region {region}",
                "it is a band above the threshold, in which what trains goes on; raise it, or leave it out",
            )
    if config.training.device_batch_samples > config.training.batch_samples:
        raise ConfigError(f"{where}: [training] device_batch_samples is larger than batch_samples")


def _section(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: a section is needed, not {value!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    _refuse_unknown(value, list(fields), where, "key")
    hints = typing.get_type_hints(kind)
    out = {}
    for name, spec in fields.items():
        if name in value:
            out[name] = _value(hints[name], spec.metadata, value[name], f"{where} {name}")
        elif spec.default is dataclasses.MISSING:
            quantity = spec.metadata.get("quantity")
            remedy = f'add {name} = "{_EXAMPLES[quantity]}"' if quantity else f"add {name} = ..."
            raise ConfigError(f"{where}: key {name} is missing", remedy)
    return kind(**out)


def _value(hint: Any, metadata: Mapping[str, Any], value: Any, where: str) -> Any:
    if isinstance(value, str) and value in metadata.get("words", ()):
        return metadata["words"][value]
    if hint == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ConfigError(f"{where} = {value!r}: a list of texts is needed", 'write for example ["KEY=VALUE"]')
        return tuple(value)
    if hint == tuple[OuterStep, ...]:
        return _outer(value, where)
    if hint == Mapping[str, Any] | None:
        return _options(value, where)
    if hint in (SolarSection | None, BatterySection | None):
        return _section(SolarSection if hint == SolarSection | None else BatterySection, value, where)
    if hint is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} = {value!r}: true or false is needed")
        return value
    if "quantity" in metadata:
        number = _parse_quantity(metadata["quantity"], value, where)
        return _within(number, metadata, where)
    if hint is str:
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{where} = {value!r}: a text in quotes is needed")
        choices = metadata.get("choices")
        if choices and value not in choices:
            raise ConfigError(f"{where} = {value!r} is not known", f"use one of {', '.join(choices)}")
        return value
    if hint in (int, int | None):
        if isinstance(value, bool) or not isinstance(value, int):
            words = "".join(f', or "{word}",' for word in metadata.get("words", ()))
            raise ConfigError(f"{where} = {value!r}: a whole number without a unit{words} is needed")
        return _within(value, metadata, where)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{where} = {value!r}: a number without a unit is needed")
    return _within(float(value), metadata, where)


def _options(value: Any, where: str) -> Mapping[str, Any]:
    """A plug-in's own table: no secrets, and nothing but what JSON can keep."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} = {value!r}: a table is needed", 'write for example {zone = "north"}')
    for key, inner in value.items():
        if _SECRET.search(key):
            raise ConfigError(
                f"{where} {key} looks like a secret",
                "run files are kept and shown; let the plug-in read it from the environment or a file",
            )
        if isinstance(inner, Mapping):
            _options(inner, f"{where} {key}")
    try:
        json.dumps(value)
    except TypeError:
        raise ConfigError(f"{where}: only texts, numbers, true, false, lists and tables can be used") from None
    return dict(value)


def _outer(value: Any, where: str) -> tuple[OuterStep, ...]:
    """The table of outer steps: numbers of sites, from 2 on, each with a rate and a momentum."""
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{where}: a table by number of sites is needed", "write 2 = {lr = 1.0, momentum = 0.0}")
    rows = []
    for sites, row in value.items():
        if not str(sites).isdecimal() or int(sites) < 2:
            raise ConfigError(
                f"{where}: {sites!r} is no number of sites",
                "use 2 or more; a sole contributor's weights stay as they are",
            )
        if isinstance(row, Mapping) and "sites" in row:
            raise ConfigError(f"{where} {sites}: unknown key 'sites'", "known here: lr, momentum")
        rows.append(
            _section(OuterStep, {"sites": int(sites), **row} if isinstance(row, Mapping) else row, f"{where} {sites}")
        )
    rows.sort(key=lambda row: row.sites)
    if rows[0].sites != 2:
        raise ConfigError(f"{where}: the row for 2 sites is missing", "add 2 = {lr = 1.0, momentum = 0.0}")
    return tuple(rows)


def _within(number: Any, metadata: Mapping[str, Any], where: str) -> Any:
    low, high = metadata.get("low"), metadata.get("high")
    if low is not None and not number >= low:
        raise ConfigError(f"{where} = {number:g} is too small", f"at least {low:g} is needed")
    if high is not None and not number <= high:
        raise ConfigError(f"{where} = {number:g} is too large", f"at most {high:g} is allowed")
    return number


def _parse_quantity(kind: str, value: Any, where: str) -> float:
    units = _UNITS[kind]
    listed = ", ".join(units)
    if not isinstance(value, str):
        raise ConfigError(f"{where} = {value!r} has no unit", f'write for example "{_EXAMPLES[kind]}" ({listed})')
    match = _QUANTITY.match(value)
    if match is None:
        raise ConfigError(f"{where} = {value!r} is no quantity", f'write for example "{_EXAMPLES[kind]}" ({listed})')
    if match[2] not in units:
        raise ConfigError(f"{where} = {value!r} has the wrong unit {match[2]!r}", f"use one of {listed}")
    return float(match[1].replace("_", "")) * units[match[2]]


def _refuse_unknown(value: Mapping[str, Any], known: list[str], where: str, what: str) -> None:
    for name in value:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown {what} {name!r}", remedy)
