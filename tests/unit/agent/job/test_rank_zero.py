"""What rank 0 tells all ranks (agent.job.rank_zero); its decisions in whole jobs are in test_job.py."""

from __future__ import annotations

import json

import pytest

from agent.job.overlap import Rebase
from agent.job.rank_zero import Plan
from curtail.wire import Assignment
from nanochat.train import NO_STEPS

ASSIGNMENT = Assignment(7, 6, "base", "none", "", 100, 180, 0.1 + 0.2, 1000, 32, "int8", 2, 10, True, 1.5, 1 / 3)


@pytest.mark.parametrize(
    "plan",
    [
        Plan("leave", "curtailment ends"),
        Plan("wait"),
        Plan("train", "", ASSIGNMENT, 1e5 / 3, Rebase.ADD, True),
    ],
)
def test_a_plan_is_the_same_on_every_rank(plan):
    """Also its floats to the last bit: learning rates follow from them."""
    assert Plan.from_message(json.loads(json.dumps(plan.to_message()))) == plan


def test_the_round_of_a_plan_begins_with_the_overlapped_steps():
    current = Plan("train", "", ASSIGNMENT, 3.0, Rebase.SAME, True).training_round(NO_STEPS)
    assert (current.assignment, current.began, current.report, current.closing) == (ASSIGNMENT, 3.0, NO_STEPS, True)
