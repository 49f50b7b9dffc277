"""Nothing that an agent started lives on when the agent is killed, whatever it was doing at that moment."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curtail.system import process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel kills orphans on Linux only")

ROOT = Path(process.__file__).resolve().parents[2]

RANK = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
name = sys.argv[2]
(folder / f"{name}.pid").write_text(str(os.getpid()))
while not (folder / "go").exists():
    time.sleep(0.01)
from curtail.system.process import die_with_starter
die_with_starter("CURTAIL_JOB", os.environ["CURTAIL_JOB"])
(folder / f"{name}.in").write_text("")
time.sleep(60)
"""
"""A rank: in a session of its own, as torchrun starts them, and busy importing until the file `go` is there."""

TORCHRUN = """
import subprocess, sys, time
ranks = [subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1], f"rank{n}"], start_new_session=True)
         for n in range(2)]
time.sleep(60)
"""

AGENT = """
import os, pathlib, sys, time
from agent.launcher import system_spawn
folder = pathlib.Path(sys.argv[1])
env = {**os.environ, "CURTAIL_JOB": "j1"}
job = system_spawn([sys.executable, "-c", sys.argv[2], str(folder), sys.argv[3]], env, folder, folder / "log")
(folder / "torchrun.pid").write_text(str(job.pid))
time.sleep(60)
"""

PROCESSES = ("torchrun", "rank0", "rank1")


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return found


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def chain(tmp_path):
    """An agent, its torchrun and two ranks as processes: (agent, pid of each)."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    agent = subprocess.Popen([sys.executable, "-c", AGENT, tmp_path, TORCHRUN, RANK], env=env)
    pids: dict[str, int] = {}

    def started():
        with contextlib.suppress(OSError, ValueError):
            pids.update({name: int((tmp_path / f"{name}.pid").read_text()) for name in PROCESSES})
        return len(pids) == len(PROCESSES)

    try:
        wait_for(started)
        yield agent, pids
    finally:
        agent.kill()
        agent.wait()
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_killed_agent_takes_its_torchrun_and_every_rank_along(chain, tmp_path):
    agent, pids = chain
    (tmp_path / "go").write_text("")
    wait_for(lambda: all((tmp_path / f"rank{n}.in").exists() for n in range(2)))
    assert not any(gone(pid) for pid in pids.values()), "ranks whose torchrun lives go on"
    agent.kill()
    wait_for(lambda: all(gone(pid) for pid in pids.values()))


def test_a_rank_that_was_still_importing_when_its_agent_was_killed_ends_before_it_takes_a_gpu(chain, tmp_path):
    agent, pids = chain
    agent.kill()
    wait_for(lambda: gone(pids["torchrun"]))
    assert not gone(pids["rank0"]) and not gone(pids["rank1"])
    (tmp_path / "go").write_text("")
    wait_for(lambda: gone(pids["rank0"]) and gone(pids["rank1"]))
    assert not list(tmp_path.glob("*.in"))
