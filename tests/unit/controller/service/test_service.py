"""The controller's use cases, with a real store and real merges, and a clock the test moves."""

from __future__ import annotations

import numpy as np
import pytest

from curtail import wire
from curtail.errors import AuthError, NotFound, Refused


def test_a_site_gets_a_permit_only_while_its_region_is_curtailed(world):
    world.join("a", "A")
    assert not world.beat("a").granted, "before the first step nothing is known"
    world.tick()
    reply = world.beat("a")
    assert reply.granted and 0 < reply.valid_s <= world.config.policy.permit
    world.source.mci["A"] = 400.0
    world.tick()
    reply = world.beat("a")
    assert not reply.granted and reply.valid_s == 0.0 and "MCI 400" in reply.reason


def test_an_unknown_reading_ends_the_permit_and_says_why(world):
    world.join("a", "A")
    world.tick()
    world.source.mci["A"] = None
    world.tick()
    reply = world.beat("a")
    assert not reply.granted and reply.reason == "the test says nothing"
    assert world.status().reason.endswith("the test says nothing")


def test_without_steps_of_the_simulation_no_permit_is_given(world):
    world.join("a", "A")
    world.tick()
    world.clock.t += 6.0
    assert "makes no steps" in world.beat("a").reason


def test_the_regime_follows_the_number_of_sites_and_its_seconds_add_up(world):
    world.source.mci = {"A": 400.0, "B": 400.0}
    world.join("a", "A"), world.join("b", "B")
    for a, b, seconds in ((400.0, 400.0, 5.0), (50.0, 400.0, 3.0), (50.0, 60.0, 2.0)):
        world.source.mci = {"A": a, "B": b}
        for _ in range(int(seconds)):
            world.beat("a"), world.beat("b")
            world.tick(1.0)
    status = world.status()
    assert status.regime == "FEDERATED"
    assert status.regime_seconds == {"PAUSED": 6.0, "LOCAL": 3.0, "FEDERATED": 1.0}


def test_joining_needs_the_token_a_known_region_and_the_same_protocol(world):
    good = wire.JoinRequest(wire.PROTOCOL, "agent", "a", "A", "host", 1, "ct0.abc.secret")
    cases = (
        ("token", "ct0.abc.wrong", AuthError),
        ("token", "ct0.none.secret", AuthError),
        ("token", "", AuthError),
        ("region", "ATLANTIS", NotFound),
        ("protocol", 99, Refused),
    )
    for name, value, error in cases:
        values = {field: getattr(good, field) for field in wire.JoinRequest.__slots__} | {name: value}
        with pytest.raises(error):
            world.store.call(lambda tx, values=values: world.service.join(tx, wire.JoinRequest(**values)))
    assert world.store.call(lambda tx: tx.sites()) == []


def test_a_second_agent_cannot_take_a_site_that_is_alive_but_can_when_it_is_gone(world):
    world.join("a", agent="one")
    world.beat("a")
    with pytest.raises(Refused, match="already served"):
        world.join("a", agent="two")
    world.clock.t += world.config.fleet.lost_after + 1
    with pytest.raises(Refused, match="belongs to another key"):
        world.join("a", agent="two")
    assert world.join("a", agent="two", token=world.token("a")).fence == 2


def test_the_same_agent_joins_again_at_once_and_its_old_epoch_is_refused(world):
    world.ready("a", "job1")
    world.checkout("a", "job1")
    world.join("a")
    with pytest.raises(Refused, match="fencing token 1"):
        world.beat("a", "job1", fence=1)
    assert world.status().round is None, "its part of the open round went back"
    world.check()


def test_a_sole_site_trains_local_and_its_exact_weights_become_the_version(world):
    world.ready("a", "job")
    reply = world.checkout("a", "job")
    work = reply.assignment
    assert (reply.kind, work.codec, work.fetch) == ("train", "weights", "weights")
    assert (work.lease_start, work.lease_stop, work.steps, work.keep) == (0, 80, 10, True), "ten steps, and ten ahead"
    receipt = world.commit("a", "job", work, steps=10)
    assert receipt.tokens == 10 * 32 and not receipt.repeated
    base, new = world.base(0), world.base(1)
    for name in base:
        assert np.array_equal(new[name], base[name] - np.float32(0.5))
    latest = world.store.call(lambda tx: tx.latest_version())
    again = world.checkout("a", "job", held=latest.digest)
    assert again.assignment.fetch == "none" and again.assignment.base_version == 1
    world.check()


