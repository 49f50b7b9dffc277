"""Machines that the controller switches off and on: when, what is booked meanwhile, and what a restart still knows."""

from __future__ import annotations

import dataclasses
import itertools
import time

import pytest

from controller.energy.clock import ReplayClock
from controller.fleet.power_commands import CommandResult, SystemRunner
from controller.fleet.power_states import (
    AFTER_RESTART,
    POWER_NEXT,
    Facts,
    PowerEvent,
    PowerState,
    advance_power,
    next_power_event,
    retry_s,
    start_expected,
)
from controller.service.service import Service, ServiceDeps
from curtail import wire
from curtail.carbon.accounting import ATTRIBUTED, PHASES, STANDING
from curtail.config import SiteSection, parse_config
from curtail.errors import ConfigError, RefusedTransition
from curtail.grid.forecast import Forecast
from curtail.policy.rules import Regime

SITE = SiteSection("stop-it", "start-it", off_after=90.0, limit=60.0, wake_limit=60.0)


class FakeRunner:
    """Commands that end when the test says how."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, str, dict[str, str]]] = []
        self.results: dict[str, CommandResult] = {}

    def begin(self, site, hook, command, env, limit_s):
        assert command == {"on_pause": "stop-it", "on_resume": "start-it"}[hook] and limit_s == 60.0
        self.begun.append((site, hook, dict(env)))

    def ended(self, site):
        return self.results.pop(site, None)

    def finish(self, site, code=0):
        self.results[site] = CommandResult(code != 0, f"{self.begun[-1][1]} ended with {code}: said so")

    def hooks(self):
        return [hook for _, hook, _ in self.begun]


class Switching:
    """A controller in memory that switches site `one`."""

    def __init__(self, world) -> None:
        self.world, self.runner = world, FakeRunner()
        regions = {name: dataclasses.replace(r, power_off=20.0) for name, r in world.config.regions.items()}
        world.config = dataclasses.replace(world.config, sites={"one": SITE}, regions=regions)
        self.horizons: list[float] = []
        self.course: Forecast | None = None
        world.source.forecast = self.forecast
        self.start()

    def forecast(self, region, now, horizon):
        self.horizons.append(horizon)
        return self.course

    def start(self) -> None:
        w = self.world
        run = w.store.call(lambda tx: tx.run())
        replay = ReplayClock(run.clock, 1.0, w.clock)
        w.service = Service(
            ServiceDeps(
                w.store, w.config, w.source, replay, w.clock, w.versions, w.uploads, w.merger, commands=self.runner
            )
        )
        w.store.call(w.service.resume)

    def state(self) -> PowerState:
        return self.world.service.switches.state("one")

    def site(self) -> wire.SiteStatus:
        return next(site for site in self.world.status().sites if site.site == "one")

    def pass_time(self, seconds: float, beating: bool = True) -> None:
        while seconds > 0:
            step = min(10.0, seconds)
            if beating:
                self.world.beat("one")
            self.world.tick(step)
            seconds -= step
        if beating:
            self.world.beat("one")

    def switched_off(self) -> None:
        """The site joined, paused for long enough, and is down."""
        self.world.source.mci = {"A": 500.0, "B": 60.0}
        self.world.join("one")
        self.pass_time(110.0)
        assert self.state() is PowerState.SWITCHING_OFF
        self.runner.finish("one")
        self.world.tick()
        self.pass_time(40.0, beating=False)
        assert self.state() is PowerState.OFF


@pytest.fixture
def switching(world):
    return Switching(world)


# -- the table ----------------------------------------------------------------


@pytest.mark.parametrize("state,event", [k for k in itertools.product(PowerState, PowerEvent) if k not in POWER_NEXT])
def test_a_forbidden_event_raises(state, event):
    with pytest.raises(RefusedTransition, match=state.value):
        advance_power(state, event)


def test_from_every_state_the_machines_can_be_on_again():
    on = {PowerState.ON}
    for _ in PowerState:
        on |= {state for (state, _), after in POWER_NEXT.items() if after in on}
    assert on == set(PowerState) and set(AFTER_RESTART) < set(PowerState)


def test_no_moment_gives_an_event_that_the_table_forbids():
    values = itertools.product((False, True), repeat=5)
    for state, (granted, idle, heard, silent, spent), expected, failed, since in itertools.product(
        PowerState, values, (None, False, True), (None, False, True), (0.0, 1e6)
    ):
        facts = Facts(1e6, granted, idle, heard, silent, 1e5, expected, 1e6 - since, 0.0, spent, failed)
        event = next_power_event(state, facts, SITE)
        assert event is None or (state, event) in POWER_NEXT


def test_a_forecast_that_does_not_reach_so_far_says_nothing():
    dirty = Forecast("A", ((0.0, 400.0), (600.0, 500.0)), known_until=900.0)
    assert start_expected(None, 100.0, 0.0, 900.0) is None
    assert start_expected(dirty, 100.0, 0.0, 900.0) is False
    assert start_expected(dirty, 100.0, 10.0, 900.0) is None
    assert start_expected(Forecast("A", ((600.0, 50.0),)), 100.0, 0.0, 900.0) is True
    assert start_expected(Forecast("A", ((1000.0, 50.0),)), 100.0, 0.0, 900.0) is False
    assert [retry_s(n) for n in (1, 2, 3, 20)] == [15.0, 30.0, 60.0, 600.0]


# -- off ----------------------------------------------------------------------


def test_without_a_forecast_a_site_is_switched_off_after_it_paused_for_off_after(switching):
    switching.world.source.mci = {"A": 500.0, "B": 60.0}
    switching.world.join("one")
    switching.pass_time(80.0)
    assert switching.state() is PowerState.ON and not switching.runner.begun
    switching.pass_time(40.0)
    ((site, hook, env),) = switching.runner.begun
    assert (site, hook) == ("one", "on_pause")
    assert env["CURTAIL_SITE"] == "one" and env["CURTAIL_REGION"] == "A" and env["CURTAIL_RUN"] == "test"
    assert "MCI 500 is not below 100" in env["CURTAIL_REASON"]
    assert set(switching.horizons) >= {90.0}


def test_a_forecast_without_a_start_switches_off_at_once_and_one_with_a_start_does_not(switching):
    world = switching.world
    world.source.mci = {"A": 500.0, "B": 60.0}
    now = world.service.replay.now()
    switching.course = Forecast("A", ((now + 5000.0, 50.0),))
    world.join("one")
    switching.pass_time(150.0)
    assert len(switching.runner.begun) == 1
    first = next(at for at in (e.at for e in world.status().events if e.kind == "power"))
    assert first - now <= 20.0
    world.store.call(lambda tx: tx.drop_switched("one"))
    switching.runner.begun.clear()
    now = world.service.replay.now()
    switching.course = Forecast("A", ((now + 80.0, 50.0), (now + 800.0, 500.0)))
    switching.start()
    switching.pass_time(70.0)
    assert not switching.runner.begun


def test_a_site_that_trains_or_is_silent_is_never_switched_off(switching):
    world = switching.world
    world.source.mci = {"A": 500.0, "B": 60.0}
    world.join("one")
    for _ in range(20):
        world.beat("one", job="j", phase="drain")
        world.tick(10.0)
    switching.pass_time(200.0, beating=False)
    assert not switching.runner.begun and switching.site().state == "SILENT"


def test_a_site_that_is_off_is_shown_as_that_and_draws_what_the_run_file_says(switching):
    switching.switched_off()
    site = switching.site()
    assert (site.state, site.phase) == ("OFF", "off")
    assert site.reason.startswith("switched off by on_pause; MCI 500 is not below 100")
    status = switching.world.status()
    assert status.reason == "A: MCI 500 is not below 100 g/kWh"
    before = status.energy
    switching.pass_time(360.0, beating=False)
    after = switching.world.status().energy
    assert after.standing_kwh - before.standing_kwh == pytest.approx(0.002, rel=1e-6)
    assert after.attributed_kwh == before.attributed_kwh
    assert "off" in STANDING and set(PHASES) == set(ATTRIBUTED) | set(STANDING)


def test_without_a_figure_a_machine_that_is_off_counts_as_one_that_stands_by(world):
    assert world.config.watts("A", "off") == world.config.watts("A", "paused") == 500.0
    regions = {"A": dataclasses.replace(world.config.regions["A"], power_paused=200.0, power_off=8.0)}
    config = dataclasses.replace(world.config, regions=regions)
    assert (config.watts("A", "paused"), config.watts("A", "off")) == (200.0, 8.0)


def test_until_the_agent_falls_silent_the_site_is_booked_as_it_reports(switching):
    switching.world.source.mci = {"A": 500.0, "B": 60.0}
    switching.world.join("one")
    switching.pass_time(110.0)
    switching.runner.finish("one")
    switching.pass_time(20.0)
    assert switching.state() is PowerState.OFF and switching.site().phase == "paused"


def test_an_on_pause_that_fails_is_reported_and_not_repeated_before_the_next_pause(switching):
    world = switching.world
    world.source.mci = {"A": 500.0, "B": 60.0}
    world.join("one")
    switching.pass_time(110.0)
    switching.runner.finish("one", 3)
    switching.pass_time(200.0)
    assert switching.state() is PowerState.ON and switching.runner.hooks() == ["on_pause"]
    assert switching.site().reason.endswith("; on_pause ended with 3: said so")
    assert any("one: on_pause ended with 3: said so" in event.text for event in world.status().events)
    world.source.mci["A"] = 50.0
    switching.pass_time(20.0)
    assert world.beat("one").granted
    world.source.mci["A"] = 500.0
    switching.pass_time(110.0)
    assert switching.runner.hooks() == ["on_pause", "on_pause"]


def test_machines_that_report_long_after_on_pause_were_not_switched_off(switching):
    switching.world.source.mci = {"A": 500.0, "B": 60.0}
    switching.world.join("one")
    switching.pass_time(110.0)
    switching.runner.finish("one")
    switching.pass_time(SITE.wake_limit + 20.0)
    assert switching.state() is PowerState.ON
    assert "on_pause did not switch it off: its agent still reports after 60 s" in switching.site().reason
    switching.pass_time(200.0)
    assert switching.runner.hooks() == ["on_pause"]


def test_an_agent_that_says_goodbye_because_its_machine_goes_down_stays_in_the_run(switching):
    world = switching.world
    world.source.mci = {"A": 500.0, "B": 60.0}
    world.join("one")
    switching.pass_time(110.0)
    who = world.who("one")
    request = wire.LeaveRequest(who.agent, "one", who.fence, "the agent was stopped")
    assert world.store.call(lambda tx: world.service.leave(tx, who, request)).ok
    switching.runner.finish("one")
    switching.pass_time(30.0, beating=False)
    assert (switching.site().state, switching.site().phase) == ("OFF", "off")
    world.source.mci["A"] = 50.0
    switching.pass_time(10.0, beating=False)
    assert switching.runner.hooks() == ["on_pause", "on_resume"]


# -- on -----------------------------------------------------------------------


def test_a_site_is_switched_on_when_its_region_may_train_and_is_not_ready_until_it_is_heard_from(switching):
    world = switching.world
    switching.switched_off()
    world.source.mci["A"] = 50.0
    world.tick(10.0)
    assert switching.runner.hooks() == ["on_pause", "on_resume"] and switching.state() is PowerState.SWITCHING_ON
    switching.pass_time(20.0, beating=False)
    assert (switching.site().phase, switching.site().reason) == ("start", "on_resume runs")
    switching.runner.finish("one")
    switching.pass_time(30.0, beating=False)
    site = switching.site()
    assert (site.state, site.phase, site.granted) == ("WAKING", "start", False)
    assert site.reason.endswith("its agent has not reported yet")
    live = world.service.fleet.find("one")
    assert not live.ready(world.clock.monotonic(), world.config.fleet.lost_after)
    assert world.status().regime == Regime.PAUSED.value
    assert world.beat("one").granted
    world.tick(1.0)
    assert switching.state() is PowerState.ON and switching.site().state == "IDLE"
    assert world.status().regime == Regime.LOCAL.value
    assert world.store.call(lambda tx: tx.switched()) == []


def test_what_waking_takes_is_one_start_with_that_of_the_job(switching):
    world = switching.world
    switching.switched_off()
    world.source.mci["A"] = 50.0
    world.tick(10.0)
    world.tick(0.0)
    began = world.service.replay.now()
    switching.runner.finish("one")
    switching.pass_time(40.0, beating=False)
    for phase, job in (("paused", None), ("paused", None), ("start", "job"), ("start", "job"), ("train", "job")):
        world.beat("one", job, phase)
        world.tick(5.0)
    world.beat("one", None, "drain")
    entries = world.store.call(lambda tx: tx.entries())
    assert not [e for e in entries if e.phase == "paused" and e.t0 >= began]
    starts = [e for e in entries if e.phase == "start"]
    assert starts[0].t0 == began and starts[-1].t1 == began + 60.0
    live = world.service.fleet.find("one")
    world.tick(1.0)
    assert world.service.scheduler.learned("one").seconds["start"] == (60.0,)
    assert live.phase == "drain"


def test_a_region_that_opens_before_the_machine_is_down_waits_for_that(switching):
    world = switching.world
    world.source.mci = {"A": 500.0, "B": 60.0}
    world.join("one")
    switching.pass_time(110.0)
    switching.runner.finish("one")
    world.source.mci["A"] = 50.0
    switching.pass_time(20.0)
    assert switching.runner.hooks() == ["on_pause"], "a machine that goes down cannot be started"
    reply = world.beat("one")
    assert not reply.granted and reply.reason == "its machines are being switched off"
    switching.pass_time(30.0, beating=False)
    assert switching.runner.hooks() == ["on_pause", "on_resume"]


def test_an_on_resume_that_fails_is_run_again_ever_more_rarely_and_says_so(switching):
    world = switching.world
    switching.switched_off()
    world.source.mci["A"] = 50.0
    world.tick(1.0)
    switching.runner.finish("one", 1)
    world.tick(1.0)
    world.tick(1.0)
    assert switching.state() is PowerState.OFF
    assert switching.site().reason == "on_resume ended with 1: said so; on_resume runs again in 14 s"
    switching.pass_time(20.0, beating=False)
    assert switching.runner.hooks() == ["on_pause", "on_resume", "on_resume"]
    switching.runner.finish("one", 1)
    switching.pass_time(25.0, beating=False)
    assert len(switching.runner.begun) == 3
    switching.pass_time(20.0, beating=False)
    assert len(switching.runner.begun) == 4


def test_an_agent_that_never_comes_back_is_switched_on_again(switching):
    switching.switched_off()
    switching.world.source.mci["A"] = 50.0
    switching.world.tick(1.0)
    switching.runner.finish("one")
    switching.pass_time(SITE.wake_limit + 10.0, beating=False)
    assert switching.state() is PowerState.OFF
    assert switching.site().reason.startswith("no agent reports 60 s after on_resume; on_resume runs again in")
    switching.pass_time(30.0, beating=False)
    assert switching.runner.hooks() == ["on_pause", "on_resume", "on_resume"]


def test_a_machine_that_somebody_else_switched_on_is_on(switching):
    switching.switched_off()
    switching.world.beat("one")
    switching.world.tick(1.0)
    assert switching.state() is PowerState.ON and switching.runner.hooks() == ["on_pause"]


def test_a_command_of_the_machine_itself_that_fails_is_an_event_and_a_reason(world):
    def beat(note, state="IDLE"):
        who = world.who("one")
        beat = wire.Heartbeat(who.agent, "one", who.fence, state, "paused", None, None, note)
        world.store.call(lambda tx: world.service.heartbeat(tx, who, beat))

    world.source.mci = {"A": 500.0, "B": 60.0}
    world.join("one")
    world.tick()
    for note in ("on_pause runs", "on_pause ended with 3: stuck", "on_pause ended with 3: stuck"):
        beat(note)
    (site,) = world.status().sites
    assert site.reason == "MCI 500 is not below 100 g/kWh; on_pause ended with 3: stuck"
    world.source.mci["A"] = 50.0
    world.tick()
    beat("on_resume ended with 1: stuck", "BACKOFF")
    assert world.status().sites[0].reason == "on_resume ended with 1: stuck"
    texts = [event.text for event in world.status().events if event.kind == "power"]
    assert texts == ["one: on_pause ended with 3: stuck", "one: on_resume ended with 1: stuck"]


# -- restart of the controller --------------------------------------------------


def test_a_restarted_controller_knows_which_sites_are_off_and_switches_them_on(switching):
    switching.switched_off()
    switching.start()
    switching.world.tick(1.0)
    assert (switching.site().state, switching.site().phase) == ("OFF", "off")
    switching.world.source.mci["A"] = 50.0
    switching.world.tick(1.0)
    assert switching.runner.hooks() == ["on_pause", "on_resume"]


def test_a_command_that_a_restart_cut_off_is_not_run_twice_if_it_pauses_and_is_if_it_resumes(switching):
    switching.world.source.mci = {"A": 500.0, "B": 60.0}
    switching.world.join("one")
    switching.pass_time(110.0)
    switching.start()
    switching.pass_time(60.0, beating=False)
    assert switching.state() is PowerState.OFF and switching.runner.hooks() == ["on_pause"]
    switching.world.source.mci["A"] = 50.0
    switching.world.tick(1.0)
    assert switching.state() is PowerState.SWITCHING_ON
    switching.start()
    switching.world.tick(1.0)
    assert switching.runner.hooks() == ["on_pause", "on_resume", "on_resume"]


def test_a_site_that_is_off_and_has_no_command_any_more_waits_for_a_person(switching):
    world = switching.world
    switching.switched_off()
    world.config = dataclasses.replace(world.config, sites={})
    switching.start()
    world.source.mci["A"] = 50.0
    world.tick(1.0)
    assert switching.runner.hooks() == ["on_pause"]
    assert switching.site().reason.endswith("the run file has no on_resume for it, so switch it on by hand")
    switching.pass_time(20.0, beating=False)
    world.beat("one")
    world.tick(1.0)
    assert switching.state() is PowerState.ON


# -- commands -------------------------------------------------------------------


def until_ended(runner, site):
    deadline = time.monotonic() + 20
    while (ended := runner.ended(site)) is None:
        assert time.monotonic() < deadline
    return ended


def test_a_command_is_run_by_the_shell_and_its_last_line_is_told(tmp_path):
    runner = SystemRunner(tmp_path / "hooks")
    runner.begin("one", "on_pause", 'echo "$CURTAIL_SITE"; echo done; exit 4', {"CURTAIL_SITE": "one"}, 60.0)
    assert until_ended(runner, "one") == CommandResult(True, "on_pause ended with 4: done")
    assert (tmp_path / "hooks" / "one.on_pause.log").read_text() == "one\ndone\n"
    runner.begin("one", "on_pause", "true", {}, 60.0)
    assert until_ended(runner, "one") == CommandResult(False, "on_pause ended with 0")
    assert runner.ended("one") is None, "told once"


def test_a_command_that_hangs_is_ended_with_all_it_started(tmp_path):
    runner = SystemRunner(tmp_path)
    runner.begin("one", "on_resume", "echo waiting; sleep 600 & wait", {}, 0.2)
    ended = until_ended(runner, "one")
    assert ended.failed and ended.words.startswith("on_resume did not end within 0 s")


def test_a_command_that_cannot_be_begun_has_failed(tmp_path):
    (tmp_path / "file").write_text("")
    runner = SystemRunner(tmp_path / "file")
    runner.begin("one", "on_pause", "true", {}, 60.0)
    assert until_ended(runner, "one").failed


# -- the run file -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"on_pause": "x"}, "has on_pause and no on_resume"),
        ({"on_resume": "x"}, "has on_resume and no on_pause"),
        ({"on_pause": "x", "on_resume": "y", "off_after": 15}, "off_after = 15 has no unit"),
        ({"on_pause": "x", "on_resume": "y", "off_after": "-1 s"}, "off_after = -1 is too small"),
        ({"on_pause": "", "on_resume": "y"}, "a text in quotes is needed"),
        ({"on_stop": "x"}, "unknown key 'on_stop'"),
        ("x", "a section is needed"),
    ],
)
def test_a_section_of_a_site_that_makes_no_sense_is_refused(section, words):
    table = {
        "run": {"name": "x"}, "model": {"preset": "d2-test"}, "data": {"path": "d"},
        "training": {"token_budget": 1000, "batch_samples": 1},
        "regions": {"A": {"power_train": "2 kW", "power_idle": "500 W"}}, "sites": {"one": section},
    }  # fmt: skip
    with pytest.raises(ConfigError, match=words):
        parse_config(table)
