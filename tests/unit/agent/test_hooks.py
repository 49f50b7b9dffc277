"""The commands of a machine: when they run, how they end, and what a restart of the agent still knows."""

from __future__ import annotations

import importlib.util
import itertools
import json
import signal
import time
from pathlib import Path

import pytest

from agent.hooks import TERMINATE_S, UNREACHABLE_S, Commands, Condition, Hook, Hooks, hook_variables
from agent.join import Stop
from agent.launcher import system_spawn
from agent.lifecycle import AgentView, Event, State, energy_phase, next_event
from curtail.system.clock import SystemClock
from curtail.system.disk import SystemDisk

_spec = importlib.util.spec_from_file_location("join_tests", Path(__file__).with_name("test_join.py"))
join_tests = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(join_tests)

CLEAN, DIRTY = "MCI 60 is below 100 g/kWh", "MCI 120 is not below 100 g/kWh"


class FakeHook:
    """A command that ends `seconds` after its start."""

    pid = 2

    def __init__(self, world, name, env, seconds, code):
        self.world, self.name, self.env, self.code = world, name, env, code
        self.began, self.ends = world.t, world.t + seconds
        self.signals = []

    def poll(self):
        return self.code if self.world.t >= self.ends else None

    def signal_group(self, number):
        self.signals.append(number)
        if number == signal.SIGKILL:
            self.ends, self.code = self.world.t, -number


class HookWorld(join_tests.World):
    """The controller and machine of the agent's tests, and commands that take a second each."""

    def __init__(self):
        super().__init__()
        self.ran, self.codes, self.seconds = [], {}, 1.0

    def spawn(self, argv, env, cwd, log):
        if "CURTAIL_HOOK" not in env:
            job = join_tests.FakeJob(self, cwd, env)
            self.jobs.append(job)
            self.on_job(job)
            return job
        name = env["CURTAIL_HOOK"]
        assert argv[2] == f"do-{name}"
        codes = self.codes.get(name, [])
        code = codes.pop(0) if codes else 0
        if code:
            log.write_text(f"first line\nthe {name} switch is stuck\n")
        self.ran.append(FakeHook(self, name, env, self.seconds, code))
        return self.ran[-1]

    def names(self):
        return [hook.name for hook in self.ran]

    def live(self, home, commands=None, **options):
        both = Commands("do-on_pause", "do-on_resume")
        return self.run(home, hooks=both if commands is None else commands, **options)

    def window(self, begin, end):
        self.at(begin, lambda: self.set(granted=True, reason=CLEAN))
        self.at(end, lambda: self.set(granted=False, reason=DIRTY))


@pytest.fixture
def world():
    return HookWorld()


def stop(world):
    return lambda: world.stop.ask(signal.SIGTERM)


def test_on_resume_runs_before_the_job_and_on_pause_after_it_once_for_each_window(world, tmp_path):
    world.window(10, 30)
    world.window(60, 80)
    world.at(100, stop(world))
    assert world.live(tmp_path) == 0
    assert world.names() == ["on_pause", "on_resume", "on_pause", "on_resume", "on_pause"]
    assert len(world.jobs) == 2
    pauses = [hook for hook in world.ran if hook.name == "on_pause"]
    assert pauses[1].began >= 130 and world.jobs[0].code == 0, "the job has ended before"
    assert pauses[1].env["CURTAIL_REASON"] == DIRTY
    assert (pauses[1].env["CURTAIL_SITE"], pauses[1].env["CURTAIL_REGION"]) == ("A", "north")
    assert "CURTAIL_TOKEN" not in pauses[1].env
    assert "site A: left; the machine stays paused: on_resume was not run" in world.lines