def test_steps_of_the_last_round_are_not_shown_as_those_of_the_next(world):
    world.ready("a", "job")
    work, who = world.checkout("a", "job").assignment, world.who("a")

    def shown(round, step):
        progress = wire.Progress("a", who.fence, "job", round, step, 32 * step, 3.0, 100.0)
        world.store.call(lambda tx: world.service.progress(tx, who, progress))
        site = world.status().sites[0]
        return site.round, site.step

    assert shown(1, 10) == (1, 10)
    world.commit("a", "job", work, steps=10)
    world.checkout("a", "job")
    site = world.status().sites[0]
    assert (site.round, site.step) == (2, 0)
    assert shown(2, 1) == (2, 1)


def test_two_sites_are_averaged_by_tokens_and_get_the_same_update(world):
    for site, region in (("a", "A"), ("b", "B")):
        world.ready(site, f"job-{site}", region)
    world.checkout("a", "job-a")  # asks first and is alone
    assert world.checkout("b", "job-b").reason == "waiting for the end of round 1"
    who = world.who("a")
    progress = wire.Progress("a", who.fence, "job-a", 1, 3, 96, 3.0, 100.0)
    assert world.store.call(lambda tx: world.service.progress(tx, who, progress)).end_round
    first = world.checkout("a", "job-a").assignment
    world.commit("a", "job-a", first, steps=4)
    work = {site: world.checkout(site, f"job-{site}").assignment for site in ("a", "b")}
    assert all(w.codec == "int8" and w.members == 2 for w in work.values())
    assert [(w.rate_factor, w.memory_factor) for w in (first, *work.values())] == [(1, 1)] + [(2**0.5, 2**0.5)] * 2
    assert work["a"].lease_stop <= work["b"].lease_start or work["b"].lease_stop <= work["a"].lease_start
    world.commit("a", "job-a", work["a"], steps=6, shift=0.3)
    assert world.status().version == 1, "the round waits for the other"
    world.commit("b", "job-b", work["b"], steps=2, shift=0.7)
    before, after = world.base(1), world.base(2)
    for name in before:
        np.testing.assert_allclose(before[name] - after[name], 0.75 * 0.3 + 0.25 * 0.7, atol=0.01)
    held = world.store.call(lambda tx: tx.version(1)).digest
    third = world.checkout("a", "job-a", held=held).assignment
    assert third.fetch == "update" and third.tokens_before == 12 * 32
    assert {s.site: s.tokens for s in world.status().sites} == {"a": 320, "b": 64}
    world.check()


def test_a_repeated_commit_gets_the_first_receipt_and_counts_once(world):
    world.ready("a", "job")
    work = world.checkout("a", "job").assignment
    first = world.commit("a", "job", work, steps=10)
    again = world.commit("a", "job", work, steps=10)
    assert again.receipt == first.receipt and again.repeated
    assert world.status().tokens == 320
    world.check()


def test_a_repeated_checkout_gets_the_same_lease(world):
    world.ready("a", "job")
    first = world.checkout("a", "job").assignment
    second = world.checkout("a", "job").assignment
    assert (first.round, first.lease_start, first.lease_stop) == (second.round, second.lease_start, second.lease_stop)


@pytest.mark.parametrize(
    "change",
    [
        {"base_version": 5},
        {"base_digest": "0" * 64},
        {"samples": 80},
        {"samples": 3},
        {"tokens": 1},
        {"steps": 0, "samples": 0, "tokens": 0},
        {"codec": "int8"},
        {"blob": "0" * 64},
        {"job": "another"},
        {"round": 9},
    ],
)
def test_a_commit_that_does_not_fit_is_refused_and_changes_nothing(world, change):
    world.ready("a", "job")
    work = world.checkout("a", "job").assignment
    with pytest.raises(Refused):
        world.commit("a", **{"job": "job", "assignment": work, "steps": 10, **change})
    assert world.status().tokens == 0
    world.check()
    world.commit("a", "job", work, steps=10)
    assert world.status().tokens == 320


def test_a_partial_commit_returns_the_rest_of_its_lease(world):
    world.ready("a", "job")
    work = world.checkout("a", "job").assignment
    world.commit("a", "job", work, steps=3)
    assert world.checkout("a", "job").assignment.lease_start == 12
    world.check()


def test_a_silent_site_is_dropped_and_the_round_ends_without_it(make_world):
    world = make_world(length="600 s")
    world.source.mci = {"A": 50.0, "B": 60.0}
    work = _two_in_a_round(world)
    world.commit("a", "job-a", work["a"], steps=5)
    assert world.status().version == 1
    for _ in range(20):
        world.beat("a", "job-a")
        world.tick(1.0)
    world.merge()
    status = world.status()
    assert status.version == 2
    assert next(s.state for s in status.sites if s.site == "b") == "SILENT"
    assert any("silent" in event.text for event in status.events)
    with pytest.raises(Refused, match="too late"):
        world.commit("b", "job-b", work["b"], steps=5)
    world.check()


