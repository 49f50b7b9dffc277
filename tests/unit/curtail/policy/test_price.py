"""The clearing price: the cleanest power that does the work in time."""

from __future__ import annotations

from math import inf

import pytest

from curtail.policy.costs import SiteCosts
from curtail.policy.price import Outlook, Rounds, budget_price, clearing_price, emissions, site_seconds, training_spans

FREE = SiteCosts(0.0, 0.0, 0.0, 3600.0, 0.0)  # 1 Wh each second
REAL = SiteCosts(100.0, 20.0, 60.0, 3600.0, 500.0)
NO_ROUNDS = Rounds(1.0, 0.0)


def outlook(*values: float, costs: SiteCosts = FREE, running: bool = False, step: float = 1000.0) -> Outlook:
    """Values of `step` seconds each from 0 on; what is at or above the cap of 100 is left out, as forecasts do."""
    segments = [(i * step, (i + 1) * step, mci) for i, mci in enumerate(values) if mci < 100.0]
    return Outlook("A", 100.0, 0.0, segments, costs, running, 0.0)


def test_neighbouring_clean_segments_are_one_window():
    assert training_spans(outlook(50, 60, 400, 70, 90), 80.0) == [(0.0, 2000.0), (3000.0, 4000.0)]


def test_a_window_loses_its_start_and_its_stop_and_a_warm_one_only_its_stop():
    assert training_spans(outlook(50, 60, costs=REAL), 100.0) == [(100.0, 1980.0)]
    assert training_spans(outlook(50, 60, costs=REAL, running=True), 100.0) == [(0.0, 1980.0)]


def test_a_window_that_is_not_worth_a_start_holds_nothing():
    short = outlook(50, 400, 50, 50, costs=REAL, step=500.0)
    assert training_spans(short, 100.0) == [(1100.0, 1980.0)]  # 600 s are needed


def test_shared_time_loses_its_exchanges():
    both = [outlook(50, 50), outlook(400, 50)]
    assert site_seconds(both, 100.0, Rounds(300.0, 30.0)) == pytest.approx(1000.0 + 2 * 1000.0 / 1.1)


def test_two_sites_that_exchange_most_of_the_time_count_as_one():
    assert site_seconds([outlook(50), outlook(50)], 100.0, Rounds(300.0, 700.0)) == pytest.approx(1000.0)


def test_the_price_is_the_lowest_that_holds_the_work():
    sites = [outlook(10, 30, 50, 70), outlook(20, 40, 60, 80)]
    assert clearing_price(sites, 2000.0, 1.0, NO_ROUNDS, 0.0).limit == 30.0  # those at 10 and 20
    assert clearing_price(sites, 2001.0, 1.0, NO_ROUNDS, 0.0).limit == 40.0
    assert clearing_price(sites, 2000.0, 1.15, NO_ROUNDS, 0.0).limit == 40.0
    assert clearing_price(sites, 8000.0, 1.0, NO_ROUNDS, 0.0).limit == 100.0


@pytest.mark.parametrize("hint", [0.0, 10.0, 45.0, 60.0, 100.0, 5000.0])
def test_where_the_search_begins_makes_no_difference(hint):
    sites = [outlook(10, 30, 50, 70), outlook(20, 40, 60, 80)]
    assert clearing_price(sites, 4500.0, 1.0, NO_ROUNDS, 0.0, hint).limit == 60.0


def test_work_that_does_not_fit_takes_all_that_is_curtailed_and_says_so():
    price = clearing_price([outlook(10, 400)], 1001.0, 1.0, NO_ROUNDS, 0.0)
    assert price.limit == 100.0 and "cannot be met" in price.reason


def test_emissions_end_with_the_work():
    sites = [outlook(10, 400, 50), outlook(400, 30)]
    assert emissions(sites, 100.0, 2500.0, NO_ROUNDS) == pytest.approx((10 + 30 + 25) / 1000.0)
    assert emissions(sites, 100.0, 3001.0, NO_ROUNDS) == inf


def test_a_budget_buys_the_fastest_price_it_can():
    sites = [outlook(90, 20, 20)]
    assert budget_price(sites, 2000.0, 0.2, NO_ROUNDS, 0.0).limit == 100.0
    assert budget_price(sites, 2000.0, 0.05, NO_ROUNDS, 0.0).limit == 90.0
    hopeless = budget_price(sites, 2000.0, 0.01, NO_ROUNDS, 0.0)
    assert "no price" in hopeless.reason and hopeless.limit == 20.0
