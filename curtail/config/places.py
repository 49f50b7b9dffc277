"""The sections about one region or one site: [regions.NAME] with its panels and battery, [sites.NAME]."""

from __future__ import annotations

from dataclasses import dataclass

from curtail.config.quantities import number, quantity


@dataclass(frozen=True, slots=True)
class SolarSection:
    """[regions.NAME.solar]: panels behind the region's grid connection."""

    peak: float = quantity("power", low=1.0, high=1e9)
    path: str = ""  # CSV of shares of the peak; relative to the run file
    column: str = ""  # of it; default: the region's name
    latitude: float | None = number(None, low=-90.0, high=90.0)  # degrees north; of a sky without clouds
    longitude: float | None = number(None, low=-180.0, high=180.0)  # degrees east


@dataclass(frozen=True, slots=True)
class BatterySection:
    """[regions.NAME.battery]: charged by the region's own panels, never from the grid."""

    capacity: float = quantity("energy", low=1.0, high=1e10)  # Wh
    min_soc: float = number(0.0, low=0.0, high=1.0)  # never discharged below this share of the capacity
    initial_soc: float | None = number(None, low=0.0, high=1.0)  # when the run begins; default: min_soc
    max_charge: float | None = quantity("power", None)  # default: no limit
    max_discharge: float | None = quantity("power", None)


@dataclass(frozen=True, slots=True)
class RegionSection:
    """[regions.NAME]"""

    power_train: float = quantity("power")  # of one site while it trains
    power_idle: float = quantity("power")  # loading, syncing, draining
    power_paused: float | None = quantity("power", None)  # standing by; default: power_idle
    power_off: float | None = quantity("power", None)  # switched off by on_pause; default: power_paused
    pue: float = number(1.0, low=1.0, high=5.0)
    threshold: float | None = quantity("intensity", None, low=None)  # default: [policy] threshold
    column: str = ""  # of the trace; default: the region's name
    signal: str = ""  # the region's name at a live source; default: the region's name
    zone: str = ""  # the region's name at a source of averages
    start: float | None = quantity("duration", None)  # controller clock; default: [policy] start
    stop: float | None = quantity("duration", None)
    sync: float | None = quantity("duration", None)
    solar: SolarSection | None = None
    battery: BatterySection | None = None


@dataclass(frozen=True, slots=True)
class SiteSection:
    """[sites.NAME]: how the controller switches a site's machines off and on."""

    on_pause: str = ""  # command for the shell, on the controller's machine
    on_resume: str = ""
    off_after: float = quantity("duration", 900.0)  # controller clock; shorter pauses are not worth it
    limit: float = quantity("duration", 300.0, low=1.0)  # wall time that each command may take
    wake_limit: float = quantity("duration", 900.0, low=1.0)  # wall time until the agent must be heard from
