"""Panels and batteries behind the grid connection: what they give, what the grid still supplies, and the sums."""

from __future__ import annotations

import threading

import pytest
from doubles import FakeClock

from controller.energy.clock import ReplayClock
from controller.energy.microgrid import Battery, Plant, Supply, plants
from controller.energy.simulation import EnergySimulation
from controller.energy.solar import SLOT_S, ClearSky, Recorded, irradiance, load_course, open_courses
from curtail.carbon import accounting
from curtail.config import BatterySection, RunConfig, SolarSection, config_from_json, parse_config
from curtail.errors import ConfigError, DataError, NotFound

START = 1767225600.0  # 2026-01-01 00:00 UTC, a slot's beginning


def simulate(plant: Plant, draw: float, steps: int, step: int = 60) -> list[Supply]:
    """Supplies of `steps` steps of `step` simulated seconds, through Vessim itself."""
    seen: list[Supply] = []
    enough = threading.Event()
    clock = FakeClock(0.0)  # it is where the replay shall be next, so that no step waits

    def tick(now, supplies):
        if len(seen) < steps:
            seen.append(supplies["A"])
        clock.t += 1e9  # the next step is overdue
        if len(seen) >= steps:
            enough.set()

    replay = ReplayClock(START, step / 0.25, clock)
    simulation = EnergySimulation(["A"], lambda region: draw, tick, replay, plants={"A": plant})
    assert simulation.step == step
    simulation.start()
    assert enough.wait(60.0)
    simulation.stop()
    assert simulation.failure is None
    return seen


def constant(watts):
    return lambda now: watts


def balanced(supply: Supply) -> float:
    """Power in less power out."""
    gets = supply.grid_w + (supply.solar_w or 0.0) - (supply.battery_w or 0.0)
    return gets - supply.demand_w - supply.export_w


def test_panels_that_cover_the_load_leave_nothing_to_the_grid_and_the_rest_is_exported():
    for supply in simulate(Plant(constant(3000.0)), 2000.0, 5):
        assert (supply.grid_w, supply.export_w, supply.solar_w) == (0.0, 1000.0, 3000.0)
        assert supply.grid_share(2000.0) == 0.0
        assert abs(balanced(supply)) < 1e-9


def test_panels_that_cover_a_part_lower_the_share_of_the_grid():
    for supply in simulate(Plant(constant(500.0)), 2000.0, 3):
        assert supply.grid_share(2000.0) == pytest.approx(0.75, abs=1e-12)


def test_a_surplus_fills_the_battery_first_and_a_lack_empties_it_before_the_grid_helps():
    sun = Recorded(4000.0, (START, START + 1800.0), (1.0, 0.0), 1800.0)
    seen = simulate(Plant(sun, Battery(1000.0, 200.0, min_soc=0.2)), 2000.0, 60)
    assert [s.battery_w for s in seen[:3]] == [2000.0] * 3, "charged from the surplus"
    full = next(i for i, s in enumerate(seen) if s.soc >= 1.0 - 1e-12)
    assert full == 24 and seen[26].export_w == pytest.approx(2000.0)
    night = seen[30:]
    assert night[0].solar_w == 0.0 and night[0].battery_w == -2000.0 and night[0].grid_share(2000.0) == 0.0
    empty = next(i for i, s in enumerate(night) if s.grid_share(2000.0) == 1.0)
    assert empty == 24, "800 Wh at 2 kW"
    assert all(s.soc == pytest.approx(0.2, abs=1e-9) for s in night[empty:])
    assert all(s.grid_share(2000.0) == 1.0 for s in night[empty:])


def test_the_sums_of_energy_balance_to_a_billionth():
    sun = Recorded(3000.0, tuple(START + 600.0 * n for n in range(8)), (0.1, 0.9, 0.4, 1.0, 0.0, 0.7, 0.0, 0.0), 600.0)
    seen = simulate(Plant(sun, Battery(700.0, 100.0, 0.1, max_charge_w=900.0, max_discharge_w=650.0)), 1234.5, 80)
    assert max(abs(balanced(s)) for s in seen) < 1e-9
    used = sum(s.battery_w or 0.0 for s in seen[:-1]) * 60 / 3600
    assert seen[-1].stored_wh - seen[0].stored_wh == pytest.approx(used, abs=1e-9)
    assert max(s.battery_w for s in seen) == 900.0 and min(s.battery_w for s in seen) == -650.0
    grid = sum(s.grid_w for s in seen) * 60 / accounting.JOULES_PER_KWH
    booked, own = 0.0, 0.0
    for index, supply in enumerate(seen):
        at, share = START + 60.0 * index, supply.grid_share(1234.5)
        entry = accounting.close(
            accounting.Interval("s", "A", "train", at, 1234.5, "modelled", 1.0, share, 100.0, True), at + 60.0
        )
        booked, own = booked + entry.kwh, own + accounting.own_kwh(entry)
    assert booked == pytest.approx(grid, abs=1e-9)
    assert booked + own == pytest.approx(1234.5 * 80 * 60 / accounting.JOULES_PER_KWH, abs=1e-9)
    solar = sum(s.solar_w for s in seen) * 60 / accounting.JOULES_PER_KWH
    exported = sum(s.export_w for s in seen) * 60 / accounting.JOULES_PER_KWH
    last = (seen[-1].battery_w or 0.0) * 60 / 3600
    stored = (seen[-1].stored_wh + last - seen[0].stored_wh) / 1000
    assert own + exported + stored == pytest.approx(solar, abs=1e-9)


