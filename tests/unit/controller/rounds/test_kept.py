"""Samples that a job keeps beyond a commit, and contributions that come late: held, used or back exactly once."""

from __future__ import annotations

import pytest

from controller.rounds.lifecycle import Member, Round
from curtail import wire
from curtail.errors import Refused

BATCH = 4


def begin(world, sites):
    """All `sites` (name -> region) ready for a federated round, with nothing kept; `a` has made one step alone."""
    for site, region in sites.items():
        world.ready(site, f"job-{site}", region)
    alone = world.checkout("a", "job-a").assignment
    assert all(world.checkout(site, f"job-{site}").kind == "wait" for site in sites if site != "a")
    world.commit("a", "job-a", alone, steps=1)


def start_two(world):
    """Both sites in one federated round, with nothing kept."""
    begin(world, {"a": "A", "b": "B"})
    return {site: world.checkout(site, f"job-{site}").assignment for site in ("a", "b")}


@pytest.fixture
def overlapping(make_world):
    made = make_world(overlap=True)
    made.source.mci = {"A": 50.0, "B": 60.0}
    return made


@pytest.fixture
def tolerant(make_world):
    made = make_world(staleness_discount=0.5)
    made.source.mci = {"A": 50.0, "B": 60.0}
    return made


def kept(world):
    return {row.site: (row.start, row.stop) for row in world.store.call(lambda tx: tx.all_kept())}


def lease(assignment):
    return assignment.lease_start, assignment.lease_stop


def state(world, round_number, site):
    return Member(world.store.call(lambda tx: tx.member(round_number, site)).state)


def test_a_sole_job_keeps_the_rest_of_its_lease_and_goes_on_there(world):
    world.ready("a", "job")
    first = world.checkout("a", "job").assignment
    world.commit("a", "job", first, steps=10, keep=True)
    assert kept(world) == {"a": (40, 80)}
    second = world.checkout("a", "job").assignment
    assert lease(second) == (40, 120) and second.steps == 10 and kept(world) == {}
    world.check()


def test_kept_samples_survive_a_restart_of_the_controller(world):
    world.ready("a", "job")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=10, keep=True)
    world.start()
    world.tick()
    world.beat("a", "job", "train")
    world.tick()
    assert lease(world.checkout("a", "job").assignment) == (40, 120)
    world.check()


@pytest.mark.parametrize("end", ["killed", "silent", "new job", "joined anew", "left"])
def test_kept_samples_go_back_once_when_their_job_is_gone(world, end):
    world.ready("a", "job")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=10, keep=True)
    who = world.who("a")
    if end == "killed":
        world.beat("a", None)
        world.tick()
    elif end == "silent":
        world.tick(world.config.fleet.lost_after + 1)
    elif end == "new job":
        world.beat("a", "job2")
    elif end == "joined anew":
        world.join("a")
    else:
        world.store.call(lambda tx: world.service.leave(tx, who, wire.LeaveRequest(who.agent, "a", who.fence, "bye")))
    world.check()
    world.ready("b", "job-b", "B")
    world.tick()
    work = (world.checkout("a", "job2") if end == "new job" else world.checkout("b", "job-b")).assignment
    assert work.lease_start == 40, "what came back is trained next, in order"
    assert kept(world) == {}
    world.check()


def test_without_overlap_federated_sites_keep_nothing(world):
    work = start_two(world)
    assert not work["a"].keep and lease(work["a"])[1] - lease(work["a"])[0] == 40
    with pytest.raises(Refused, match="do not overlap"):
        world.commit("a", "job-a", work["a"], steps=2, keep=True)
    world.commit("a", "job-a", work["a"], steps=2)
    world.check()


def test_with_overlap_each_site_goes_on_where_it_trained_ahead(overlapping):
    world = overlapping
    work = start_two(world)
    assert work["a"].keep and work["a"].steps == 10
    starts = {}
    for site in ("a", "b"):
        world.commit(site, f"job-{site}", work[site], steps=10, shift=0.3, keep=True)
        starts[site] = work[site].lease_start + 40
    for site in ("a", "b"):
        following = world.checkout(site, f"job-{site}", held=work[site].base_digest).assignment
        assert following.lease_start == starts[site] and following.fetch == "update"
    world.check()


