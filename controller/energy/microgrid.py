"""A region's microgrid as values: its panels and battery, and the result of one simulation step.

`controller.energy.simulation` builds the microgrid with Vessim. This module has
what the ledger and the status need. Solar power supplies the sites first and then
charges the battery; the rest is exported to the grid and credited nowhere. The
battery is never charged from the grid, so each kWh from the grid is booked when it
is drawn, at the MCI of that time. Units: W, Wh, kWh, seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.energy.solar import Course
from curtail.config import RunConfig

NEGLIGIBLE = 1e-9
"""Shares of a draw closer than this to 0 or 1 are treated as rounding errors."""


@dataclass(frozen=True, slots=True)
class Battery:
    """A battery as the run file describes it, with its charge when the simulation starts."""

    capacity_wh: float
    stored_wh: float
    min_soc: float = 0.0
    max_charge_w: float | None = None
    max_discharge_w: float | None = None


@dataclass(frozen=True, slots=True)
class Plant:
    """The panels and the battery behind a region's grid connection."""

    solar: Course | None = None
    battery: Battery | None = None


@dataclass(frozen=True, slots=True)
class Supply:
    """Where a region's power comes from, for one step of the simulation.

    demand + export + charge = grid + solar + discharge.
    """

    demand_w: float  # demand of the sites, with PUE
    grid_w: float  # power from the grid
    export_w: float = 0.0
    solar_w: float | None = None  # None: no panels
    battery_w: float | None = None  # above 0: charging, below 0: discharging; None: no battery
    stored_wh: float | None = None  # at the start of the step
    soc: float | None = None  # state of charge: stored energy as a share of the capacity

    @property
    def own_w(self) -> float:
        """Power that the sites get from panels and battery."""
        return max(0.0, self.demand_w - self.grid_w)

    def grid_share(self, draw_w: float) -> float:
        """The share of a draw of `draw_w` that comes from the grid, from 0 to 1.

        The draw may have changed since the step began. Own power has not, so the grid supplies the difference.
        """
        if draw_w <= 0 or self.own_w <= NEGLIGIBLE * draw_w:
            return 1.0
        share = (draw_w - self.own_w) / draw_w
        return share if share > NEGLIGIBLE else 0.0


def plants(config: RunConfig, courses: Mapping[str, Course], stored: Mapping[str, float]) -> dict[str, Plant]:
    """The plant of each region.

    Args: stored: region -> Wh in its battery, if the run has used it before.
    """
    found = {}
    for name, region in config.regions.items():
        battery = None
        if region.battery is not None:
            section = region.battery
            first = section.min_soc if section.initial_soc is None else section.initial_soc
            holds = min(section.capacity, max(0.0, stored.get(name, first * section.capacity)))
            battery = Battery(
                section.capacity, holds, section.min_soc, section.max_charge, section.max_discharge
            )  # fmt: skip
        found[name] = Plant(courses.get(name), battery)
    return found
