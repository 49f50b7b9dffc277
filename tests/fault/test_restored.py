"""A run is saved while it trains, is lost, and is restored; the agent that trained all the time goes on with it."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.fault


def test_an_agent_goes_on_with_a_controller_that_went_back_to_its_backup(fleet, site, command):
    fleet.pace_s = fleet.PACE_S
    fleet.write_run(rounds={"length": "2 s", "grace": "60 s"}, policy={"permit": "60 s"})
    fleet.write_trace([(3600, "AB")])
    fleet.start_controller()
    agent = fleet.start_agent("a", "A")
    fleet.until("a trains", lambda s: s.version > 0 and site(s, "a").state == "TRAINING")
    backup = fleet.folder / "saved.tar"
    done = command("controller", "backup", backup, "--home", fleet.home)
    assert done.returncode == 0, done.stderr
    saved = int(re.search(r"at version (\d+)", done.stdout)[1])
    lost = fleet.until("more is trained", lambda s: s.version > saved)
    fleet.controller.kill_9()

    fleet.home = fleet.folder / "restored"
    done = command("controller", "restore", backup, "--home", fleet.home)
    assert done.returncode == 0, done.stderr
    assert fleet.ledger() == []
    back = fleet.start_controller()
    assert saved <= back.version < lost.version
    assert any(e.kind == "restore" and f"at version {saved}" in e.text for e in back.events)
    tokens = back.tokens
    after = fleet.until("the agent goes on", lambda s: s.version > back.version and s.tokens > tokens)
    assert after.tokens == site(after, "a").tokens, "nothing that was lost counts"
    assert agent.running()
