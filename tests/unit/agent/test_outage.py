"""A finished contribution and an agent that lets it wait."""

from __future__ import annotations

import pytest
from doubles import FakeClock

from agent.home import Home
from agent.job import optimizer_state
from agent.job.optimizer_state import Kept
from agent.job.timings import Phases
from agent.job_files import JobStatus, read_status, write_status
from agent.lifecycle import DRAIN_S, AgentView, Event, State, next_event
from curtail.system.disk import SystemDisk
from nanochat.schedule import rewarm_factor

DISK = SystemDisk()


def draining(now, handing_in=None):
    return next_event(AgentView(State.DRAINING, now, 1000.0, job_phase="sync", handing_in=handing_in))


def test_a_job_that_hands_in_gets_the_time_it_asked_for_and_then_that_of_a_drain():
    assert draining(1000.0 + DRAIN_S) is Event.DRAIN_OVERDUE
    assert draining(1000.0 + DRAIN_S, handing_in=1600.0) is None
    assert draining(1600.0 + DRAIN_S - 1, handing_in=1600.0) is None
    assert draining(1600.0 + DRAIN_S, handing_in=1600.0) is Event.DRAIN_OVERDUE


def test_what_was_handed_in_long_before_the_drain_gives_no_more_time():
    assert draining(1000.0 + DRAIN_S, handing_in=10.0) is Event.DRAIN_OVERDUE


def test_the_job_says_until_when_it_hands_in(tmp_path):
    status = JobStatus("sync", 3, 7, 1.5, 10.0, "waiting", None, 1600.0)
    write_status(tmp_path, status)
    assert read_status(tmp_path) == status


def test_weights_that_a_killed_job_left_are_deleted_before_the_next_one(tmp_path):
    folder = tmp_path / "jobs" / "a"
    folder.mkdir(parents=True)
    for name in ("contribution.safetensors", "update.safetensors.part", "job.log"):
        (folder / name).write_bytes(b"x")
    Home(tmp_path).forget_old_jobs()
    assert [path.name for path in folder.iterdir()] == ["job.log"]


# -- inner state -------------------------------------------------------------


def keep(folder, digest, base, tokens):
    torch = pytest.importorskip("torch")
    optimizer_state.save(folder, Kept(tokens, digest, {"step": torch.tensor(tokens)}), base, DISK)


def found(folder, digest, tokens=0, lines=None):
    return optimizer_state.load(folder, digest, tokens, 10, (lines if lines is not None else []).append)


def test_the_state_of_the_base_is_preferred_to_a_newer_one(tmp_path):
    keep(tmp_path, "v1", "v0", 100)
    keep(tmp_path, "v2", "v1", 200)
    assert found(tmp_path, "v1", 100).tokens == 100
    assert found(tmp_path, "v2", 200).tokens == 200
    assert found(tmp_path, "another", 150).tokens == 200


def test_the_newest_and_that_of_its_base_are_kept(tmp_path):
    for number in range(1, 5):
        keep(tmp_path, f"v{number}", f"v{number - 1}", number)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["v3", "v4"]
    keep(tmp_path, "refused", "v3", 5)  # two contributions from one base: its state must stay
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["refused", "v3"]


def test_what_a_crash_left_half_written_is_deleted(tmp_path):
    keep(tmp_path, "v1", "v0", 1)
    (tmp_path / ".v2.safetensors.1.tmp").write_bytes(b"half")
    keep(tmp_path, "v2", "v1", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.safetensors", "v2.safetensors"]


def test_a_state_too_far_from_the_weights_is_passed_over_for_one_that_is_near(tmp_path):
    keep(tmp_path, "near", "v0", 1000)
    keep(tmp_path, "far", "near", 90_000)
    lines = []
    assert found(tmp_path, "another", 1000, lines).digest == "near"
    assert lines == ["an optimizer state of 90000 tokens is not used for weights of 1000"]
    assert found(tmp_path, "another", 40_000, lines) is None


def test_a_damaged_state_is_passed_over(tmp_path):
    keep(tmp_path, "v1", "v0", 1)
    (tmp_path / "v2.safetensors").write_bytes(b"damaged")
    lines = []
    assert found(tmp_path, "v2", 0, lines).digest == "v1"
    assert len(lines) == 1 and lines[0].startswith("an optimizer state cannot be used: ")


# -- small parts -----------------------------------------------------------------


def test_the_rate_rises_over_the_steps_it_was_given_and_not_without():
    assert [rewarm_factor(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rewarm_factor(0, 0) == 1.0


def test_seconds_are_added_up_by_phase_and_taken_once():
    clock = FakeClock(0.0)
    phases = Phases(clock)
    with phases("upload"):
        clock.t = 2.0
    phases.add("upload", 1.0)
    phases.add("step", 0.25)
    assert phases.take() == "total 2.000, step 0.250, upload 3.000"
    assert phases.take() == "total 0.000"
    with pytest.raises(KeyError):
        phases.add("lunch", 1.0)
