"""When a site's machines are wanted, and what the caps forbid."""

import random
from dataclasses import replace
from math import inf

import pytest

from controller.provision.caps import Caps, Charge, forbids_request, forbids_staying, spent
from controller.provision.demand import DemandFacts, boot_time, demand
from curtail.grid.forecast import Forecast

CLEAN, DIRTY = 50.0, 400.0


def forecast(*points, until=inf):
    return Forecast("A", tuple(points), until)


FACTS = DemandFacts(
    now=1000.0, granted=False, reason="MCI 400 is not below 100 g/kWh", forecast=None, limit=100.0, lead=300.0,
    shortest=600.0, present=False, idle_s=0.0, order="", finished=False,
)  # fmt: skip


def test_a_machine_is_wanted_one_lead_before_the_window():
    coming = forecast((0.0, DIRTY), (1400.0, CLEAN), (9000.0, DIRTY))
    assert not demand(replace(FACTS, forecast=coming, now=1099.0)).wanted
    wanted = demand(replace(FACTS, forecast=coming, now=1100.0))
    assert wanted.wanted and wanted.until == 9000.0 and wanted.reason == "a window opens in 300 s"


def test_no_machine_is_wanted_for_a_window_that_is_too_short():
    coming = forecast((0.0, DIRTY), (1200.0, CLEAN), (1799.0, DIRTY))
    found = demand(replace(FACTS, forecast=coming))
    assert not found.wanted and found.reason == "the window in 200 s is shorter than 600 s"


def test_the_end_of_an_open_window_is_worth_no_start_but_is_used_by_who_is_there():
    ending = forecast((0.0, CLEAN), (1250.0, DIRTY))
    late = replace(FACTS, granted=True, reason="below", forecast=ending)
    assert not demand(late).wanted and "the window ends in 250 s" in demand(late).reason
    assert demand(replace(late, present=True)).wanted


def test_without_a_forecast_the_permit_decides_and_who_is_there_stays_as_long_as_a_start_takes():
    assert demand(replace(FACTS, granted=True)).wanted
    assert demand(replace(FACTS, granted=True)).until == inf
    assert demand(replace(FACTS, present=True, idle_s=299.0)).wanted
    assert not demand(replace(FACTS, present=True, idle_s=300.0)).wanted
    assert not demand(replace(FACTS, present=False)).wanted


def test_with_a_forecast_who_is_there_goes_at_once_unless_the_next_window_is_near():
    later = forecast((0.0, DIRTY), (5000.0, CLEAN))
    assert not demand(replace(FACTS, present=True, forecast=later)).wanted
    soon = forecast((0.0, DIRTY), (1290.0, CLEAN))
    assert demand(replace(FACTS, present=True, forecast=soon)).wanted


def test_orders_come_before_the_policy_and_the_end_of_the_run_before_orders():
    assert demand(replace(FACTS, order="up")).wanted
    assert not demand(replace(FACTS, granted=True, order="down")).wanted
    assert not demand(replace(FACTS, granted=True, order="up", finished=True)).wanted


def test_a_boot_takes_the_ninetieth_percentile_of_what_was_measured():
    assert boot_time([], 160.0) == 160.0
    assert boot_time([20.0], 160.0) == 160.0 and boot_time([200.0], 160.0) == 200.0
    assert boot_time([20.0, 30.0, 40.0], 160.0) == 40.0
    assert boot_time([float(n) for n in range(1, 21)], 160.0) == 18.0


# -- caps ------------------------------------------------------------------------

NONE = Caps(None, None, None)


def test_money_is_counted_for_the_last_day_only():
    charges = [Charge(2.0, 0.0, 3600.0), Charge(4.0, 86_400.0, None)]
    assert spent(charges, 86_400.0, 86_400.0) == 2.0
    assert spent(charges, 86_400.0, 88_200.0) == pytest.approx(1.0 + 2.0)
    assert spent(charges, 90_000.0, 90_000.0) == pytest.approx(4.0)


def test_each_cap_names_itself():
    two = [Charge(3.0, 0.0, None), Charge(3.0, 0.0, None)]
    assert forbids_request(NONE, two, 3.0, 0.0, 60.0) == ""
    assert "most_machines = 2" in forbids_request(replace(NONE, most_machines=2), two, 3.0, 0.0, 60.0)
    assert "most_per_hour = 8" in forbids_request(replace(NONE, most_per_hour=8.0), two, 3.0, 0.0, 60.0)
    assert forbids_request(replace(NONE, most_per_hour=9.0), two, 3.0, 0.0, 60.0) == ""
    day = replace(NONE, most_per_day=6.0)
    assert forbids_request(day, two, 3.0, 0.0, 60.0) == ""
    assert "most_per_day = 6" in forbids_request(day, two, 3.0, 3500.0, 120.0)
    assert forbids_staying(day, two, 3500.0, 60.0) == "" and "6" in forbids_staying(day, two, 3590.0, 60.0)


def test_no_schedule_spends_more_than_the_caps():
    for seed in range(1000):
        spends_no_more(seed)


def spends_no_more(seed):
    """Machines start and end at random; a released one lingers for up to its grace."""
    chance = random.Random(seed)
    caps = Caps(chance.randint(1, 5), chance.uniform(2.0, 20.0), chance.uniform(2.0, 100.0))
    step, reserve = 60.0, 180.0
    charges, ends, now = [], {}, 0.0
    for _ in range(400):
        now += step
        for number, at in list(ends.items()):
            if now >= at:
                charges[number] = replace(charges[number], ended=at)
                del ends[number]
        stay = forbids_staying(caps, charges, now, reserve)
        for number, charge in enumerate(charges):
            if charge.ended is None and number not in ends and (stay or chance.random() < 0.02):
                ends[number] = now + chance.uniform(0.0, reserve - step)
        price = chance.uniform(0.5, 5.0)
        if chance.random() < 0.3 and not stay and not forbids_request(caps, charges, price, now, reserve):
            charges.append(Charge(price, now, None))
        alive = [charge for charge in charges if charge.ended is None]
        assert len(alive) <= caps.most_machines
        assert sum(charge.price for charge in alive) <= caps.most_per_hour
        assert spent(charges, now, now) <= caps.most_per_day + 1e-9
