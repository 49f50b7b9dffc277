"""A controller that is away for longer than a permit: the finished contribution waits for it."""

from __future__ import annotations

import json

import pytest

from controller.rounds.lifecycle import Member

pytestmark = pytest.mark.fault

WAITING = "waiting for the controller with a finished contribution"


def test_a_contribution_finished_while_the_controller_was_away_is_committed_after_its_permit_lapsed(fleet, site):
    fleet.pace_s = fleet.PACE_S
    fleet.write_run(
        rounds={"length": "300 s", "inner_steps": 100_000}, policy={"permit": "12 s"}, fleet={"lost_after": "20 s"}
    )
    fleet.write_trace([(3600, "A")])
    fleet.start_controller()
    agent = fleet.start_agent("a", "A")
    before = fleet.until("a trains", lambda s: site(s, "a") is not None and site(s, "a").step > 0)
    fleet.controller.kill_9()
    fleet.wait_for("the permit expires", lambda: "expired while the controller was unreachable" in agent.text())
    fleet.wait_for("the job waits", lambda: WAITING in agent.text())
    (folder,) = (fleet.folder / "home-a" / "jobs").iterdir()
    told = json.loads((folder / "status.json").read_text())
    assert (told["phase"], told["reason"], told["exit_code"]) == ("sync", WAITING, None)
    assert (folder / "contribution.safetensors").stat().st_size > 1_000_000
    job = fleet.job("a")
    assert job, "the agent lets it wait"

    fleet.start_controller()
    after = fleet.until("what was trained is merged", lambda s: s.tokens > before.tokens)
    assert any(f"from round {before.round.round} (a)" in event.text for event in after.events)
    fleet.wait_for("the job left", lambda: "job: left: " in (folder / "job.log").read_text())
    assert not list(folder.glob("*.safetensors"))
    fleet.stop()
    assert fleet.in_store(lambda tx: tx.ledger_problems()) == []
    (first, *_) = fleet.members()
    assert (first.state, first.round) == (Member.MERGED.value, before.round.round)
    assert first.tokens == first.steps * 4 * 64 >= told["step"] * 4 * 64
