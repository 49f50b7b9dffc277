"""The live controller decides on all sites together: holds, orders, prices, learned costs, and what people see."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from controller.scheduling.goal import Progress, aim
from controller.store.rows import RunRow
from curtail import wire
from curtail.config import parse_config
from curtail.errors import ConfigError, NotFound, WireError
from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading

HOUR = 3600.0


class Course:
    """Readings and forecasts of a region from one list of (seconds from the start, gCO2/kWh)."""

    def __init__(self, start: float, **courses: list[tuple[float, float]]) -> None:
        self._courses = {r: tuple((start + at, mci) for at, mci in c) for r, c in courses.items()}
        self.foresight, self.confirms = True, False

    def reading(self, region: str, now: float) -> Reading:
        point, mci = [entry for entry in self._courses[region] if entry[0] <= now][-1]
        point = max(point, now - now % 300.0)
        return Reading(region, mci, point, point + 300.0, "test")

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        return Forecast(region, (*self._courses[region], (self._courses[region][-1][0] + 24 * HOUR, inf)))

    def second(self, region: str, now: float) -> Reading | None:
        return self.reading(region, now) if self.confirms else None

    def ended(self, now: float) -> bool:
        return False


def begin(world, policy: dict[str, object] | None = None, **courses: list[tuple[float, float]]):
    """The world's controller on these courses."""
    world.source = Course(world.clock.t, **({"B": [(0.0, 400.0)]} | courses))
    world.config = replace(world.config, policy=replace(world.config.policy, **(policy or {})))
    world.start()
    return world


def events(world, kind: str) -> list[str]:
    return [event.text for event in world.status().events if event.kind == kind]


# -- the gap rule -------------------------------------------------------------------


GAP = [(0.0, 50.0), (1800.0, 104.0), (2100.0, 40.0), (9000.0, 400.0)]


def test_a_short_gap_is_held_the_job_is_told_to_wait_and_goes_on_without_a_start(make_world):
    world = begin(make_world(), A=GAP)
    world.ready("a", "job")
    world.beat("a", "job", "train")
    world.tick(1799.5)
    before = world.beat("a", "job", "train")
    assert before.granted and before.valid_s <= 0.5
    assert before.hold_s == pytest.approx(0.25 + 300.0 + world.config.policy.permit, abs=0.5), "told before it begins"
    world.tick(1.0)
    during = world.beat("a", "job", "sync")
    assert not during.granted and during.hold_s > 290.0 and "holding for" in during.reason
    waits = world.checkout("a", "job")
    assert waits.kind == "wait" and waits.reason.startswith("holding: MCI 104 is not below 100")
    world.beat("a", "job", "hold")
    (site,) = world.status().sites
    assert (site.phase, site.granted) == ("hold", False) and "holding for" in site.reason
    assert world.status().regime == "PAUSED"
    world.tick(300.0)
    assert world.beat("a", "job", "hold").granted and world.checkout("a", "job").kind == "train"
    world.beat("a", "job", "train")
    world.tick(1.0)
    world.tick(1.0)
    held = [entry for entry in world.store.call(lambda tx: tx.entries()) if entry.phase == "hold"]
    assert held and {entry.watts for entry in held} == {500.0} and not any(entry.curtailed for entry in held)


def test_a_hold_that_ends_ungranted_lets_the_site_go(make_world):
    world = begin(make_world(), A=GAP)
    world.ready("a", "job")
    world.beat("a", "job", "train")
    world.tick(1800.5)
    assert world.beat("a", "job", "hold").hold_s > 0
    world.source = Course(world.clock.t - 1800.0, A=[(0.0, 300.0)], B=[(0.0, 400.0)])
    world.service.deciding._source = world.source
    world.tick(1.0)
    reply = world.beat("a", "job", "hold")
    assert (reply.granted, reply.hold_s) == (False, 0.0) and "MCI 300" in reply.reason
    assert world.checkout("a", "job").kind == "leave"


def test_a_machine_without_a_job_is_not_told_to_hold(make_world):
    world = begin(make_world(), A=GAP)
    world.join("a", "A")
    world.tick(1799.5)
    assert world.beat("a").hold_s == 0.0


