"""The run file: one TOML file that describes a run, read strictly.

An unknown key, a missing key, a wrong type or a quantity without its unit is a
`ConfigError` that names the key and says what to write instead. Quantities
carry their unit in the file ("100 g/kWh", "2.024 kW", "60 s") and are plain
numbers in one unit afterwards: gCO2/kWh, W, s. docs/reference/run-file.md
describes every key. A new key is a field of its section in `schema`, with its
bound as an annotation from `curtail.wire.bounds` or `quantities`; checks across
several keys go into `runfile`.
"""

from __future__ import annotations

from curtail.config.quantities import QUANTITIES
from curtail.config.runfile import load_config, parse_config
from curtail.config.schema import (
    CODECS,
    AccountingSection,
    BatterySection,
    DataSection,
    FleetSection,
    ModelSection,
    OuterStep,
    PolicySection,
    RegionSection,
    RoundsSection,
    RunConfig,
    RunSection,
    SignalSection,
    SolarSection,
    TrainingSection,
    config_from_json,
)
from curtail.config.site_schema import KubernetesSection, ProvisionSection, SiteSection, SlurmSection

__all__ = [
    "CODECS",
    "QUANTITIES",
    "AccountingSection",
    "BatterySection",
    "DataSection",
    "FleetSection",
    "KubernetesSection",
    "ModelSection",
    "OuterStep",
    "PolicySection",
    "ProvisionSection",
    "RegionSection",
    "RoundsSection",
    "RunConfig",
    "RunSection",
    "SignalSection",
    "SiteSection",
    "SlurmSection",
    "SolarSection",
    "TrainingSection",
    "config_from_json",
    "load_config",
    "parse_config",
]  # fmt: skip
