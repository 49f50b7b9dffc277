"""The whole run file as one value, and the form in which the store keeps it."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from curtail.config.deciding import AccountingSection, FleetSection, PolicySection, SignalSection
from curtail.config.learning import (
    DataSection,
    ModelSection,
    OuterStep,
    RoundsSection,
    RunSection,
    TrainingSection,
)
from curtail.config.places import BatterySection, RegionSection, SiteSection, SolarSection
from curtail.costs import SiteCosts


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
    if kind is RoundsSection:
        if "outer" in known:
            known["outer"] = tuple(OuterStep(**row) for row in known["outer"])
        # a run from before these could be chosen goes on as it began
        known = {"rate_power": 0.0, "memory_power": 0.0} | known
    for name, inner in (("solar", SolarSection), ("battery", BatterySection)):
        if kind is RegionSection and known.get(name) is not None:
            known[name] = _stored(inner, known[name])
    return kind(**known)
