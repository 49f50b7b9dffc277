"""The fail-safe table of docs/guides/carbon-accounting.md: when in doubt, no site trains, and the reason is said."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from agent.lifecycle import Event, State, next_event
from agent.lifecycle import View as AgentView
from controller.signals.replay import TraceSource
from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, unknown
from curtail.grid.trace import Trace
from curtail.policy.costs import SiteCosts
from curtail.policy.decision import Goal, View, decide
from curtail.policy.override import Override
from curtail.policy.rules import Regime, RegionRule, Site, Window

PERIOD = 300.0
COSTS = SiteCosts(start_s=100.0, stop_s=15.0, sync_s=30.0, train_w=2000.0, idle_w=500.0)
RULE = RegionRule("A", 100.0, 2 * PERIOD, 0.0, 0.0, PERIOD)
NOW = 1_000_000.0


def reading(mci: float, age: float = 0.0, region: str = "A") -> Reading:
    return Reading(region, mci, NOW - age, NOW - age + PERIOD, "test")


def view(value: Reading | None, running: bool = False, **more: object) -> View:
    return replace(View(RULE, Window(), value, None, Site(COSTS, running)), **more)


def answer(now: float = NOW, **views: View):
    views = {name: replace(v, rule=replace(v.rule, region=name)) for name, v in views.items()}
    return decide(views, Goal(), now)


def verdict(shown: View, now: float = NOW):
    return answer(now, A=shown).verdicts["A"]


def test_the_control_a_fresh_clean_reading_is_granted():
    assert verdict(view(reading(50.0))).granted


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no reading has arrived yet"),
        (unknown("A", NOW, "test", "the answer of the source was empty"), "was empty"),
        (unknown("A", NOW, "test", "the unit is percentile, not lbs_co2_per_mwh"), "percentile"),
        (reading(math.nan), "not a finite number"),
        (reading(3001.0), "above 3000"),
    ],
    ids=["never fetched", "empty body", "other unit", "NaN", "above 3000"],
)
def test_what_is_no_value_pauses_and_says_why(value, words):
    for running in (False, True):
        found = verdict(view(value, running))
        assert not found.granted and not found.curtailed and words in found.reason


def test_beyond_two_periods_training_stops():
    assert verdict(view(reading(50.0, 600.0), running=True)).granted
    found = verdict(view(reading(50.0, 601.0), running=True))
    assert not found.granted and "stale" in found.reason


def test_beyond_one_period_no_site_starts_but_one_that_trains_goes_on():
    found = verdict(view(reading(50.0, 301.0)))
    assert not found.granted and "a start needs one at most" in found.reason
    assert verdict(view(reading(50.0, 301.0), running=True)).granted
    assert verdict(view(reading(50.0, 299.0))).granted


def test_a_negative_value_counts_as_clean_and_stays_as_it_is():
    value = reading(-40.0)
    assert verdict(view(value)).granted and value.mci == -40.0


def test_a_zero_that_is_not_renewed_is_unknown_although_another_value_would_still_do():
    assert verdict(view(reading(0.0, 299.0), running=True)).granted
    found = verdict(view(reading(0.0, 301.0), running=True))
    assert not found.granted and "has not been renewed" in found.reason
    assert verdict(view(reading(1.0, 301.0), running=True)).granted


def test_zeros_in_all_regions_at_once_pause_all_and_are_flagged():
    found = answer(A=view(reading(0.0), True), B=view(reading(0.0)))
    assert found.regime is Regime.PAUSED
    for one in found.verdicts.values():
        assert not one.granted and "outage" in one.reason and one.flags == ("suspect zero",)


def test_zeros_beside_regions_that_say_nothing_are_doubted_too():
    assert answer(A=view(reading(0.0)), B=view(None)).regime is Regime.PAUSED


def test_a_zero_beside_another_value_is_believed():
    found = answer(A=view(reading(0.0)), B=view(reading(400.0)))
    assert found.verdicts["A"].granted and found.regime is Regime.LOCAL


def test_a_second_source_that_agrees_lifts_the_doubt():
    second = reading(3.0)
    found = answer(A=view(reading(0.0), second=second), B=view(reading(0.0)))
    assert found.verdicts["A"].granted and not found.verdicts["B"].granted
    for liar in (reading(300.0), reading(3.0, 700.0), unknown("A", NOW, "t", "down"), reading(math.nan)):
        assert answer(A=view(reading(0.0), second=liar), B=view(reading(0.0))).regime is Regime.PAUSED


def test_a_whole_day_of_forecast_zeros_pauses_and_part_of_a_day_does_not():
    day = tuple((NOW + PERIOD * i, 0.0) for i in range(290))
    found = verdict(view(reading(0.0), forecast=Forecast("A", day)))
    assert not found.granted and "whole day" in found.reason and found.flags == ("suspect zero",)
    night = (*day[:120], *((point, 400.0) for point, _ in day[120:]))
    assert verdict(view(reading(0.0), forecast=Forecast("A", night))).granted
    assert verdict(view(reading(0.0), forecast=Forecast("A", day[:120], NOW + 36_000.0))).granted


def test_when_the_trace_ended_its_last_value_is_not_used():
    trace = Trace("t", (NOW, NOW + PERIOD), {"A": (50.0, 50.0)}, PERIOD)
    source = TraceSource(trace, {"A": "A"}, foresight=False)
    end = NOW + 2 * PERIOD
    assert verdict(view(source.reading("A", end - 1.0), True), end - 1.0).granted
    found = verdict(view(source.reading("A", end), True), end)
    assert not found.granted and "ended" in found.reason


def test_an_agent_that_hears_nothing_drains_when_its_permit_ends():
    found = verdict(view(reading(50.0), running=True))
    assert found.until <= NOW + 2 * PERIOD, "the permit ends with its reading"
    silent = AgentView(State.TRAINING, now=60.0, since=0.0, permit_until=60.0)
    assert next_event(silent) is None
    assert next_event(replace(silent, now=60.1)) is Event.PERMIT_ENDED


def test_a_value_from_the_future_by_more_than_a_period_is_a_matter_of_clocks():
    assert verdict(view(reading(50.0, -299.0))).granted
    found = verdict(view(reading(50.0, -301.0), running=True))
    assert not found.granted and "check the clocks" in found.reason


def test_after_a_restart_nobody_trains_until_a_reading_has_come(world):
    world.ready("a", "job")
    world.start()
    beat = world.beat("a", "job", "train")
    assert not beat.granted and beat.regime == "PAUSED"
    world.tick()
    assert world.beat("a", "job", "train").granted


def test_flapping_doubles_the_dwell_and_is_reported():
    rule = replace(RULE, enter_dwell=300.0)
    calm = Window(NOW - 300.0, (NOW - 300.0,))
    restless = Window(NOW - 300.0, tuple(NOW - 300.0 * i for i in range(5, 0, -1)))
    assert verdict(view(reading(50.0), rule=rule, window=calm)).granted
    found = verdict(view(reading(50.0), rule=rule, window=restless))
    assert not found.granted and "more than 4 times within an hour" in found.reason
    assert found.flags == ("flapping",)
    sure = Forecast("A", ((NOW - 900.0, 50.0), (NOW + 90_000.0, 400.0)))
    assert verdict(view(reading(50.0), rule=rule, window=replace(calm, below_since=NOW), forecast=sure)).granted
    assert not verdict(view(reading(50.0), rule=rule, window=restless, forecast=sure)).granted, "no forecast waives it"
    longer = replace(restless, below_since=NOW - 600.0)
    assert verdict(view(reading(50.0), rule=rule, window=longer)).granted
    assert verdict(view(reading(50.0), running=True, rule=rule, window=restless)).granted


def test_crossings_are_remembered_for_an_hour():
    window = Window()
    for i in range(6):
        shown = view(Reading("A", 50.0 if i % 2 else 400.0, NOW + 300.0 * i, NOW + 300.0 * (i + 1), "t"), window=window)
        window = answer(NOW + 300.0 * i, A=shown).windows["A"]
    assert window.is_flapping(NOW + 1500.0) and not window.is_flapping(NOW + 1500.0 + 3600.0)


def test_an_order_to_train_is_limited_in_time_and_never_booked_as_curtailed():
    order = Override(True, NOW - 10.0, NOW + 50.0, "the operator")
    for value in (reading(50.0), reading(400.0), None):
        found = verdict(view(value, override=order))
        assert found.granted and not found.curtailed and found.flags == ("override",)
        assert found.until == NOW + 50.0 and found.reason == "the operator ordered the sites to train for another 50 s"
    late = verdict(view(reading(400.0), override=order), NOW + 50.0)
    assert not late.granted and late.flags == ()


def test_an_order_to_pause_outranks_clean_power():
    found = verdict(view(reading(5.0), True, override=Override(False, NOW, NOW + 60.0, "the operator")))
    assert not found.granted and "to pause" in found.reason


@pytest.mark.parametrize(("since", "until", "by"), [(0, 86401, "x"), (0, math.inf, "x"), (5, 5, "x"), (0, 9, "")])
def test_an_order_without_end_or_name_is_refused(since, until, by):
    with pytest.raises(ValueError, match="an override"):
        Override(True, since, until, by)


# -- the same at the live controller: no permit, and the reason is said; what sources can do is in test_signals ----


class Shown:
    """A source that shows one reading, however old it gets."""

    def __init__(self, region: str, value: Reading) -> None:
        self._region, self.value = region, value

    def reading(self, region: str, now: float) -> Reading:
        return self.value if region == self._region else unknown(region, now, "test", "nothing is known of it")

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        return None

    def second(self, region: str, now: float) -> Reading | None:
        return None

    def ended(self, now: float) -> bool:
        return False


@pytest.fixture
def live(make_world):
    """live(reading): a controller that sees only this, and its sites: "on" trains, "off" waits."""

    def make(shown: Reading | None = None, **policy: object):
        world = make_world()
        if shown is not None:
            world.source = Shown("A", shown)
        world.config = replace(world.config, policy=replace(world.config.policy, **policy))
        world.start()
        world.join("on"), world.join("off")
        world.tick(0.0)
        return world

    return make


def heard(world, later: float = 0.0):
    """What the two hear."""
    world.tick(later)
    return world.beat("on", "job", "train"), world.beat("off")


def test_live_before_anything_was_fetched_nobody_trains(live):
    for reply in heard(live(unknown("A", NOW, "test", "no answer has come yet"))):
        assert not reply.granted and reply.reason == "no answer has come yet"


@pytest.mark.parametrize(("mci", "words"), [(math.nan, "not a finite number"), (3001.0, "the highest plausible value")])
def test_live_a_value_that_cannot_be_pauses_and_says_why(live, mci, words):
    world = live(Reading("A", mci, NOW, NOW + PERIOD, "test"))
    for reply in heard(world):
        assert not reply.granted and words in reply.reason
    assert "A: " in world.status().reason and words in world.status().reason


def test_live_a_negative_value_trains_and_the_ledger_keeps_it_as_it_is(live):
    world = live(Reading("A", -40.0, NOW, NOW + PERIOD, "test"))
    assert all(reply.granted for reply in heard(world))
    heard(world, 10.0)
    world.source.value = Reading("A", 400.0, NOW + 10.0, NOW + 310.0, "test")
    heard(world, 1.0)
    rows = [entry for entry in world.store.call(lambda tx: tx.entries()) if entry.phase == "train"]
    assert {entry.detail.basis.mci_raw for entry in rows} == {-40.0} and all(entry.curtailed for entry in rows)
    assert {entry.kg for entry in rows} == {0.0}, "it earns nothing"


def test_live_beyond_one_period_nobody_starts_and_beyond_two_nobody_trains(live):
    world = live(Reading("A", 50.0, NOW, NOW + PERIOD, "test"))
    assert all(reply.granted for reply in heard(world, 299.0))
    world.join("new")
    on, _ = heard(world, 2.0)
    late = world.beat("new")
    assert on.granted and not late.granted and "a start needs one at most 300 s old" in late.reason
    assert on.valid_s <= 299.0
    on, off = heard(world, 300.0)
    assert not on.granted and not off.granted and "stale" in on.reason and "stale" in off.reason


def test_live_a_reading_from_the_future_pauses_and_speaks_of_clocks(live):
    for reply in heard(live(Reading("A", 50.0, NOW + 400.0, NOW + 700.0, "test"))):
        assert not reply.granted and "check the clocks" in reply.reason


def test_live_a_zero_that_is_not_renewed_pauses(live, make_world):
    world = live()
    world.source.mci = {"A": 0.0, "B": 300.0}
    assert all(reply.granted for reply in heard(world))
    world.service.deciding._source = Shown("A", Reading("A", 0.0, world.clock.t, world.clock.t + PERIOD, "test"))
    for reply in heard(world, 301.0):
        assert not reply.granted and reply.reason


def test_live_after_the_end_of_the_trace_nobody_trains(live):
    world = live()
    start = world.clock.t
    trace = Trace("t", (start, start + PERIOD), {"A": (50.0, 50.0), "B": (60.0, 60.0)}, PERIOD)
    world.source = TraceSource(trace, {"A": "A", "B": "B"}, foresight=False)
    world.start()
    assert all(reply.granted for reply in heard(world, 1.0))
    for reply in heard(world, 600.0):
        assert not reply.granted and "ended" in reply.reason
    assert world.status().signal_ended


def test_live_flapping_doubles_the_dwell_of_those_that_would_start(live):
    world = live(enter_dwell=30.0)
    for mci in (400.0, 50.0) * 4:
        world.source.mci = {"A": mci, "B": 400.0}
        world.tick(5.0)
    on, off = heard(world, 40.0)
    assert on.granted and not off.granted
    assert "training starts after 60 s; the MCI crossed the threshold more than 4 times within an hour" in off.reason
    assert all(reply.granted for reply in heard(world, 20.0))