def _two_in_a_round(world):
    for site, region in (("a", "A"), ("b", "B")):
        world.ready(site, f"job-{site}", region)
    first = world.checkout("a", "job-a").assignment
    assert world.checkout("b", "job-b").kind == "wait"
    world.commit("a", "job-a", first, steps=1)
    return {site: world.checkout(site, f"job-{site}").assignment for site in ("a", "b")}


def test_a_member_that_misses_deadline_and_grace_is_left_out(world):
    work = _two_in_a_round(world)
    world.commit("b", "job-b", work["b"], steps=2)
    for _ in range(71):
        world.beat("a", "job-a", "train"), world.beat("b", "job-b", "sync")
        world.tick(1.0)
    world.merge()
    assert world.status().version == 2
    with pytest.raises(Refused):
        world.commit("a", "job-a", work["a"], steps=2)
    world.check()


def test_a_job_that_ended_without_a_commit_gives_its_samples_back_at_the_next_step(world):
    world.ready("a", "job1")
    first = world.checkout("a", "job1").assignment
    world.beat("a", None)
    world.tick()
    world.beat("a", "job2")
    second = world.checkout("a", "job2").assignment
    assert second.lease_start == first.lease_start and second.round == first.round + 1
    world.check()


def test_a_delta_of_nonsense_is_refused_and_its_samples_go_back(world):
    work = _two_in_a_round(world)
    world.commit("a", "job-a", work["a"], steps=2)
    garbage = world.upload(b"not a safetensors file")
    world.commit("b", "job-b", work["b"], steps=2, blob=garbage)
    status = world.status()
    assert status.version == 2 and {s.site: s.tokens for s in status.sites} == {"a": 96, "b": 0}
    assert any("b was refused" in event.text for event in status.events)
    world.check()


def test_the_run_ends_exactly_at_its_budget(make_world):
    world = make_world(budget_steps=25)
    world.source.mci = {"A": 50.0}
    world.ready("a", "job")
    steps = []
    while (reply := world.checkout("a", "job")).kind == "train":
        work = reply.assignment
        steps.append(work.steps)
        world.commit("a", "job", work, steps=steps[-1])
    assert steps == [10, 10, 5]
    status = world.status()
    assert reply.kind == "leave" and status.state == "FINISHED" and status.tokens == status.token_budget == 25 * 32
    assert world.beat("a", "job").finished
    world.tick()
    assert world.status().reason == "the token budget is reached"
    world.check()


def test_a_last_version_of_one_step_does_not_decide_the_loss_that_is_shown(make_world):
    world = make_world(budget_steps=400, inner_steps=150)
    world.source.mci = {"A": 50.0, "B": 60.0}
    world.ready("a", "job-a")
    for steps, loss in ((150, 5.0), (149, 4.5), (1, 9.0)):
        work = world.checkout("a", "job-a").assignment
        world.commit("a", "job-a", work, steps=steps, loss_mean=loss)
    status = world.status()
    assert status.version == 3 and status.loss_first == 4.0
    assert status.loss_last == pytest.approx(4.65, abs=0.01)
    assert [e.text.split(", ")[-2] for e in status.events if e.kind == "version"][-1] == "its loss 9.000"
    world.start()
    assert world.status().loss_last == status.loss_last, "a restart changes nothing"


def test_a_restart_between_commit_and_merge_finishes_the_merge(world):
    world.merger.automatic = False
    world.ready("a", "job")
    work = world.checkout("a", "job").assignment
    world.commit("a", "job", work, steps=10)
    assert world.status().round.state == "MERGING"
    world.start()
    world.tick()
    world.merge()
    assert world.status().version == 1 and world.status().tokens == 320
    world.check()


def test_a_crash_after_the_folder_was_published_but_before_the_row_repeats_the_merge(world):
    world.merger.automatic = False
    world.ready("a", "job")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=10)
    folder = world.versions.path(1)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half")
    world.start()
    world.tick()
    world.merge()
    world.check()
    assert world.status().version == 1


def test_a_failed_merge_is_tried_again_and_says_so(world):
    world.merger.automatic = False
    world.ready("a", "job")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=10)
    _, done = world.merger.waiting.pop()
    done(None)
    world.tick()
    assert world.merger.waiting == [], "not at once"
    assert "failed" in world.status().events[-1].text
    world.tick(5.0)
    world.merge()
    assert world.status().version == 1
    world.check()


