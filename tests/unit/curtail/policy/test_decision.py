"""All regions together: price, cleanest subset, joining. What is doubted is in test_failsafe."""

from __future__ import annotations

from dataclasses import replace

from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading
from curtail.policy.costs import SiteCosts
from curtail.policy.decision import Goal, View, decide
from curtail.policy.override import Override
from curtail.policy.price import Price, Rounds
from curtail.policy.rules import Regime, RegionRule, Site, Window

COSTS = SiteCosts(100.0, 15.0, 30.0, 2000.0, 500.0)
ROUNDS = Rounds(600.0, 30.0)
END = 10_000.0


def view(region: str, *points: tuple[float, float], running: bool = False, forecast: bool = True) -> View:
    """A region whose course is `points`; the reading is the first one."""
    reading = Reading(region, points[0][1], 0.0, 300.0, "test")
    course = Forecast(region, (*points, (END, 900.0))) if forecast else None
    return View(RegionRule(region, 100.0, 600.0), Window(), reading, course, Site(COSTS, running))


def many(*views: View) -> dict[str, View]:
    return {one.rule.region: one for one in views}


def granted(found) -> set[str]:
    return {name for name, verdict in found.verdicts.items() if verdict.granted}


def test_without_a_goal_every_curtailed_region_trains_and_there_is_no_price():
    found = decide(many(view("A", (0, 50)), view("B", (0, 90)), view("C", (0, 400))), Goal(), 0.0)
    assert granted(found) == {"A", "B"} and found.regime is Regime.FEDERATED and found.price is None


def test_a_deadline_leaves_the_dear_power_when_the_cheap_suffices():
    views = many(view("A", (0, 90)), view("B", (0, 10)))
    goal = Goal(work=5000.0, deadline=END, safety=1.0, rounds=ROUNDS)
    found = decide(views, goal, 0.0)
    assert granted(found) == {"B"} and found.price is not None and found.price.limit == 90.0
    assert "the price in force" in found.verdicts["A"].reason and found.verdicts["A"].curtailed
    assert granted(decide(views, replace(goal, work=15_000.0), 0.0)) == {"A", "B"}


def test_without_a_forecast_for_all_regions_a_deadline_changes_nothing():
    views = many(view("A", (0, 90)), view("B", (0, 10), forecast=False))
    found = decide(views, Goal(work=1000.0, deadline=END), 0.0)
    assert granted(found) == {"A", "B"} and found.price is not None and "without a forecast" in found.price.reason


def test_a_deadline_that_passed_leaves_the_thresholds():
    found = decide(many(view("A", (0, 90))), Goal(work=1000.0, deadline=0.0), 0.0)
    assert granted(found) == {"A"} and found.price is not None and "passed" in found.price.reason


def test_a_price_stands_for_five_minutes_and_is_computed_anew_then():
    views = many(view("A", (0, 90)), view("B", (0, 10)))
    goal = Goal(work=5000.0, deadline=END, safety=1.0)
    old = Price(42.0, "before", -299.0)
    assert decide(views, goal, 0.0, old).price is old
    assert decide(views, goal, 0.0, replace(old, made=-300.0)).price == Price(
        90.0, "power below 90 g/kWh is enough for the deadline", 0.0
    )


def test_a_price_for_a_far_deadline_stands_longer():
    far = 60 * 86400.0
    views = many(*(replace(v, forecast=replace(v.forecast, points=(*v.forecast.points[:1], (far, 900.0))))
                   for v in (view("A", (0, 90)), view("B", (0, 10)))))  # fmt: skip
    goal, old = Goal(work=5000.0, deadline=far, safety=1.0), Price(42.0, "before", -86400.0)
    assert decide(views, goal, 0.0, old).price is old
    assert decide(views, goal, 0.0, replace(old, made=-2 * 86400.0)).price is not old


def test_what_lies_beyond_the_forecasts_takes_its_part_of_the_work():
    near = [
        replace(v, forecast=replace(v.forecast, known_until=5000.0)) for v in (view("A", (0, 90)), view("B", (0, 10)))
    ]
    goal = Goal(work=9000.0, deadline=END, safety=1.0, rounds=ROUNDS)
    assert granted(decide(many(*near), goal, 0.0)) == {"B"}  # 4500 s until 5000
    assert granted(decide(many(*near), replace(goal, work=11_000.0), 0.0)) == {"A", "B"}


def test_a_budget_buys_speed_while_it_lasts():
    views = many(view("A", (0, 90)), view("B", (0, 10)))
    rich, poor = Goal(work=9000.0, budget_kg=1.0), Goal(work=9000.0, budget_kg=0.1)
    assert granted(decide(views, rich, 0.0)) == {"A", "B"}
    assert granted(decide(views, poor, 0.0)) == {"B"}


def test_no_more_sites_than_are_of_use_and_the_cleanest_of_them():
    views = many(view("A", (0, 50)), view("B", (0, 20)), view("C", (0, 40)))
    found = decide(views, Goal(max_sites=2), 0.0)
    assert granted(found) == {"B", "C"}
    assert found.verdicts["A"].reason == "2 cleaner sites already train, the most that the run can use"


def test_a_site_that_trains_gives_way_only_to_one_that_is_clearly_cleaner():
    running = view("A", (0, 50), running=True)
    assert granted(decide(many(running, view("B", (0, 45))), Goal(max_sites=1), 0.0)) == {"A"}
    assert granted(decide(many(running, view("B", (0, 30))), Goal(max_sites=1), 0.0)) == {"B"}


def test_an_order_outranks_the_cleaner_site():
    ordered = replace(view("A", (0, 400)), override=Override(True, 0.0, 60.0, "the operator"))
    assert granted(decide(many(ordered, view("B", (0, 20))), Goal(max_sites=1), 0.0)) == {"A"}


SLOW = Rounds(600.0, 600.0)  # half of the time of a federated round is exchange


def slow(one: View) -> View:
    return replace(one, site=replace(one.site, costs=replace(COSTS, sync_s=600.0)))


def test_a_second_site_stays_out_when_exchanges_cost_more_than_it_adds():
    trains, joins = slow(view("A", (0, 50), running=True)), slow(view("B", (0, 20), (2000, 400)))
    found = decide(many(trains, joins), Goal(rounds=SLOW), 0.0)
    assert granted(found) == {"A"}
    assert found.verdicts["B"].reason == "in 2000 s it would add less training than the exchanges would cost it and A"


def test_a_second_site_joins_when_it_adds_more_than_exchanges_cost():
    trains = view("A", (0, 50), running=True)
    assert granted(decide(many(trains, view("B", (0, 20), (1000, 400))), Goal(), 0.0)) == {"A", "B"}


def test_a_window_that_outlasts_the_other_is_begun_although_exchanges_are_slow():
    leaves, joins = slow(view("A", (0, 50), (600, 400), running=True)), slow(view("B", (0, 20), (3000, 400)))
    assert granted(decide(many(leaves, joins), Goal(rounds=SLOW), 0.0)) == {"A", "B"}


def test_a_third_site_joins_since_the_others_exchange_already():
    two = [slow(view(name, (0, 50), running=True)) for name in "AB"]
    joins = slow(view("C", (0, 20), (2000, 400)))
    assert granted(decide(many(*two, joins), Goal(rounds=SLOW), 0.0)) == {"A", "B", "C"}
