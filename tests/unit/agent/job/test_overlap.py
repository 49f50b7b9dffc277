"""Overlapped steps, and how the model is rebased under them (agent.job.overlap)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.job.overlap import Rebase, choose_rebase, overlap_part, part, steps_of
from curtail.wire import Assignment
from nanochat.train import TrainReport

BATCH = 4
BEFORE = Assignment(7, 6, "base", "none", "", 100, 180, 60.0, 1000, 32, "int8", 2, 10, True, 1.0, 1.0)
AFTER = replace(BEFORE, round=8, base_version=7, base_digest="next", lease_start=140, lease_stop=200)


def report(steps):
    return TrainReport(steps, steps * BATCH, steps * 32, 3.0, 1.0, 2.0, 0.5)


def rebase(following=AFTER, before=BEFORE, overlapped=12, accepted=True, snapshot="snapshot"):
    return choose_rebase(before, 140, overlapped, following, accepted=accepted, snapshot_digest=snapshot)


def test_a_round_is_as_long_as_its_steps_and_its_lease_allow():
    assert steps_of(BEFORE, BATCH) == 10
    assert steps_of(replace(BEFORE, lease_stop=130), BATCH) == 7


def test_overlapped_steps_of_a_federated_round_come_on_top_of_its_own():
    assert steps_of(BEFORE, BATCH, 6) == 16
    assert steps_of(BEFORE, BATCH, 15) == 20, "the lease has no more"
    assert steps_of(replace(BEFORE, codec="weights"), BATCH, 6) == 10, "a sole site waits for nobody"


def test_the_rest_of_a_lease_starts_where_the_round_ended_with_the_hyperparameters_of_its_tokens():
    rest = overlap_part(BEFORE, report(10), BATCH)
    assert (rest.lease_start, rest.lease_stop, rest.steps) == (140, 180, 10)
    assert rest.tokens_before == 1000 + 10 * 32


def test_no_more_than_a_round_is_overlapped():
    long = overlap_part(replace(BEFORE, lease_stop=500), report(10), BATCH)
    assert (long.lease_start, long.lease_stop) == (140, 180)


@pytest.mark.parametrize(
    ("assignment", "steps"), [(replace(BEFORE, keep=False), 10), (BEFORE, 20), (replace(BEFORE, lease_stop=143), 10)]
)
def test_without_a_kept_whole_step_nothing_is_overlapped(assignment, steps):
    assert overlap_part(assignment, report(steps), BATCH) is None


def test_beside_others_a_rest_shorter_than_a_round_is_not_begun():
    timed = replace(BEFORE, steps=100)  # 20 steps in its lease
    assert overlap_part(timed, report(9), BATCH) is not None
    assert overlap_part(timed, report(11), BATCH) is None, "9 steps are left, and a round that time ends is 11"
    assert overlap_part(replace(timed, codec="weights"), report(11), BATCH) is not None, "a sole site's lease grows"
    assert overlap_part(BEFORE, report(10), BATCH) is not None
    assert overlap_part(BEFORE, report(11), BATCH) is None, "9 steps are left, and a round is 10"
    assert overlap_part(replace(BEFORE, lease_stop=260), report(15), BATCH) is not None, "of these 5 were overlapped"


def test_a_part_of_a_lease_is_that_many_steps():
    middle = part(BEFORE, 3, 5, BATCH)
    assert (middle.lease_start, middle.lease_stop, middle.steps, middle.tokens_before) == (112, 120, 2, 1096)


def test_where_the_snapshot_is_the_next_base_nothing_is_touched():
    whole = replace(BEFORE, codec="weights")
    assert rebase(replace(AFTER, base_digest="snapshot"), whole) is Rebase.SAME
    assert rebase(replace(AFTER, base_digest="snapshot", lease_start=0), whole, overlapped=0) is Rebase.SAME


def test_of_averaged_versions_the_difference_is_added():
    assert rebase() is Rebase.ADD


@pytest.mark.parametrize(
    "values",
    [
        {"accepted": False},
        {"following": replace(AFTER, base_version=6)},  # the round was abandoned
        {"following": replace(AFTER, base_version=8)},  # the others went on without this site
        {"following": replace(AFTER, lease_start=180)},
        {"following": replace(AFTER, lease_stop=148)},  # shorter than what was trained
        {"before": replace(BEFORE, codec="weights")},  # a sole site's weights became another version
        {"overlapped": 0},
    ],
)
def test_everything_unexpected_loads_the_base_and_drops_the_steps(values):
    assert rebase(**values) is Rebase.LOAD


def test_two_reports_add_up():
    both = TrainReport(2, 8, 64, 5.0, 4.0, 4.5, 1.0).then(TrainReport(6, 24, 192, 3.0, 1.0, 2.0, 3.0))
    assert both == TrainReport(8, 32, 256, 5.0, 1.0, 2.625, 4.0)
    nothing = TrainReport(0, 0, 0, None, None, None, 0.5)
    assert nothing.then(report(3)) == replace(report(3), seconds=1.0)
    assert report(3).then(nothing) == replace(report(3), seconds=1.0)