def test_the_time_of_on_resume_is_part_of_the_start(world, tmp_path):
    world.seconds = 7.0
    world.on_job = lambda job: job.says("start")
    world.at(30, lambda: world.jobs[0].says("train"))
    world.window(10, 40)
    world.at(60, stop(world))
    world.live(tmp_path)
    phases = world.phases()
    assert phases == ["paused", "start", "train", "drain", "paused"]
    first = next(t for t, beat in world.beats if beat.phase == "start")
    assert 110 <= first <= 113 and energy_phase(State.RESUMING, None) == "start"
    notes = {beat.note for _, beat in world.beats if beat.state == "RESUMING"}
    assert notes == {"on_resume runs"}


def test_a_failing_on_pause_is_reported_and_training_goes_on_later(world, tmp_path):
    world.codes["on_pause"] = [0, 3]
    world.window(10, 20)
    world.window(40, 50)
    world.at(70, stop(world))
    assert world.live(tmp_path) == 0
    assert len(world.jobs) == 2
    assert "site A: waiting; on_pause ended with 3: the on_pause switch is stuck" in world.lines
    assert any(b.note == "on_pause ended with 3: the on_pause switch is stuck" for _, b in world.beats)
    assert world.names().count("on_pause") == 3, "it is not tried again for the same pause"


def test_a_failing_on_resume_is_tried_again_ever_more_slowly_and_no_job_starts_meanwhile(world, tmp_path):
    world.codes["on_resume"] = [1, 1, 1]
    world.seconds = 0.1
    world.at(0.1, lambda: world.set(granted=True, reason=CLEAN))
    world.at(40, stop(world))
    assert world.live(tmp_path) == 0
    begun = [hook.began for hook in world.ran if hook.name == "on_resume"]
    gaps = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert len(begun) == 4 and [round(gap / 2) for gap in gaps] == [1, 2, 4]
    assert len(world.jobs) == 1
    waiting = [b for t, b in world.beats if b.state == "BACKOFF"]
    assert waiting and {b.note for b in waiting} == {"on_resume ended with 1: the on_resume switch is stuck"}
    assert all(b.job is None for t, b in world.beats if t < begun[-1])


def test_a_command_that_takes_too_long_is_ended_and_counts_as_failed(world, tmp_path):
    world.seconds = 1000.0
    world.at(1, lambda: world.set(granted=True, reason=CLEAN))
    world.at(60, stop(world))
    world.live(tmp_path, Commands("", "do-on_resume", 20.0))
    assert world.ran[0].signals[:2] == [signal.SIGTERM, signal.SIGKILL]
    assert 120 + TERMINATE_S <= world.ran[0].ends <= 135 + TERMINATE_S and not world.jobs
    assert any("on_resume did not end within 20 s" in beat.note for _, beat in world.beats)


def test_a_restart_of_the_agent_does_not_forget_on_resume(world, tmp_path):
    world.window(10, 20)
    world.at(40, stop(world))
    world.live(tmp_path)
    assert world.names()[-1] == "on_pause"
    again = HookWorld()
    again.tokens, again.known = world.tokens, world.known
    again.granted, again.reason = True, CLEAN
    again.at(20, stop(again))
    again.live(tmp_path)
    assert again.names() == ["on_resume"] and len(again.jobs) == 1


def test_a_restart_while_paused_does_not_pause_again(world, tmp_path):
    world.window(10, 20)
    world.at(40, stop(world))
    world.live(tmp_path)
    world.ran.clear()
    world.stop = Stop()
    world.at(60, stop(world))
    world.live(tmp_path)
    assert world.names() == []


def test_an_agent_killed_while_it_trained_pauses_when_it_comes_back_without_a_permit(world, tmp_path):
    world.granted, world.reason = True, CLEAN
    world.at(10, interrupted(world))
    with pytest.raises(KeyboardInterrupt):
        world.live(tmp_path)
    assert json.loads((tmp_path / "hooks.json").read_text()) == {"condition": "awake"}
    world.granted, world.reason = False, DIRTY
    world.at(20, stop(world))
    world.live(tmp_path)
    assert world.names() == ["on_resume", "on_pause"]


def interrupted(world):
    def crash():
        raise KeyboardInterrupt

    return crash


