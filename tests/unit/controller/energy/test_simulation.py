"""The energy simulation: paced by the clock, robust against failing steps, and it stops."""

from __future__ import annotations

import threading

from doubles import FakeClock

from controller.energy.clock import ReplayClock
from controller.energy.microgrid import Supply
from controller.energy.simulation import EnergySimulation
from curtail.errors import DiskError
from curtail.system.clock import SystemClock

START = 1767225600.0


def run(tick, speed: float = 1000.0, steps: int = 4, power=lambda region: 0.0):
    """Simulate until `steps` steps were made; the simulation."""
    enough = threading.Event()
    seen: list[float] = []

    def counted(now, grid):
        seen.append(now)
        if len(seen) >= steps:
            enough.set()
        tick(now, grid)

    simulation = EnergySimulation(["A", "B"], power, counted, ReplayClock(START, speed, SystemClock()), step_s=0.02)
    simulation.start()
    assert enough.wait(60.0)
    simulation.stop()
    assert simulation.failure is None
    return simulation, seen


def test_what_the_sites_draw_is_what_the_grid_supplies():
    seen = []
    run(lambda now, supplies: seen.append(dict(supplies)), power=lambda region: {"A": 3000.0, "B": 0.0}[region])
    assert seen[1] == {"A": Supply(3000.0, 3000.0), "B": Supply(0.0, 0.0)}
    assert seen[1]["A"].grid_share(3000.0) == seen[1]["A"].grid_share(7.0) == 1.0


def test_steps_are_whole_seconds_of_the_replay():
    simulation, seen = run(lambda now, grid: None)
    assert simulation.step == 20
    assert [now - START for now in seen[:4]] == [0.0, 20.0, 40.0, 60.0]


def test_a_failing_step_is_logged_once_and_the_next_one_tries_again(caplog):
    def fail(now, grid):
        raise DiskError("the disk is full", "free some space")

    run(fail, steps=5)
    assert [record.getMessage() for record in caplog.records if "a step failed" in record.getMessage()] == [
        "a step failed: the disk is full: free some space; retrying at every step"
    ]


def test_the_clock_of_a_replay_runs_at_its_speed():
    clock = FakeClock()
    replay = ReplayClock(START, 60.0, clock)
    clock.sleep(2.0)
    assert replay.now() == START + 120.0
