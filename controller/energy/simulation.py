"""The energy simulation: one Vessim microgrid per region, paced to the wall clock.

The only module that imports vessim. The sites of a region are one consumer, whose
power comes from the ledger. Panels and a battery are added if the run file has
them (`controller.energy.microgrid`). The grid connection supplies the rest, and
Vessim says how much power came from each. Every simulation step calls back with
the simulated time, which is the controller's clock. MCI is not passed through
Vessim, because Vessim cannot express "unknown", and the regime must not depend on
such a number. Power in W, time in seconds; `speed` simulated seconds pass per
real second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from controller.energy.clock import ReplayClock
from controller.energy.microgrid import Battery, Plant, Supply
from curtail.errors import CurtailError

log = logging.getLogger("curtail.energy")

Tick = Callable[[float, Mapping[str, Supply]], None]
"""Called after each step with the controller's clock and the supply of each region until the next step."""


def preload() -> None:
    """Import vessim before the replay clock starts, because the import takes seconds."""
    import vessim  # noqa: F401


class EnergySimulation:
    """Runs Vessim in a thread until it is stopped.

    Args:
        regions: names; one microgrid each.
        power: region -> present draw of its sites in W, with PUE; called in the simulation's thread.
        tick: called after every step; an exception is logged and does not end the simulation.
        step_s: wall seconds between steps.
        plants: region -> its panels and battery.
    """

    def __init__(
        self,
        regions: Sequence[str],
        power: Callable[[str], float],
        tick: Tick,
        replay: ReplayClock,
        step_s: float = 0.25,
        plants: Mapping[str, Plant] | None = None,
    ) -> None:
        self._plants = dict(plants or {})
        self._regions = tuple(regions)
        self._power = power
        self._tick = tick
        self._replay = replay
        # Vessim's steps are whole simulated seconds.
        self.step = max(1, round(replay.speed * step_s))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)
        self.failure: BaseException | None = None
        self._complaint = ""

    def start(self) -> None:
        """Start the simulation."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current step, and wait for that."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._simulate()
        except _Stopped:
            return
        except BaseException as error:
            # The status and /healthz report it. Without ticks no permit is renewed, so nothing trains.
            self.failure = error
            log.exception("the energy simulation failed")

    def _simulate(self) -> None:
        import vessim

        simulation = self

        class Draw(vessim.Signal):  # type: ignore[misc]
            """The present draw of a region's sites, W."""

            def __init__(self, region: str) -> None:
                self.region = region

            def at(self, elapsed: Any = None) -> float:
                return max(0.0, simulation._power(self.region))

        class Panels(vessim.Signal):  # type: ignore[misc]
            """The power of a region's panels, W."""

            def __init__(self, course: Callable[[float], float]) -> None:
                self.course = course

            def at(self, elapsed: Any = None) -> float:
                return self.course(simulation._replay.start + float(elapsed))

        class Pacer(vessim.Controller):  # type: ignore[misc]
            """Paces the simulation to the replay clock and passes each step on."""

            def step(self, now: datetime, microgrid_states: Mapping[str, Any]) -> None:
                simulation._after_step(now.timestamp(), microgrid_states)

        environment = vessim.Environment(
            sim_start=datetime.fromtimestamp(self._replay.start, UTC), step_size=self.step, name="curtail"
        )
        for region in self._regions:
            plant = self._plants.get(region, Plant())
            actors: list[Any] = [vessim.Consumer(SITES, Draw(region))]
            if plant.solar is not None:
                actors.append(vessim.Producer(SOLAR, Panels(plant.solar)))
            # In this order, because the grid balances what the battery cannot take or supply.
            battery = [] if plant.battery is None else [_battery(plant.battery)]
            environment.add_microgrid(actors=actors, dispatchables=[*battery, vessim.GridConnection()], name=region)
        environment.add_controller(Pacer())
        environment.run(until=_FOREVER)

    def _after_step(self, now: float, states: Mapping[str, Any]) -> None:
        supplies = {region: _supply(state) for region, state in states.items()}
        delay = (now - self._replay.now()) / self._replay.speed
        if self._stop.wait(max(0.0, delay)):
            raise _Stopped
        try:
            self._tick(now, supplies)
        except Exception as error:
            self._complain(error)
        else:
            self._complaint = ""

    def _complain(self, error: Exception) -> None:
        """Log repeated failures once: with a full disk four steps a second fail until someone frees space."""
        if str(error) == self._complaint:
            return
        self._complaint = str(error)
        expected = isinstance(error, CurtailError)
        log.error("a step failed: %s; retrying at every step", error, exc_info=None if expected else error)


SITES, SOLAR, BATTERY = "sites", "solar", "battery"
"""Names of a microgrid's components."""


def _battery(battery: Battery) -> Any:
    """Vessim's simple battery with separate limits for charge and discharge; Vessim has one rate for both."""
    import vessim

    class Limited(vessim.SimpleBattery):  # type: ignore[misc]
        def feasible_range(self, duration: float) -> tuple[float, float]:
            low, high = super().feasible_range(duration)
            if battery.max_discharge_w is not None:
                low = max(low, -battery.max_discharge_w)
            if battery.max_charge_w is not None:
                high = min(high, battery.max_charge_w)
            return low, high

    return Limited(BATTERY, battery.capacity_wh, battery.stored_wh / battery.capacity_wh, battery.min_soc)


def _supply(state: Mapping[str, Any]) -> Supply:
    """Convert Vessim's state of one microgrid."""
    flow, actors = float(state["p_grid"]), state["actor_states"]
    battery = state["dispatch_states"].get(BATTERY)
    return Supply(
        demand_w=max(0.0, -float(actors[SITES]["power"])),
        grid_w=max(0.0, -flow),
        export_w=max(0.0, flow),
        solar_w=float(actors[SOLAR]["power"]) if SOLAR in actors else None,
        battery_w=None if battery is None else float(battery["current_power"]),
        stored_wh=None if battery is None else float(battery["charge_level"]),
        soc=None if battery is None else float(battery["soc"]),
    )


_FOREVER = 100 * 365 * 86400
"""Seconds. Vessim needs a horizon, but a run ends when it is stopped."""


class _Stopped(Exception):
    """Raised inside the simulation to end it, because Vessim cannot be stopped otherwise."""