# -- starts, and sites that are there -------------------------------------------------


def test_a_window_that_is_too_short_for_a_start_is_not_begun_and_one_that_trains_uses_it(make_world):
    world = begin(make_world(), A=[(0.0, 50.0), (1200.0, 400.0)])
    world.join("a", "A")
    world.tick()
    assert world.beat("a").granted
    world.join("late", "A")
    world.tick(600.0)
    assert world.beat("a", "job", "train").granted
    reply = world.beat("late")
    assert not reply.granted and "a start needs 900 s" in reply.reason
    world.tick(1.0)
    assert world.status().regime == "LOCAL" and world.status().reason == "curtailed: a"


def test_a_promise_is_not_broken_while_the_site_starts(make_world):
    world = begin(make_world(), A=[(0.0, 50.0), (901.0, 400.0)])
    world.join("a", "A")
    world.tick(0.25)
    assert world.beat("a").granted
    world.tick(2.0)  # the window is now shorter than what a start needs
    assert world.beat("a", "job", "start").granted


def test_a_dwell_does_not_stop_a_site_that_trains_after_a_restart_of_the_controller(make_world):
    world = make_world()
    world.source.mci = {"A": 50.0, "B": 400.0}
    world.config = replace(world.config, policy=replace(world.config.policy, enter_dwell=30.0))
    world.start()
    world.join("a", "A")
    world.tick()
    assert not world.beat("a").granted
    world.tick(31.0)
    world.join("a", "A")
    world.tick()
    assert world.beat("a").granted and world.beat("a", "job", "train").granted
    world.start()
    world.tick()
    assert world.beat("a", "job", "train").granted
    world.join("b", "A")
    assert "training starts after 30 s" in world.beat("b").reason


def test_a_region_without_a_site_is_judged_for_people_and_counts_for_nothing(make_world):
    world = make_world()
    world.source.mci = {"A": 50.0, "B": 60.0}
    world.config = replace(world.config, policy=replace(world.config.policy, max_sites=1))
    world.start()
    world.join("b", "B")
    world.tick()
    assert world.beat("b").granted, "a cleaner region without a site takes no place"
    a, b = world.status().regions
    assert a.granted and b.granted and world.status().regime == "LOCAL"


def test_no_more_sites_than_are_of_use_train_also_within_a_region(make_world):
    world = make_world()
    world.source.mci = {"A": 50.0, "B": 90.0}
    world.config = replace(world.config, policy=replace(world.config.policy, max_sites=1))
    world.start()
    for name in ("one", "two"):
        world.join(name, "A")
    world.tick()
    assert [world.beat(name).granted for name in ("one", "two")] == [True, False]
    assert world.beat("two").reason == "1 cleaner sites already train, the most that the run can use"
    assert world.status().reason == "curtailed: one"


def test_a_site_that_falls_silent_gives_its_place_to_another(make_world):
    world = make_world()
    world.source.mci = {"A": 50.0, "B": 90.0}
    world.config = replace(world.config, policy=replace(world.config.policy, max_sites=1))
    world.start()
    world.join("a", "A"), world.join("b", "B")
    world.tick()
    assert world.beat("a").granted and not world.beat("b").granted
    for _ in range(10):
        world.tick(2.0)
        reply = world.beat("b")
    assert reply.granted


# -- zeros everywhere ------------------------------------------------------------------


def test_zeros_everywhere_are_doubted_by_regions_not_by_sites(make_world):
    world = make_world()
    world.source.mci = {"A": 0.0, "B": 0.0}
    world.join("one", "A"), world.join("two", "A")
    world.tick()
    for name in ("one", "two"):
        assert "as in an outage" in world.beat(name).reason
    world.source.mci = {"A": 0.0, "B": 300.0}
    world.tick(301.0)
    assert world.beat("one").granted and world.beat("two").granted, "region B is a witness although no site is there"


def test_a_second_source_that_agrees_lifts_the_doubt_live(make_world):
    world = begin(make_world(), A=[(0.0, 0.0)], B=[(0.0, 0.0)])
    world.join("a", "A")
    world.tick()
    assert not world.beat("a").granted
    world.source.confirms = True
    world.source._courses = {r: (*c, (c[0][0] + HOUR, 20.0)) for r, c in world.source._courses.items()}
    world.tick(1.0)
    assert world.beat("a").granted