def test_a_round_that_ends_and_is_looked_after_in_one_transaction_is_merged_by_one_process(world):
    world.merger.automatic = False
    for site, region in (("a", "A"), ("b", "B")):
        world.ready(site, f"job-{site}", region)
        world.checkout(site, f"job-{site}")
    first = world.checkout("a", "job-a").assignment
    world.commit("a", "job-a", first, steps=4)
    world.merge()
    work = {site: world.checkout(site, f"job-{site}").assignment for site in ("a", "b")}
    world.commit("a", "job-a", work["a"], steps=6)

    def both(tx):
        world.service.rounds.release_site(tx, "b", world.clock.wall(), "another of its machines leads now")
        world.service.rounds.sweep(tx, world.clock.wall(), lambda member: None)

    world.store.call(both)
    assert len(world.merger.waiting) == 1
    world.merge()
    assert world.status().version == 2
    world.check()


def test_a_job_that_asks_before_its_agent_reports_after_a_restart_waits(world):
    world.ready("a", "job")
    work = world.checkout("a", "job").assignment
    world.start()
    assert world.checkout("a", "job").kind == "wait"
    world.tick()
    assert world.beat("a", "job", "train").granted
    assert world.checkout("a", "job").assignment.lease_start == work.lease_start
    world.commit("a", "job", work, steps=10)
    world.check()


def test_only_the_newest_versions_stay_on_disk(make_world):
    world = make_world(keep_versions=2)
    world.source.mci = {"A": 50.0}
    world.ready("a", "job")
    for _ in range(4):
        world.commit("a", "job", world.checkout("a", "job").assignment, steps=1)
    assert sorted(p.name for p in world.versions.folder.iterdir()) == ["v000003", "v000004"]
    assert list((world.home / "blobs").iterdir()) == [], "contributions are gone once merged"


def test_an_upload_that_no_commit_used_is_gone_after_the_next_merge(world):
    world.ready("a", "job")
    stray = world.upload(b"too late")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=1)
    assert world.store.call(lambda tx: tx.blob(stray)) is None
    assert not world.uploads.path(stray).exists()


def test_an_abandoned_upload_is_purged_and_a_recent_one_stays(world):
    world.uploads.reserve("1" * 64, 10)
    began = (world.home / "blobs" / "incoming" / ("1" * 64) / "data").stat().st_mtime
    world.uploads.purge(began + 3600)
    assert world.uploads.reserve("1" * 64, 10).missing == (0,)
    world.uploads.purge(began + 100_000)
    assert list((world.home / "blobs" / "incoming").iterdir()) == []


def test_energy_is_booked_by_site_and_phase_and_survives_a_restart(world):
    world.join("a", "A")
    world.tick(0.0)
    world.beat("a", None, "paused")
    world.tick(3600.0)
    world.tick(0.0)
    world.beat("a", "job", "train")
    world.tick(1800.0)
    world.tick(0.0)
    before = world.status().energy
    assert before.standing_kwh == pytest.approx(0.5, rel=1e-3)
    assert before.attributed_kwh == pytest.approx(1.0, rel=1e-3)
    assert before.kg_attributed == pytest.approx(0.05, rel=1e-3)
    assert before.curtailed_pct == 100.0
    world.start()
    after = world.status().energy
    assert after.attributed_kwh == pytest.approx(before.attributed_kwh)
    assert after.standing_kwh == pytest.approx(before.standing_kwh)
    entries = world.store.call(lambda tx: tx.entries())
    assert {(e.site, e.phase) for e in entries} == {("a", "paused"), ("a", "train")}


def test_a_silent_site_is_booked_as_paused_once_its_permit_has_lapsed(world):
    world.ready("a", "job")
    world.beat("a", "job", "train")
    for _ in range(40):
        world.tick(1.0)
    trained = sum(e.t1 - e.t0 for e in world.store.call(lambda tx: tx.entries()) if e.phase == "train")
    assert trained <= max(world.config.policy.permit, world.config.fleet.lost_after) + 2


def test_a_credential_opens_only_its_own_site(world):
    credential = world.join("a").credential
    world.join("b")
    who = world.authenticate(credential)
    assert who.site == "a"
    beat = wire.Heartbeat("agent-b", "b", 1, "IDLE", "paused", None, None, "")
    with pytest.raises(AuthError, match="belongs to site 'a'"):
        world.store.call(lambda tx: world.service.heartbeat(tx, who, beat))
    with pytest.raises(AuthError):
        world.authenticate("wrong")
    with pytest.raises(AuthError):
        world.authenticate("")
