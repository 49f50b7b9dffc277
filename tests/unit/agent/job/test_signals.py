"""A signal to a whole process tree ends neither torchrun nor its ranks; torchrun itself may end a rank."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.launcher import LEAVE_SIGNALS, TERMINATION_SIGNAL

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the sender of a signal is unknown here")

RANK = """
import sys, time
from agent.job.signals import leave_signals_to_agent
leave_signals_to_agent()
print("ready", flush=True)
time.sleep(60)
"""

TORCHRUN = f"""
import signal, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}], stdout=subprocess.PIPE)
print(rank.stdout.readline().decode().strip(), rank.pid, flush=True)
sys.stdin.readline()
rank.send_signal(signal.SIGTERM)
print(rank.wait(20), flush=True)
"""
"""Starts a rank as torchrun does, and ends it when a line comes."""


@pytest.fixture
def pair():
    """The stand-in for torchrun, and the process id of its rank."""
    folder = Path(__file__).resolve().parents[4]
    process = subprocess.Popen(
        [*LEAVE_SIGNALS, sys.executable, "-c", TORCHRUN],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        _, rank = process.stdout.readline().split()
        yield process, int(rank)
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, signal.SIGKILL)


def state(pid):
    """State of a process, as one letter; "" after its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def test_signals_to_the_whole_tree_end_no_process_of_it_and_torchrun_ends_its_rank(pair):
    process, rank = pair
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        os.killpg(process.pid, number)
    deadline = time.monotonic() + 20.0
    while any(pending(pid) for pid in (process.pid, rank)):
        assert time.monotonic() < deadline, "the signals were never taken"
    assert process.poll() is None and state(rank) in ("S", "R")
    process.stdin.write("end\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == str(128 + signal.SIGTERM)
    assert process.wait(20) == 0


def pending(pid):
    """Are there signals that the process has not taken yet?"""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))


def test_the_agents_signal_ends_both(pair):
    process, rank = pair
    os.killpg(process.pid, TERMINATION_SIGNAL)
    assert process.wait(20) == -TERMINATION_SIGNAL
    deadline = time.monotonic() + 20.0
    while state(rank) not in ("", "Z"):
        assert time.monotonic() < deadline, "the rank goes on"