# -- orders ------------------------------------------------------------------------------


def order(world, region="A", action="train", seconds=600.0, by="kim", reason="a demonstration"):
    request = wire.OverrideRequest(region, action, seconds, by, reason)
    return world.store.call(lambda tx: world.service.override(tx, request))


def test_an_order_to_train_counts_at_once_ends_by_itself_and_is_booked_as_not_curtailed(world):
    world.source.mci = {"A": 50.0, "B": 400.0}
    world.ready("a", "job")
    world.join("b", "B")
    world.tick()
    assert not world.beat("b").granted
    order(world, "B", seconds=60.0)
    reply = world.beat("b")
    assert reply.granted and reply.reason == "kim ordered the sites to train for another 60 s: a demonstration"
    order(world, "A", seconds=60.0)
    world.beat("a", "job", "train")
    world.tick(10.0)
    status = world.status()
    assert status.reason == "ordered: a, b"
    assert status.regions[0].override == wire.OverrideStatus(True, 50.0, "kim", "a demonstration")
    world.beat("a", "job", "train"), world.beat("b")
    world.tick(50.0)
    world.beat("a", "job", "train")
    world.tick(1.0)
    assert not world.beat("b").granted and world.beat("a", "job", "train").granted
    assert any("has run out" in text for text in events(world, "order"))
    rows = [entry for entry in world.store.call(lambda tx: tx.entries()) if entry.phase == "train"]
    ordered = [entry for entry in rows if "override" in entry.detail.basis.flags]
    assert ordered and not any(entry.curtailed for entry in ordered) and {entry.mci for entry in ordered} == {50.0}
    assert world.status().energy.curtailed_pct < 100.0


def test_an_order_to_pause_outranks_clean_power_and_can_be_taken_back(world):
    world.ready("a", "job")
    order(world, action="pause")
    assert not world.beat("a", "job", "train").granted
    order(world, action="clear")
    assert world.beat("a", "job", "drain").granted
    assert world.status().regions[0].override is None
    with pytest.raises(NotFound, match="no order is in force"):
        order(world, action="clear")


def test_an_order_survives_a_restart_and_a_newer_one_takes_its_place(world):
    world.source.mci["A"] = 400.0
    world.join("a", "A")
    world.tick()
    order(world, action="pause")
    order(world, action="train", seconds=300.0)
    world.tick(1.0)
    world.start()
    world.tick()
    assert world.beat("a").granted
    assert orders(world) == [("pause", None, "kim"), ("replaced", 1, "kim"), ("train", None, "kim")]
    world.tick(300.0)
    world.start()
    world.tick()
    assert not world.beat("a").granted
    assert orders(world)[3:] == [("expired", 3, "")], "once"


def orders(world):
    return [(row.act, row.of_order, row.by_whom) for _, row in world.store.call(lambda tx: tx.orders())]


def test_an_order_that_ran_out_while_no_controller_was_there_is_noted_at_the_time_it_ended(world):
    world.tick()
    order(world, action="pause", seconds=300.0)
    (began,) = [row for _, row in world.store.call(lambda tx: tx.orders())]
    world.start()
    world.tick(1000.0)
    _, end = [row for _, row in world.store.call(lambda tx: tx.orders())]
    assert (end.act, end.of_order, end.at) == ("expired", 1, began.until) == ("expired", 1, began.at + 300.0)
    assert any("has run out" in text for text in events(world, "order"))


