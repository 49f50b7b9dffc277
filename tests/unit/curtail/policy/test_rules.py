"""Policy: each rule and each fail-safe row is a fact."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, unknown
from curtail.policy.costs import SiteCosts, holding_grams, restart_grams
from curtail.policy.rules import Regime, RegionRule, Site, Window, judge, regime_of, regime_reason, remember

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
    assert not late.granted and late.curtailed and "end in 100 s" in late.reason


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


# -- what a site costs ---------------------------------------------------------

COSTS = SiteCosts(start_s=100.0, stop_s=15.0, sync_s=30.0, train_w=2000.0, idle_w=500.0)
OFF, ON = Site(COSTS, running=False), Site(COSTS, running=True)


def weigh(value, now, site, forecast=None, rule=RULE, **more):
    return judge(rule, remember(Window(), rule, value, now), value, now, forecast, site=site, **more)


def ends(at: float, mci: float = 450.0, back: float = math.inf) -> Forecast:
    """A forecast that is clean until `at`, dirty until `back`, clean after it."""
    points = ((0.0, 60.0), (at, mci), *(((back, 60.0),) if back < math.inf else ()))
    return Forecast("A", points)


@pytest.mark.parametrize(("length", "granted"), [(899.0, False), (900.0, True)])
def test_no_site_starts_for_less_than_a_quarter_of_an_hour(length, granted):
    found = weigh(reading(60.0), 1000.0, OFF, ends(1000.0 + length))
    assert found.granted is granted
    assert granted or found.reason == "the window is forecast to end in 899 s; a start needs 900 s"


def test_a_slow_start_needs_a_window_five_times_as_long():
    slow = Site(SiteCosts(300.0, 15.0, 30.0, 2000.0, 500.0), running=False)
    assert not weigh(reading(60.0), 1000.0, slow, ends(2500.0)).granted  # 1575 s are needed
    assert weigh(reading(60.0), 1000.0, slow, ends(2575.0)).granted


def test_a_site_that_trains_uses_a_window_that_none_would_begin():
    assert weigh(reading(60.0), 1000.0, ON, ends(1100.0)).granted


def test_it_begins_to_stop_so_that_it_has_stopped_when_the_window_ends():
    found = weigh(reading(60.0), 1000.0, ON, ends(1400.0))
    assert found.granted and found.until == 1385.0
    assert not weigh(reading(60.0), 1385.0, ON, ends(1400.0)).granted


def test_a_forecast_that_confirms_the_window_makes_the_dwell_needless():
    rule = replace(RULE, enter_dwell=300.0)
    assert weigh(reading(60.0), 1000.0, OFF, ends(9000.0), rule).granted
    assert not weigh(reading(60.0), 1000.0, OFF, None, rule).granted
    short_sighted = replace(ends(9000.0), known_until=1500.0)
    assert not weigh(reading(60.0), 1000.0, OFF, short_sighted, rule).granted


def test_a_dwell_never_stops_a_site_that_trains():
    assert weigh(reading(60.0), 1000.0, ON, None, replace(RULE, enter_dwell=300.0)).granted


def test_a_forecast_that_is_newer_than_a_late_reading_is_believed_when_it_is_dirty():
    late, forecast = reading(60.0, 1000.0), ends(1300.0)
    found = weigh(late, 1310.0, ON, forecast)
    assert not found.granted and "MCI 450" in found.reason
    assert not weigh(reading(400.0, 1000.0), 1310.0, ON, Forecast("A", ((0.0, 60.0),))).granted


def test_a_price_in_force_lowers_the_threshold_and_never_raises_it():
    found = weigh(reading(90.0), 1000.0, ON, price=80.0)
    assert not found.granted and found.curtailed
    assert found.reason == "MCI 90 is not below 80 g/kWh, the price in force"
    assert weigh(reading(79.0), 1000.0, ON, price=80.0).granted
    assert not weigh(reading(120.0), 1000.0, ON, price=150.0).granted


def test_a_band_is_only_for_sites_that_train_and_is_booked_as_not_curtailed():
    rule = replace(RULE, leave_above=130.0)
    found = weigh(reading(120.0), 1000.0, ON, rule=rule)
    assert found.granted and not found.curtailed and found.flags == ("not curtailed",)
    assert not weigh(reading(120.0), 1000.0, OFF, rule=rule).granted
    assert not weigh(reading(130.0), 1000.0, ON, rule=rule).granted
    assert not weigh(reading(95.0), 1000.0, ON, rule=rule, price=80.0).granted


# -- short gaps ------------------------------------------------------------------

# holding 300 s at 500 W is 41.7 Wh; a start is 13.9 Wh at the MCI after the gap and 55.6 Wh of training at the limit


def test_what_a_wait_and_a_start_emit():
    assert holding_grams(COSTS, 110.0, 300.0) == pytest.approx(0.5 * 300 / 3600 * 110)
    assert restart_grams(COSTS, 60.0, 100.0) == pytest.approx(0.5 * 100 / 3600 * 60 + 2.0 * 100 / 3600 * 100)


def test_a_gap_cheaper_than_a_start_is_waited_out_with_the_weights_in_place():
    forecast = ends(1000.0, 110.0, back=1300.0)  # 4.6 g against 0.8 + 5.6 g
    before = weigh(reading(60.0, 900.0), 990.0, ON, forecast)
    assert before.granted and before.until == 1000.0, "no need to drain before it"
    found = weigh(reading(110.0), 1000.0, ON, forecast)
    assert found.hold and not found.granted and found.until == 1300.0
    assert found.reason == "MCI 110 is not below 100 g/kWh; holding for 300 s costs less than a start"
    assert weigh(reading(60.0, 1300.0), 1300.0, ON, forecast).granted


@pytest.mark.parametrize(
    ("mci", "back", "site"),
    [(661.0, 1300.0, ON), (110.0, 1301.0, ON), (110.0, math.inf, ON), (110.0, 1300.0, OFF),
     (110.0, 1300.0, Site(COSTS, True, held_s=1.0))],
    ids=["too dirty", "too long", "without end", "nothing to hold", "held before"],
)  # fmt: skip
def test_any_other_gap_releases_the_site(mci, back, site):
    found = weigh(reading(mci), 1000.0, site, ends(1000.0, mci, back))
    assert not found.granted and not found.hold


def test_a_gap_that_is_over_by_the_forecast_is_held_a_minute_more_for_the_reading_that_says_so():
    forecast, held = ends(1000.0, 110.0, back=1300.0), Site(COSTS, True, held_s=300.0)
    late = reading(110.0, 1000.0)
    found = weigh(late, 1310.0, held, forecast)
    assert found.hold and not found.granted and found.until == found.hold_until == 1360.0
    assert found.reason == "MCI 110 is not below 100 g/kWh; the gap is over according to the forecast"
    assert not weigh(late, 1360.0, held, forecast).hold, "it does not come"
    assert not weigh(reading(110.0, 1305.0), 1310.0, held, forecast).hold, "the reading is newer than the forecast"
    assert weigh(reading(60.0, 1300.0), 1310.0, held, forecast).granted
    assert not weigh(late, 1310.0, ON, forecast).hold, "it holds nothing"


def test_without_a_forecast_nothing_is_held():
    assert not weigh(reading(110.0), 1000.0, ON).hold
