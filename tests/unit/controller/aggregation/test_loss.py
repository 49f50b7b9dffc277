"""The loss that a run shows: a mean over its last steps, which one small version does not move."""

from __future__ import annotations

import math

import pytest

from controller.aggregation.loss import SMOOTH_STEPS, mean_loss, smoothed, span_tokens


def fold(versions, span):
    """(tokens, loss) of each version, one after the other."""
    value, before = None, 0
    for tokens, loss in versions:
        value = smoothed(value, before, loss, tokens, span)
        before += tokens
    return value


def test_the_first_version_is_shown_as_it_is():
    assert smoothed(None, 0, 7.0, 1000, 100.0) == 7.0


def test_it_is_nanochats_debiased_mean_where_each_version_is_one_step():
    losses, beta, slow = [5.0 + 1 / (step + 1) + 0.1 * math.sin(step) for step in range(400)], 0.9, 0.0
    for step, loss in enumerate(losses):
        slow = beta * slow + (1 - beta) * loss
        expected = slow / (1 - beta ** (step + 1))
    assert fold([(64, loss) for loss in losses], span=-64 / math.log(beta)) == pytest.approx(expected, abs=1e-6)


def test_a_last_version_of_one_step_hardly_moves_it():
    usual = [(600_000, 5.4), (91_000, 5.15), (93_000, 5.16), (43_000, 5.05), (41_000, 5.0)]
    span = span_tokens(8, 128)
    assert abs(fold([*usual, (1024, 6.118)], span) - fold(usual, span)) < 0.02


def test_a_version_of_many_steps_is_shown_nearly_as_it_is():
    span = span_tokens(8, 128)
    assert fold([(600 * 1024, 5.0), (600 * 1024, 4.0)], span) == pytest.approx(4.0, abs=0.003)


def test_how_the_tokens_are_cut_into_versions_of_one_loss_says_nothing():
    whole = fold([(10_000, 6.0), (900, 5.0)], 700.0)
    assert fold([(10_000, 6.0), (300, 5.0), (1, 5.0), (599, 5.0)], 700.0) == pytest.approx(whole)


def test_early_in_a_run_it_is_no_further_behind_than_a_tenth():
    falling = [(1000, 7.5 - 0.1 * step) for step in range(12)]
    assert fold(falling, span=1e9) == pytest.approx(6.4, abs=0.1)


def test_a_version_without_a_known_loss_changes_nothing():
    assert smoothed(5.0, 1000, None, 500, 100.0) == 5.0
    assert smoothed(None, 0, None, 500, 100.0) is None
    assert smoothed(5.0, 1000, 4.0, 0, 100.0) == 5.0


def test_neither_very_few_nor_very_many_tokens_break_it():
    assert smoothed(5.0, 1, 4.0, 1, 1e12) == pytest.approx(4.0, abs=0.01)
    assert smoothed(5.0, 10**13, 4.0, 10**13, 1e5) == 4.0


def test_the_mean_of_contributions_is_by_tokens_and_leaves_out_what_is_not_known():
    assert mean_loss([(300, 5.0), (100, 3.0), (50, None)]) == 4.5
    assert mean_loss([(50, None)]) is None and mean_loss([]) is None


def test_the_span_is_a_hundred_steps():
    assert span_tokens(8, 128) == SMOOTH_STEPS * 1024 == 102_400
