"""Counters of machines become energy in the ledger: nothing twice, nothing lost, nothing negative."""

from __future__ import annotations

from dataclasses import replace

import pytest
from doubles import FakeClock

from agent.power import CounterMeter
from controller.ledger.metering import SiteMeter, difference
from curtail.wire import Power

ZERO = Power("m1", "nvml-total-energy+rapl", 0.0, 0.0, 0.0, 0.0)


def counted(seconds, watts, gpu=0.75, meter="m1"):
    joules = seconds * watts
    return Power(meter, ZERO.method, seconds, joules, gpu * joules, (1 - gpu) * joules)


def play(reports, model_w=100.0, speed=1.0, expected=1):
    """Feed (time, {agent: report}); the watts in force after each, and the energy booked up to each."""
    meter, watts, booked, at, out = SiteMeter(), model_w, 0.0, None, []
    for now, machines in reports:
        booked += watts * (now - at) if at is not None else 0.0
        at = now
        booked += meter.book(machines, now, speed, model_w).joules
        drawn = meter.present(expected, model_w, True)
        watts = drawn.watts
        out.append((drawn, booked))
    return out


def test_what_counters_say_replaces_what_was_assumed():
    reports = [(0.0, {"a": ZERO}), (2.0, {"a": counted(2.0, 500.0)}), (4.0, {"a": counted(4.0, 800.0)})]
    (first, _), (second, until_two), (third, until_four) = play(reports)
    assert (first.method, first.watts) == ("constant", 100.0), "one report says nothing yet"
    assert second.method == "nvml-total-energy+rapl" and second.watts == pytest.approx(500.0)
    assert until_two == pytest.approx(200.0), "the first two seconds were booked by the model, and stay so"
    assert until_four - until_two == pytest.approx(4 * 800.0 - 2 * 500.0), "exactly what the counter grew by"
    assert third.watts == pytest.approx(1100.0)
    assert third.draw is not None and third.draw.gpu_w == pytest.approx(825.0) and third.draw.sampled == 1.0


def test_a_lost_report_loses_no_energy_and_a_repeated_one_adds_none():
    steady = [(2.0 * n, {"a": counted(2.0 * n, 600.0)}) for n in range(6)]
    whole = play(steady)[-1][1]
    lost = play([report for n, report in enumerate(steady) if n not in (3, 4)])[-1][1]
    again = [steady[0], steady[1], (2.5, steady[1][1]), (3.0, {"a": replace(steady[1][1]["a"])}), *steady[2:]]
    assert lost == pytest.approx(whole) and play(again)[-1][1] == pytest.approx(whole)


def test_an_agent_that_starts_again_counts_from_zero_and_its_pause_is_filled_from_the_model():
    reports = [(2.0 * n, {"a": counted(2.0 * n, 600.0)}) for n in range(4)]
    before = play(reports)[-1][1]
    reports += [(30.0, {"a": counted(0.0, 0.0, meter="m2")}), (32.0, {"a": counted(2.0, 300.0, meter="m2")})]
    after = play(reports)[-1][1]
    assert after - before == pytest.approx(2.0 * 300.0 + 24.0 * 100.0), "two seconds measured, 24 s by the model"


def test_a_counter_that_falls_gives_no_figure_instead_of_a_guess():
    assert difference(counted(10.0, 100.0), counted(12.0, 50.0)) is None
    assert difference(counted(10.0, 100.0), counted(9.0, 120.0)) is None
    reports = [(0.0, {"a": ZERO}), (2.0, {"a": counted(2.0, 500.0)}), (4.0, {"a": counted(4.0, 100.0)})]
    assert play(reports)[-1][1] == pytest.approx(200.0 + 2.0 * 500.0), "what was assumed stays"


def test_gpus_alone_are_told_apart_beside_the_model_of_the_machine():
    def gpus(seconds, watts):
        return Power("m", "nvml-total-energy", seconds, None, seconds * watts, None)

    drawn, booked = play([(0.0, {"a": gpus(0, 0)}), (2.0, {"a": gpus(2, 70)}), (4.0, {"a": gpus(4, 70)})])[-1]
    assert drawn.method == "constant" and drawn.watts == 100.0 and booked == pytest.approx(400.0)
    assert drawn.draw is not None and drawn.draw.gpu_w == pytest.approx(70.0) and drawn.draw.sampled == 0.0


def test_a_site_is_measured_when_all_of_its_machines_are():
    both = [(2.0 * n, {"a": counted(2.0 * n, 600.0), "b": counted(2.0 * n, 400.0, meter="x")}) for n in range(3)]
    drawn, _ = play(both, expected=2)[-1]
    assert drawn.watts == pytest.approx(1000.0) and drawn.draw is not None and drawn.draw.sampled == 1.0
    assert play(both, expected=3)[-1][0].method == "constant", "one has not joined yet"
    one = [(now, {**machines, "b": None}) for now, machines in both]
    assert play(one, expected=2)[-1][0].method == "constant"


def test_at_a_replay_energy_is_that_of_the_traces_time():
    reports = [(60.0 * 2 * n, {"a": counted(2.0 * n, 500.0)}) for n in range(4)]
    out = play(reports, speed=60.0)
    assert out[-1][1] - out[1][1] == pytest.approx(500.0 * 240.0)


def test_a_silent_site_is_booked_by_the_model():
    meter = SiteMeter()
    meter.book({"a": ZERO}, 0.0, 1.0, 100.0)
    meter.book({"a": counted(2.0, 500.0)}, 2.0, 1.0, 100.0)
    assert meter.present(1, 100.0, True).watts == pytest.approx(500.0)
    drawn = meter.present(1, 80.0, False)
    assert (drawn.watts, drawn.method, drawn.draw) == (80.0, "constant", None)


class Counting:
    method, covers = "fake", ("x",)

    def __init__(self, part):
        self.part, self.total, self.broken = part, 5.0, False

    def joules(self):
        if self.broken:
            raise OSError("gone")
        return self.total


def test_the_agents_meter_sums_up_what_it_measured_and_leaves_gaps_out():
    clock, gpu, host = FakeClock(), Counting("gpu"), Counting("host")
    meter = CounterMeter([gpu, host], clock)
    for seconds, broken in ((0.0, False), (2.0, False), (2.0, True), (2.0, False), (2.0, False)):
        clock.t += seconds
        gpu.total += 100.0 * seconds
        host.total += 40.0 * seconds
        gpu.broken = broken
        meter.watts()
    power = meter.power()
    assert (power.seconds, power.gpu_joules, power.host_joules, power.joules) == (4.0, 400.0, 160.0, 560.0)
    assert power.method == "fake" and meter.power() == power, "asking changes nothing"
    other = CounterMeter([gpu], clock, lacks=("host",)).power()
    assert other.meter != power.meter and other.joules is None and other.gpu_joules == 0.0