def test_after_a_refused_contribution_the_job_fetches_the_base_and_keeps_its_samples(overlapping):
    world = overlapping
    work = start_two(world)
    world.commit("a", "job-a", work["a"], steps=2)
    world.commit("b", "job-b", work["b"], steps=2, blob=world.upload(b"no delta"), keep=True)
    start = work["b"].lease_start
    assert state(world, work["b"].round, "b") is Member.REFUSED
    assert kept(world) == {"b": (start + 8, work["b"].lease_stop)}
    again = world.checkout("b", "job-b", held=work["b"].base_digest).assignment
    assert again.fetch == "weights" and again.lease_start == start + 8
    assert world.checkout("b", "job-b", held=work["b"].base_digest).assignment == again, "also if the answer was lost"
    world.commit("b", "job-b", again, steps=1)
    world.check()


def test_near_the_end_a_site_keeps_no_more_than_its_share(make_world):
    world = make_world(budget_steps=20, inner_steps=100)
    world.source.mci = {"A": 50.0, "B": 60.0}
    for site, region in (("a", "A"), ("b", "B")):
        world.ready(site, f"job-{site}", region)
    alone = world.checkout("a", "job-a").assignment
    assert lease(alone) == (0, 80), "a sole site leases all that is left"
    assert world.checkout("b", "job-b").kind == "wait"
    world.commit("a", "job-a", alone, steps=2, keep=True)
    assert lease(world.checkout("a", "job-a").assignment) == (8, 44)
    assert lease(world.checkout("b", "job-b").assignment) == (44, 80)
    world.check()


@pytest.mark.parametrize("overlap", [False, True])
def test_the_end_of_the_budget_is_one_round_in_equal_parts(make_world, overlap):
    world = make_world(budget_steps=28, overlap=overlap)
    world.source.mci = {"A": 50.0, "B": 60.0}
    begin(world, {"a": "A", "b": "B", "c": "A"})
    work = {site: world.checkout(site, f"job-{site}").assignment for site in "abc"}
    assert [assignment.steps for assignment in work.values()] == [9, 9, 9], "nothing is left for a further round"
    for site, assignment in work.items():
        world.commit(site, f"job-{site}", assignment, steps=9)
    status = world.status()
    assert (status.state, status.tokens, status.version) == ("FINISHED", 28 * 32, 2)
    world.check()


def test_who_left_the_round_again_has_had_no_part_of_the_end_of_the_budget(make_world):
    world = make_world(budget_steps=13)
    world.source.mci = {"A": 50.0, "B": 60.0}
    begin(world, {"a": "A", "b": "B", "c": "A"})
    assert world.checkout("a", "job-a").assignment.steps == 4
    who = world.who("a")
    world.store.call(lambda tx: world.service.leave(tx, who, wire.LeaveRequest(who.agent, "a", who.fence, "test")))
    assert [world.checkout(site, f"job-{site}").assignment.steps for site in "bc"] == [6, 6]
    world.check()


def test_what_others_keep_counts_for_the_share_of_who_keeps_nothing(make_world):
    world = make_world(budget_steps=41, overlap=True)
    world.source.mci = {"A": 50.0, "B": 60.0}
    work = start_two(world)
    assert [lease(work[site]) for site in "ab"] == [(4, 84), (84, 164)]
    for site in "ab":
        world.commit(site, f"job-{site}", work[site], steps=6, keep=site == "a")
    assert kept(world) == {"a": (28, 84)}
    # a keeps 14 steps, and 14 are free
    assert lease(world.checkout("b", "job-b").assignment) == (108, 164)
    assert lease(world.checkout("a", "job-a").assignment) == (28, 84)
    world.check()