def test_an_order_that_could_not_be_kept_is_not_in_force(world, monkeypatch):
    world.tick()
    order(world, action="pause")
    monkeypatch.setattr(world.service.deciding, "step", lambda *arguments: 1 / 0)
    for action in ("train", "clear"):
        with pytest.raises(ZeroDivisionError):
            order(world, action=action)
    monkeypatch.undo()
    assert orders(world) == [("pause", None, "kim")]
    assert not world.service.deciding.orders.of("A", world.service.replay.now()).train
    order(world, action="clear")
    assert orders(world)[1:] == [("cleared", 1, "kim")]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"region": "Z"}, NotFound, "no region 'Z'"),
        ({"action": "dance"}, WireError, "no order 'dance'"),
        ({"seconds": 86_401.0}, WireError, "at most 24 hours"),
        ({"seconds": 0.0}, WireError, "cannot last 0 s"),
        ({"by": " "}, WireError, "who gives it"),
        ({"reason": ""}, WireError, "says why"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_and_changes_nothing(world, changes, error, words):
    world.tick()
    with pytest.raises(error, match=words):
        order(world, **changes)
    assert orders(world) == []


# -- what is left, and the price ------------------------------------------------------------


def config(**policy: object):
    power = {"power_train": "2 kW", "power_idle": "500 W"}
    return parse_config({
        "run": {"name": "t"}, "model": {"preset": "d2-test"}, "data": {"path": "x"},
        "training": {"token_budget": 64_000, "batch_samples": 4},
        "rounds": {"length": "60 s", "inner_steps": 10}, "policy": policy, "regions": {"A": power},
    })  # fmt: skip


RUN = RunRow("r", "", "", "", "", 8, "RUNNING", 0.0, 1000.0, 1000.0, 0, 0, 8000, "PAUSED", 0.0, {}, None, None)
KNOWN = Progress(left=64_000, commits=((600, 2.0), (200, 2.0)), reported=(50.0,), spent_kg=0.25, sync_s=7.0)


def test_work_is_the_tokens_left_by_the_speed_of_a_site_on_the_controllers_clock():
    found = aim(config(), RUN, 1.0, KNOWN, False)
    assert (found.tokens_per_s, found.known_by, found.goal.work) == (200.0, "measured", 320.0)
    fast = aim(config(), RUN, 60.0, KNOWN, False)
    assert fast.goal.work == pytest.approx(19_200.0) and fast.tokens_per_s == pytest.approx(200.0 / 60.0)
    early = replace(KNOWN, commits=())
    assert aim(config(), RUN, 1.0, early, False).known_by == "reported"
    silent = replace(early, reported=(0.0,))
    assert aim(config(tokens_per_s=10.0), RUN, 1.0, silent, False).goal.work == 6400.0
    assert aim(config(), RUN, 1.0, silent, False).goal.work is None


def test_without_any_measure_there_is_no_price_and_the_reason_says_so():
    silent = Progress(64_000, (), (), 0.0, 30.0)
    assert "tokens_per_s" in aim(config(deadline="9 h"), RUN, 1.0, silent, False).problem
    assert aim(config(deadline="9 h", tokens_per_s=5.0), RUN, 1.0, silent, False).problem == ""
    assert aim(config(), RUN, 1.0, silent, False).problem == "", "nobody wants a price"


def test_the_deadline_is_a_moment_or_a_time_after_the_start_and_the_budget_what_is_left_of_it():
    assert aim(config(deadline="2 h"), RUN, 1.0, KNOWN, False).goal.deadline == 1000.0 + 7200.0
    moment = aim(config(deadline="2026-03-01T08:00+01:00"), RUN, 1.0, KNOWN, False).goal.deadline
    assert moment == 1_772_348_400.0
    assert aim(config(budget_kg=1.0), RUN, 1.0, KNOWN, False).goal.budget_kg == 0.75


def test_the_safety_is_smaller_where_the_forecast_cannot_err_and_is_the_run_files_if_given():
    assert [aim(config(), RUN, 1.0, KNOWN, perfect).goal.safety for perfect in (False, True)] == [1.15, 1.01]
    assert aim(config(safety=1.3), RUN, 1.0, KNOWN, True).goal.safety == 1.3


def test_a_round_is_as_long_as_its_steps_or_its_length_whichever_is_shorter():
    assert aim(config(), RUN, 1.0, KNOWN, False).goal.rounds.length_s == pytest.approx(320 / 200)
    slow = replace(KNOWN, commits=((1, 10.0),))
    assert aim(config(), RUN, 10.0, slow, False).goal.rounds.length_s == 600.0


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"deadline": "soon"}, "is no deadline"),
        ({"deadline": "2026-03-01 08:00"}, "with its zone"),
        ({"deadline": "9 kg"}, "wrong unit"),
        ({"deadline": "9 h", "budget_kg": 1.0}, "do not go together"),
        ({"leave_above": "90 g/kWh"}, "below the threshold of region A"),
        ({"safety": 0.9}, "too small"),
        ({"max_sites": 0}, "too small"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy, words):
    with pytest.raises(ConfigError, match=words):
        config(**policy)


