"""Folders with keys and tokens are their owner's alone, from the moment that they are made."""

from __future__ import annotations

import os
import stat

import pytest

from agent.home import open_home
from controller.home.home import lock
from curtail.system.disk import SystemDisk


@pytest.fixture(autouse=True)
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(root, path):
    """Of all folders below `root` on the way to `path`."""
    return [stat.S_IMODE(folder.stat().st_mode) for folder in (path, *path.parents) if folder.is_relative_to(root)][:-1]


def test_a_new_folder_of_a_controller_and_of_an_agent_and_those_made_above_it_are_their_owners_alone(tmp_path):
    runs, agents = tmp_path / "runs" / "a" / "home", tmp_path / "agents" / "b"
    lock(runs).close()
    with open_home(agents, SystemDisk()):
        pass
    assert modes(tmp_path, runs) == [0o700] * 3 and modes(tmp_path, agents) == [0o700] * 2


def test_a_folder_that_is_there_keeps_its_mode(tmp_path):
    shared, home = tmp_path / "shared", tmp_path / "shared" / "run"
    for folder in (shared, home):
        folder.mkdir()
        folder.chmod(0o750)
    lock(home).close()
    with open_home(home, SystemDisk()):
        pass
    assert modes(tmp_path, home) == [0o750] * 2
