"""The energy ledger's arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from curtail.carbon.accounting import Interval, Totals, add, always_on_kg, change, close

TRAIN = Interval("s", "A", "train", 0.0, 2000.0, "modelled", 1.5, 1.0, 100.0, True)


def test_an_hour_at_two_kilowatts_with_pue_is_three_kilowatt_hours():
    entry = close(TRAIN, 3600.0)
    assert entry is not None
    assert entry.kwh == pytest.approx(3.0) and entry.kg == pytest.approx(0.3)


def test_what_the_grid_did_not_supply_emits_nothing():
    entry = close(replace(TRAIN, grid_share=0.25), 3600.0)
    assert entry is not None and entry.kwh == pytest.approx(0.75)


def test_an_interval_grows_until_something_changes():
    entry, grown = change(TRAIN, 60.0, replace(TRAIN, t0=60.0))
    assert entry is None and grown.t0 == 0.0
    entry, fresh = change(TRAIN, 60.0, replace(TRAIN, t0=60.0, mci=450.0, curtailed=False))
    assert entry is not None and entry.t1 == 60.0 and fresh.t0 == 60.0


def test_an_unknown_intensity_is_booked_as_energy_without_carbon_and_not_as_curtailed():
    entry = close(replace(TRAIN, mci=None, curtailed=False), 3600.0)
    assert entry is not None and entry.kg is None
    totals = add(Totals(), [entry])
    assert totals.unknown_kwh == totals.attributed_kwh == pytest.approx(3.0)
    assert totals.kg_attributed == 0.0 and totals.curtailed_pct == 0.0


def test_standing_power_is_counted_apart_and_never_left_out():
    paused = close(replace(TRAIN, phase="paused", watts=468.0, mci=500.0, curtailed=False), 3600.0)
    train = close(TRAIN, 3600.0)
    assert paused is not None and train is not None
    totals = add(Totals(), [paused, train])
    assert totals.standing_kwh == pytest.approx(0.702) and totals.kg_standing == pytest.approx(0.351)
    assert totals.curtailed_pct == 100.0 and totals.train_seconds == 3600.0


def test_always_on_means_starting_at_once_on_whatever_the_grid_gives():
    # 3600 s of training on two sites: 1800 s each from t=0, 1 kW.
    rows = [(1000.0, [(-100.0, 600.0), (900.0, 200.0)]), (1000.0, [(0.0, 400.0)])]
    assert always_on_kg(3600.0, 0.0, rows) == pytest.approx(0.25 * 0.6 + 0.25 * 0.2 + 0.5 * 0.4)
    assert always_on_kg(0.0, 0.0, rows) is None
    assert always_on_kg(10.0, 0.0, [(1.0, [])]) is None
