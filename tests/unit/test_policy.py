"""Policy: each rule and each fail-safe row is a fact."""

from __future__ import annotations

import math

import pytest

from curtail.policy import (
    Forecast,
    Regime,
    RegionRule,
    Window,
    judge,
    regime_of,
    regime_reason,
    remember,
)
from curtail.reading import Reading, unknown

RULE = RegionRule("A", threshold=100.0, max_age=600.0)


def reading(mci: float, at: float = 1000.0) -> Reading:
    return Reading("A", mci, at, at + 300.0, "test")


def verdict(rule: RegionRule, value: Reading | None, now: float, forecast: Forecast | None = None):
    return judge(rule, remember(Window(), rule, value, now), value, now, forecast)


def test_below_the_threshold_may_train_until_the_reading_is_too_old():
    found = verdict(RULE, reading(60.0), 1100.0)
    assert found.granted and found.until == 1600.0


def test_exactly_at_the_threshold_must_not_train():
    assert not verdict(RULE, reading(100.0), 1100.0).granted


def test_unknown_is_not_curtailed_and_the_reason_is_kept():
    found = verdict(RULE, unknown("A", 1000.0, "t", "the trace t ended"), 1000.0)
    assert not found.granted and not found.curtailed and found.reason == "the trace t ended"


def test_a_stale_reading_stops_training():
    found = verdict(RULE, reading(60.0), 1601.0)
    assert not found.granted and "stale" in found.reason


def test_nothing_ever_fetched_must_not_train():
    assert not verdict(RULE, None, 0.0).granted


@pytest.mark.parametrize("value", [math.nan, math.inf, 3001.0])
def test_an_impossible_value_must_not_train(value):
    assert not verdict(RULE, reading(value), 1000.0).granted


def test_a_dwell_delays_entry_and_starts_over_after_a_dirty_reading():
    rule = RegionRule("A", 100.0, 600.0, enter_dwell=300.0)
    window = remember(Window(), rule, reading(60.0, 1000.0), 1000.0)
    assert not judge(rule, window, reading(60.0, 1000.0), 1200.0).granted
    assert judge(rule, window, reading(60.0, 1000.0), 1200.0).curtailed
    assert judge(rule, window, reading(60.0, 1300.0), 1300.0).granted
    dirty = remember(window, rule, reading(400.0, 1400.0), 1400.0)
    assert dirty.below_since is None
    again = remember(dirty, rule, reading(60.0, 1500.0), 1500.0)
    assert not judge(rule, again, reading(60.0, 1500.0), 1510.0).granted


def test_a_forecast_end_stops_training_before_the_window_ends():
    rule = RegionRule("A", 100.0, 600.0, leave_lead=120.0)
    forecast = Forecast("A", ((1300.0, 450.0),))
    early = verdict(rule, reading(60.0), 1100.0, forecast)
    assert early.granted and early.until == 1180.0
    late = verdict(rule, reading(60.0), 1200.0, forecast)
    assert not late.granted and late.curtailed and "ends in 100 s" in late.reason


def test_an_unknown_future_counts_as_dirty():
    rule = RegionRule("A", 100.0, 600.0, leave_lead=120.0)
    assert not verdict(rule, reading(60.0), 1200.0, Forecast("A", ((1300.0, math.inf),))).granted


def test_the_regime_is_the_number_of_sites():
    assert [regime_of(names) for names in ([], ["a"], ["a", "b"], ["a", "a"])] == [
        Regime.PAUSED,
        Regime.LOCAL,
        Regime.FEDERATED,
        Regime.LOCAL,
    ]


def test_every_paused_regime_says_why():
    found = verdict(RULE, reading(400.0), 1000.0)
    assert regime_reason(Regime.PAUSED, {"A": found}, {"s": "A"}) == "A: MCI 400 is not below 100 g/kWh"
    assert regime_reason(Regime.PAUSED, {}, {}) == "no site has joined"