def test_a_closing_job_hands_in_its_kept_samples_without_a_permit(world):
    world.ready("a", "job")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=10, keep=True)
    world.source.mci["A"] = 400.0
    world.tick()
    assert not world.beat("a", "job", "drain").granted
    assert world.checkout("a", "job").kind == "leave"
    last = world.checkout("a", "job", closing=True).assignment
    assert lease(last) == (40, 80)
    world.commit("a", "job", last, steps=3)
    status = world.status()
    assert status.version == 2 and status.tokens == 13 * 32
    assert world.checkout("a", "job", closing=True).kind == "leave", "there is nothing left"
    world.check()


def test_a_closing_job_waits_for_a_merge_and_for_nothing_else(world):
    world.merger.automatic = False
    world.ready("a", "job")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=10, keep=True)
    reply = world.checkout("a", "job", closing=True)
    assert (reply.kind, reply.reason) == ("wait", "round 1 is being merged")
    world.merge()
    world.source.mci["A"] = 400.0
    world.tick()
    world.beat("a", "job", "drain")
    world.ready("b", "job-b", "B")
    assert world.checkout("b", "job-b").assignment.codec == "weights", "b is alone"
    reply = world.checkout("a", "job", closing=True)
    assert (reply.kind, reply.reason) == ("leave", "waiting for the end of round 2")
    world.check()


def end_without_a(world, work):
    """b commits, a does not, and the round ends."""
    world.commit("b", "job-b", work["b"], steps=2, shift=0.4)
    for _ in range(71):
        world.beat("a", "job-a", "train"), world.beat("b", "job-b", "sync")
        world.tick(1.0)


def miss_the_deadline(world, work):
    """b commits, a does not: the round goes on without a."""
    end_without_a(world, work)
    world.merge()
    assert world.status().version == 2


def test_a_late_site_keeps_its_lease_and_its_contribution_waits_for_the_next_merge(tolerant):
    world = tolerant
    work = start_two(world)
    miss_the_deadline(world, work)
    assert state(world, work["a"].round, "a") is Member.LATE
    world.check()
    following = world.checkout("b", "job-b").assignment
    world.commit("a", "job-a", work["a"], steps=10, shift=0.4)
    world.commit("b", "job-b", following, steps=10, shift=0.4)
    late = world.store.call(lambda tx: tx.member(work["a"].round, "a"))
    assert Member(late.state) is Member.MERGED and late.version == 3
    assert {s.site: s.tokens for s in world.status().sites} == {"a": 32 + 320, "b": 64 + 320}
    world.check()


def test_the_discount_of_a_late_contribution_is_one_factor_for_each_version(tolerant):
    world = tolerant
    work = start_two(world)
    miss_the_deadline(world, work)
    following = world.checkout("b", "job-b").assignment
    world.merger.automatic = False
    world.commit("a", "job-a", work["a"], steps=10)
    world.commit("b", "job-b", following, steps=10)
    ((spec, _),) = world.merger.waiting
    assert [(part.site, part.weight, part.stale) for part in spec.parts] == [
        (f"a, late from round {work['a'].round}", 0.5, 1),
        ("b", 1.0, 0),
    ]


def test_a_late_contribution_is_merged_also_when_nobody_trains_any_more(tolerant):
    world = tolerant
    work = start_two(world)
    miss_the_deadline(world, work)
    world.commit("a", "job-a", work["a"], steps=10)
    world.tick()
    world.merge()
    assert world.status().version == 3 and world.status().tokens == (1 + 2 + 10) * 32
    world.check()


def test_a_sole_site_waits_until_what_came_late_is_merged(tolerant):
    world = tolerant
    work = start_two(world)
    miss_the_deadline(world, work)
    world.merger.automatic = False
    world.commit("a", "job-a", work["a"], steps=10)
    world.source.mci["B"] = 400.0
    world.tick(0.0)
    world.merger.automatic = True
    assert world.checkout("a", "job-a").reason.endswith("is being merged")
    world.merge()
    assert world.checkout("a", "job-a").assignment.base_version == 3
    world.check()


def test_a_late_site_that_ends_is_lost_and_its_samples_go_back(tolerant):
    world = tolerant
    work = start_two(world)
    miss_the_deadline(world, work)
    world.beat("a", None)
    world.tick()
    assert state(world, work["a"].round, "a") is Member.LOST
    with pytest.raises(Refused, match="too late"):
        world.commit("a", "job-a", work["a"], steps=2)
    world.check()