def test_what_is_drawn_beyond_the_steps_demand_comes_from_the_grid():
    supply = Supply(demand_w=1000.0, grid_w=500.0, solar_w=500.0)
    assert supply.own_w == 500.0 and supply.grid_share(2000.0) == 0.75
    assert supply.grid_share(400.0) == 0.0 and supply.grid_share(0.0) == 1.0


def region_file(**parts) -> RunConfig:
    return parse_config(
        {
            "run": {"name": "x"}, "model": {"preset": "d2-test"}, "data": {"path": "d"},
            "training": {"token_budget": 1000, "batch_samples": 1},
            "regions": {"A": {"power_train": "2 kW", "power_idle": "500 W", **parts}},
        }
    )  # fmt: skip


SUN = {"peak": "5 kW", "latitude": 30.0, "longitude": 0.0}


def test_a_battery_goes_on_with_what_it_held_and_begins_at_its_least():
    config = region_file(solar=SUN, battery={"capacity": "10 kWh", "min_soc": 0.2})
    courses = open_courses(config)
    assert plants(config, courses, {})["A"].battery.stored_wh == 2000.0
    assert plants(config, courses, {"A": 7000.0})["A"].battery.stored_wh == 7000.0
    assert plants(config, courses, {"A": 70000.0})["A"].battery.stored_wh == 10000.0, "a smaller one since"
    assert plants(region_file(), {}, {})["A"] == Plant()


def test_the_parts_of_a_microgrid_survive_the_store():
    config = region_file(solar=SUN, battery={"capacity": "10 kWh", "max_charge": "2 kW"})
    assert config_from_json(config.to_json()) == config
    assert config.regions["A"].solar == SolarSection(5000.0, latitude=30.0, longitude=0.0)
    assert config.regions["A"].battery == BatterySection(10000.0, max_charge=2000.0)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"solar": {**SUN, "peak": "-5 kW"}}, r"peak = -5000 is too small: at least 1"),
        ({"solar": {**SUN, "peak": "5000 MW"}}, "peak = '5000 MW' is too large: at most 1000 MW"),
        ({"solar": {"peak": "5 kW"}}, r"needs exactly one source.*give path"),
        ({"solar": {**SUN, "path": "x.csv"}}, r"needs exactly one source"),
        ({"solar": {"peak": "5 kW", "latitude": 30.0}}, r"both latitude and longitude"),
        ({"solar": {**SUN, "latitude": 95.0}}, r"latitude = 95 is too large"),
        ({"battery": {"capacity": "10 kWh"}}, r"charged by the region's own panels only: add \[regions\.A\.solar\]"),
        ({"solar": SUN, "battery": {"capacity": "-1 kWh"}}, r"capacity = -1000 is too small"),
        ({"solar": SUN, "battery": {"capacity": 10}}, r'capacity = 10 has no unit: write for example "10 kWh"'),
        ({"solar": SUN, "battery": {"capacity": "10 kWh", "min_soc": 20}}, r"min_soc = 20 is too large: at most 1"),
        ({"solar": SUN, "battery": {"capacity": "10 kWh", "min_soc": 0.5, "initial_soc": 0.1}}, r"begin at min_soc"),
        ({"solar": SUN, "battery": {"capacity": "10 kWh", "max_charge": "-1 W"}}, r"max_charge = -1 is too small"),
        ({"solar": SUN, "battery": {"capacity": "10 kWh", "soc": 1}}, r"unknown key 'soc'"),
        ({"solar": 5}, r"a section is needed"),
    ],
)
def test_an_absurd_microgrid_is_refused_with_a_remedy(parts, words):
    with pytest.raises(ConfigError, match=words):
        region_file(**parts)