def test_an_agent_killed_during_on_resume_runs_it_again(world, tmp_path):
    world.granted, world.reason, world.seconds = True, CLEAN, 50.0
    world.at(10, interrupted(world))
    with pytest.raises(KeyboardInterrupt):
        world.live(tmp_path)
    assert world.ran[0].signals == [signal.SIGKILL] and not world.jobs
    world.seconds = 1.0
    world.at(20, stop(world))
    world.live(tmp_path)
    assert world.names() == ["on_resume", "on_resume"] and len(world.jobs) == 1


def test_a_machine_pauses_only_once_the_controller_refused_it_or_was_away_for_long(world, tmp_path):
    assert next_event(AgentView(State.IDLE, 10.0, 0.0, pause_due=True)) is None
    assert next_event(AgentView(State.IDLE, 10.0, 0.0, pause_due=True, refused=True)) is Event.PAUSE_DUE
    world.granted, world.reason = True, CLEAN
    world.at(5, lambda: world.set(up=False))
    world.at(200, lambda: world.set(up=True, granted=False))
    world.at(210, stop(world))
    world.live(tmp_path)
    (pause,) = [hook for hook in world.ran if hook.name == "on_pause"]
    drained = 105 + world.valid_s
    assert drained <= pause.began and 104 + UNREACHABLE_S <= pause.began <= 115 + UNREACHABLE_S


def test_with_on_resume_alone_it_runs_before_each_job_and_with_on_pause_alone_after_each(world, tmp_path):
    world.window(10, 20)
    world.window(40, 50)
    world.at(70, stop(world))
    world.live(tmp_path, Commands("", "do-on_resume"))
    assert world.names() == ["on_resume", "on_resume"] and len(world.jobs) == 2
    other = HookWorld()
    other.window(10, 20)
    other.window(40, 50)
    other.at(70, stop(other))
    other.live(tmp_path / "other", Commands("do-on_pause", ""))
    assert other.names() == ["on_pause", "on_pause", "on_pause"] and len(other.jobs) == 2


def test_a_permit_that_ends_during_on_resume_starts_no_job(world, tmp_path):
    world.at(8, lambda: world.set(seconds=30.0))
    world.window(10, 20)
    world.at(90, stop(world))
    world.live(tmp_path)
    assert not world.jobs and world.names() == ["on_pause", "on_resume", "on_pause"]


def test_without_commands_nothing_is_written(world, tmp_path):
    world.granted = True
    world.at(5, stop(world))
    world.live(tmp_path, Commands())
    assert not (tmp_path / "hooks.json").exists()


def test_a_real_command_is_run_by_the_shell_with_its_variables_and_its_last_line_is_told(tmp_path):
    command = 'echo "$CURTAIL_SITE $CURTAIL_REGION $CURTAIL_HOOK: $CURTAIL_REASON"; exit 5'
    variables = hook_variables("one", "NORTH", "http://127.0.0.1:1", {"PATH": "/usr/bin:/bin", "CURTAIL_TOKEN": "x"})
    assert "CURTAIL_TOKEN" not in variables
    hooks = Hooks(Commands(command), tmp_path, variables, SystemDisk(), SystemClock(), system_spawn)
    hooks.begin(Hook.ON_PAUSE, DIRTY)
    deadline = time.monotonic() + 20
    while (ended := hooks.poll()) is None:
        assert time.monotonic() < deadline
    assert ended.failed and ended.words == f"on_pause ended with 5: one NORTH on_pause: {DIRTY}"
    assert hooks.condition is Condition.PAUSED


def test_a_command_that_cannot_be_noted_is_not_run(tmp_path):
    class Full(SystemDisk):
        def replace(self, op, path, data, mode=0o644):
            from curtail.errors import DiskError

            raise DiskError("the disk is full")

    started = []
    hooks = Hooks(Commands("x", "y"), tmp_path, {}, Full(), SystemClock(), lambda *a: started.append(a))
    hooks.begin(Hook.ON_RESUME, "")
    ended = hooks.poll()
    assert ended.failed and "the disk is full" in ended.words and not started