def test_a_site_that_ends_while_the_round_it_is_late_for_merges_gives_its_samples_back_once(tolerant):
    world = tolerant
    work = start_two(world)
    world.merger.automatic = False
    end_without_a(world, work)
    assert world.store.call(lambda tx: Round(tx.live_round().state)) is Round.MERGING
    assert state(world, work["a"].round, "a") is Member.LATE
    world.beat("a", None)
    world.tick()
    assert state(world, work["a"].round, "a") is Member.LOST
    world.check()
    world.merge()
    assert world.checkout("b", "job-b").assignment.lease_start == work["a"].lease_start
    world.check()


def test_a_late_site_that_asks_for_other_work_has_given_its_contribution_up(tolerant):
    world = tolerant
    work = start_two(world)
    miss_the_deadline(world, work)
    assert world.checkout("a", "job-a").assignment.lease_start == work["a"].lease_start
    assert state(world, work["a"].round, "a") is Member.LOST
    world.check()


def test_the_file_of_a_late_site_stays_until_it_commits(tolerant):
    world = tolerant
    work = start_two(world)
    blob, _ = world.contribution(work["a"], 0.4)
    miss_the_deadline(world, work)
    assert world.store.call(lambda tx: tx.blob(blob)) is not None
    world.commit("a", "job-a", work["a"], steps=10, blob=blob)
    world.tick()
    world.merge()
    assert world.store.call(lambda tx: tx.blobs_of_kind("contribution")) == []
    assert not world.uploads.path(blob).exists()
    world.check()


def test_a_round_waits_as_long_as_recent_contributions_were_late(make_world):
    world = make_world(length="10 s", grace="60 s", inner_steps=1, budget_steps=400)
    world.source.mci = {"A": 50.0, "B": 60.0}
    work = start_two(world)
    for _ in range(4):
        world.commit("a", "job-a", work["a"], steps=1)
        world.commit("b", "job-b", work["b"], steps=1)
        work = {site: world.checkout(site, f"job-{site}").assignment for site in ("a", "b")}
    row = world.store.call(lambda tx: tx.live_round())
    assert world.store.call(lambda tx: world.service.rounds.grace(tx, row)) == 5.0
    world.commit("b", "job-b", work["b"], steps=1)
    for _ in range(16):
        world.beat("a", "job-a", "train"), world.beat("b", "job-b", "sync")
        world.tick(1.0)
    assert Round(world.store.call(lambda tx: tx.round(row.round)).state) is not Round.OPEN
    world.check()


def test_after_three_refusals_in_a_row_the_usual_norm_is_forgotten(world):
    world.ready("a", "job")
    for _ in range(6):
        world.commit("a", "job", world.checkout("a", "job").assignment, steps=1, shift=0.001)
    refused = 0
    while world.status().version == 6 and refused < 10:
        world.commit("a", "job", world.checkout("a", "job").assignment, steps=1, shift=1.0)
        refused += world.status().version == 6
    assert refused == 3 and world.status().version == 7
    world.check()


def test_the_status_tells_of_late_sites_and_of_kept_samples(tolerant):
    world = tolerant
    work = start_two(world)
    miss_the_deadline(world, work)
    late = work["a"].round
    size = work["a"].lease_stop - work["a"].lease_start
    assert world.status().late == (wire.LateStatus("a", late, "LATE", size),)
    following = world.checkout("b", "job-b").assignment
    world.commit("a", "job-a", work["a"], steps=10)
    assert world.status().late == (wire.LateStatus("a", late, "COMMITTED", 10 * BATCH),)
    world.commit("b", "job-b", following, steps=10)
    assert world.status().late == ()


def test_the_status_tells_how_many_samples_a_sole_job_keeps(world):
    world.ready("a", "job")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=10, keep=True)
    assert world.status().kept == (wire.KeptStatus("a", 40),) and world.status().late == ()
