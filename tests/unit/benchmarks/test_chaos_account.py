"""Chaos: the account of what faults cost is exact in its sum and fair; paced steps take their time; a machine's use."""

import pytest

from benchmarks.chaos_account import Span, account, blamed, by_kind, spans
from benchmarks.chaos_clock.chaos_pace import paced
from benchmarks.chaos_faults import CONTROLLER, Fault
from benchmarks.chaos_machine import Machine

SITES = ("a", "b")


def test_what_came_between_two_versions_is_counted_by_site():
    merged = [(1, "a", 5), (2, "a", 10), (2, "b", 20), (4, "a", 7), (3, "a", 1), (5, "b", 9)]
    assert spans([(-1.0, 1), (9.0, 2), (20.0, 4)], merged) == [
        Span(-1.0, 9.0, {"a": 10, "b": 20}),
        Span(9.0, 20.0, {"a": 8}),
    ]
    assert spans([(0.0, 1)], merged) == []


def test_costs_and_what_is_left_over_are_all_that_is_missing():
    parts = [
        Span(-10.0, 10.0, {"a": 20, "b": 20}),
        Span(10.0, 20.0, {"a": 3, "b": 8}),  # 7 s and 2 s of the rate 1 are missing
        Span(20.0, 40.0, {"a": 20, "b": 16}),
        Span(200.0, 210.0, {"a": 9, "b": 10}),  # 1 s, of which half lies in the measured time
    ]
    fault = Fault(12.0, "kill job", "a", 0.0)
    costs, left = account(parts, SITES, [fault], 1.0, 205.0)
    assert (costs[0].own_s, costs[0].others_s, left) == pytest.approx((7.0, 6.0, 0.5))
    tokens = sum(part.tokens[site] for part in parts[1:3] for site in SITES) + 10 + 10 + 4.5 + 5
    assert costs[0].own_s + costs[0].others_s + left == pytest.approx(2 * (10 + 10 + 20 + 5) - tokens)


def test_a_loss_is_put_down_to_the_sites_own_fault_then_to_the_controllers_then_to_anothers():
    own, stop, other = (
        Fault(0.0, "kill job", "a", 0.0),
        Fault(5.0, "stop controller", CONTROLLER, 2.0),
        Fault(6.0, "partition", "b", 5.0),
    )
    part, late = Span(4.0, 10.0, {}), Span(100.0, 110.0, {})
    assert blamed(part, "a", [own, stop, other]) == 0
    assert blamed(part, "a", [stop, other]) == 0
    assert blamed(part, "a", [other]) == 0
    assert blamed(late, "a", [own, stop, other]) is None
    assert blamed(Span(0.0, 3.0, {}), "a", [stop]) is None, "nothing is lost before the fault"
    costs, _ = account([part], SITES, [stop], 1.0, 10.0)
    assert (costs[0].own_s, costs[0].others_s) == (12.0, 0.0), "all sites are the controller's"


def test_kinds_are_averaged_over_their_faults():
    faults = [Fault(0.0, "kill job", "a", 0.0), Fault(100.0, "kill job", "b", 0.0)]
    parts = [Span(0.0, 10.0, {"b": 10}), Span(100.0, 110.0, {"a": 10, "b": 6})]
    costs, left = account(parts, SITES, faults, 1.0, 200.0)
    assert by_kind(costs) == {"kill job": {"faults": 2, "own_s": 7.0, "others_s": 0.0}}
    assert left == 0.0


class Time:
    def __init__(self):
        self.now, self.slept = 0.0, []

    def sleep(self, seconds):
        self.now += seconds
        self.slept.append(seconds)


def test_a_paced_step_takes_its_time_and_a_longer_one_what_it_takes():
    time, asked = Time(), []

    def steps(until):
        for step, seconds in enumerate((0.1, 0.1, 2.0, 0.2, 0.0)):
            if until(step):
                return step
            time.now += seconds
        return None

    def enough(step):
        asked.append((step, round(time.now, 3)))
        return step == 4

    assert paced(steps, 0.5, lambda: time.now, time.sleep)(until=enough) == 4
    assert asked == [(0, 0.0), (1, 0.5), (2, 1.0), (3, 3.0), (4, 3.5)]


def test_a_jobs_steps_are_paced_from_outside_and_only_theirs(tmp_path):
    import os
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).parents[3]
    (tmp_path / "agent" / "job").mkdir(parents=True)
    (tmp_path / "agent" / "__init__.py").write_text("")
    (tmp_path / "agent" / "job" / "__init__.py").write_text("")
    (tmp_path / "agent" / "job" / "trainer.py").write_text("def inner_steps(until):\n    return until(1)\n")
    show = "import agent.job.trainer as t; print(hasattr(t.inner_steps, '__wrapped__'), t.inner_steps(until=bool))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root / "benchmarks" / "chaos_clock"), str(tmp_path)]),
    }

    def said(**variables):
        command, env = [sys.executable, "-c", show], environment | variables
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert said(CURTAIL_JOB="j", CURTAIL_CHAOS_PACE="0.01") == "True True\n"
    assert said(CURTAIL_JOB="j", CURTAIL_CHAOS_PACE="0") == said(CURTAIL_CHAOS_PACE="1") == "False True\n"


def test_use_of_processors_and_memory_is_counted_from_the_beginning(tmp_path):
    def set_to(used, idle, free):
        (tmp_path / "stat").write_text(f"cpu  {used} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1\n")
        (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:   {free} kB\n")

    set_to(100, 100, 8_000_000)
    machine = Machine(tmp_path)
    set_to(120, 150, 5_000_000)
    machine.look()
    set_to(130, 170, 7_000_000)
    assert machine.facts() == {"processors used %": 30.0, "least memory left GB": 5.0}