def test_defaults_are_the_planners_and_a_reading_starts_nothing_after_one_period():
    policy = config().policy
    assert (policy.min_window, policy.oldest_start, policy.max_sites, policy.leave_above) == (900.0, 300.0, None, None)
    assert config(max_reading_age="2 h").policy.oldest_start == HOUR
    assert config(start_age="7 min").policy.oldest_start == 420.0
    costs = config(start="40 s").costs("A")
    assert (costs.start_s, costs.stop_s, costs.sync_s, costs.train_w, costs.idle_w) == (40.0, 15.0, 30.0, 2000.0, 500.0)


def test_a_deadline_leaves_dear_power_and_status_shows_price_work_and_time_left(make_world):
    world = begin(
        make_world(budget_steps=100),
        {"deadline": "10 h", "tokens_per_s": 32 * 100 / (4.0 * HOUR), "safety": 1.0},  # four hours of one site
        A=[(0.0, 90.0), (6 * HOUR, 20.0), (10 * HOUR, 400.0)], B=[(0.0, 95.0), (5 * HOUR, 30.0), (9 * HOUR, 400.0)],
    )  # fmt: skip
    world.join("a", "A"), world.join("b", "B")
    world.tick()
    reply = world.beat("a")
    assert not reply.granted and reply.reason == "MCI 90 is not below 90 g/kWh, the price in force"
    plan = world.status().plan
    assert (plan.price, plan.known_by, plan.budget_kg) == (90.0, "assumed", None)
    assert plan.work_s == pytest.approx(4 * HOUR) and plan.deadline_left_s == pytest.approx(10 * HOUR - 0.25)
    assert plan.reason == "power below 90 g/kWh is enough for the deadline"


def test_the_price_follows_the_work_that_is_left_also_what_is_under_way(make_world):
    world = begin(make_world(budget_steps=100), {"deadline": "10 h"}, A=[(0.0, 50.0)], B=[(0.0, 400.0)])
    world.ready("a", "job")
    assignment = world.checkout("a", "job").assignment
    world.tick(1.0)
    assert world.status().plan.reason.startswith("no price yet")
    world.beat("a", "job", "train")
    who = world.who("a")
    tell = wire.Progress("a", who.fence, "job", assignment.round, 5, 160, 3.0, 64.0)
    world.store.call(lambda tx: world.service.progress(tx, who, tell))
    world.tick(1.0)
    plan = world.status().plan
    assert (plan.known_by, plan.tokens_per_s, plan.work_s) == ("reported", 64.0, pytest.approx((3200 - 160) / 64.0))
    world.commit("a", "job", assignment, 5, seconds=4.0)
    world.tick(1.0)
    plan = world.status().plan
    assert (plan.known_by, plan.tokens_per_s, plan.work_s) == ("measured", 40.0, pytest.approx((3200 - 160) / 40.0))


# -- what a site costs --------------------------------------------------------------------------


def test_costs_are_learned_from_the_run_shown_and_the_same_after_a_restart(world):
    world.join("a", "A")

    def live(phase: str, seconds: float, job: str | None = "job") -> None:
        world.beat("a", job, phase)
        for _ in range(int(seconds)):
            world.tick(1.0)
            world.beat("a", job, phase)

    def costs():
        return world.status().sites[0].costs

    world.tick()
    assert (costs().start_s, costs().stop_s, costs().sync_s, costs().starts) == (100.0, 15.0, 30.0, 0)
    for _ in range(3):
        live("paused", 3, None), live("start", 8), live("train", 4), live("sync", 2), live("train", 4), live("drain", 5)
    live("paused", 2, None)
    assert costs().start_s == pytest.approx(8.0, abs=0.1) and costs().stop_s == pytest.approx(5.0, abs=0.1)
    assert costs().sync_s == pytest.approx(2.0, abs=0.1) and costs().starts == 3
    known = costs()
    world.start()
    world.tick()
    assert costs() == known