def test_a_recorded_course_is_shares_of_the_peak_and_nothing_beyond_its_ends(tmp_path):
    path = tmp_path / "sun.csv"
    path.write_text(
        "point_time,A,B\n2026-01-01 00:00:00+00:00,0.5,1\n2026-01-01 01:00:00+00:00,,1\n2026-01-01T02:00:00Z,1,0\n"
    )
    course = load_course(path, "A", 4000.0)
    assert [course(START + hour * 3600.0) for hour in (-0.1, 0, 0.9, 1, 2, 2.99, 3)] == [
        0,
        2000,
        2000,
        0,
        4000,
        4000,
        0,
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "point_time,A\n2026-01-01 00:00Z,0.5\n2026-01-01 01:00Z,1200\n",
            "not a share of the peak: give numbers from 0",
        ),
        ("point_time,A\n2026-01-01 00:00Z,0.5\n2026-01-01 01:00Z,-0.1\n", "not a share of the peak"),
        ("point_time,A\n2026-01-01 00:00Z,0.5\n2026-01-01 01:00Z,nan\n", "not a share of the peak"),
        ("point_time,A\n2026-01-01 00:00Z,0.5\n2026-01-01 01:00Z,much\n", "is not a number"),
        ("point_time,A\n2026-01-01 00:00Z,0.5\n2026-01-01 00:00Z,0.5\n", "is not later than"),
        ("point_time,A\n2026-01-01 00:00,0.5\n", "no time zone"),
        ("point_time,A\n2026-01-01 00:00Z,0.5\n", "fewer than two rows"),
        ("point_time,B\n", "name the other one with `column`"),
        ("", "the first column must be point_time"),
    ],
)
def test_a_course_that_cannot_be_used_is_refused(tmp_path, text, words):
    path = tmp_path / "sun.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        load_course(path, "A", 1.0)


def test_a_missing_course_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="no file"):
        load_course(tmp_path / "none.csv", "A", 1.0)


def test_a_clear_sky_is_dark_at_night_highest_at_noon_and_held_for_a_slot():
    june = 1781956800.0  # 2026-06-20 12:00 UTC
    assert irradiance(june, 23.4, 0.0) == pytest.approx(1037.0, abs=2.0), "the sun stands overhead: 1098 exp(-0.057)"
    assert irradiance(june + 43200, 23.4, 0.0) == 0.0
    assert irradiance(june, 23.4, 180.0) == 0.0, "midnight there"
    assert 0 < irradiance(june, 70.0, 0.0) < irradiance(june, 50.0, 0.0) < irradiance(june, 23.4, 0.0)
    sky = ClearSky(5000.0, 48.0, 11.0)
    assert len({sky(june + second) for second in range(0, int(SLOT_S), 10)}) == 1
    assert 0 < sky(june) <= 5000.0 and sky(june) != sky(june - 4 * SLOT_S)


# -- in the controller -------------------------------------------------------------


def test_the_controller_keeps_what_batteries_hold_and_shows_it(world):
    world.join("one")
    world.beat("one", "job", "train")
    supply = Supply(2000.0, 500.0, 0.0, 900.0, -600.0, 4321.0, 0.4321)
    world.service.tick(world.service.replay.now(), {"A": supply})
    (region, other) = world.status().regions
    assert (region.grid_w, region.solar_w, region.battery_w, region.battery_soc) == (500.0, 900.0, -600.0, 0.4321)
    assert (other.grid_w, other.solar_w, other.battery_soc) == (None, None, None)
    world.start()
    assert world.store.call(lambda tx: tx.stored()) == {"A": 4321.0}


def test_the_ledger_books_what_the_grid_gave_and_what_was_own_apart(world):
    for site in ("one", "two"):
        world.join(site)
        world.beat(site, f"job-{site}", "train")

    def step(supply):
        world.clock.t += 10.0
        for site in ("one", "two"):
            world.beat(site, f"job-{site}", "train")
        world.service.tick(world.service.replay.now(), {"A": supply})

    step(Supply(4000.0, 4000.0))
    before = world.status().energy
    step(Supply(4000.0, 1000.0, 0.0, 3000.0))
    step(Supply(4000.0, 0.0, 500.0, 4500.0))
    step(Supply(4000.0, 4000.0, 0.0, 0.0))
    after = world.status().energy
    hours = 10.0 / 3600
    grid = hours * (4.0 + 1.0 + 0.0)
    assert after.attributed_kwh - before.attributed_kwh == pytest.approx(grid, abs=1e-9)
    assert after.own_kwh - before.own_kwh == pytest.approx(hours * (0.0 + 3.0 + 4.0), abs=1e-9)
    assert after.kg_attributed - before.kg_attributed == pytest.approx(grid * 50.0 / 1000, abs=1e-9)


def test_a_site_that_draws_more_within_a_step_leaves_less_own_power_to_the_others(world):
    for site in ("one", "two"):
        world.join(site)
        world.beat(site)
    world.tick(0.0)
    world.service.tick(world.service.replay.now(), {"A": Supply(1000.0, 0.0, 0.0, 1000.0)})
    world.clock.t += 10.0
    world.beat("one", "job", "train")  # 2000 W instead of 500 W, 1000 W of all 2500 W are own
    before = world.status().energy
    world.clock.t += 10.0
    world.beat("two")
    world.service.tick(world.service.replay.now(), {"A": Supply(2500.0, 1500.0, 0.0, 1000.0)})
    after = world.status().energy
    drawn = after.attributed_kwh + after.standing_kwh - before.attributed_kwh - before.standing_kwh
    assert drawn == pytest.approx(1.5 * 10.0 / 3600, abs=1e-9)
