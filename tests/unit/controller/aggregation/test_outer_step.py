"""Decisions of a merge: who counts, how much, and with which outer step."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.aggregation.outer_step import (
    MergeResult,
    MergeSpec,
    OuterPlan,
    Part,
    outer_row,
    outliers,
    per_root_token,
    plan,
    result_from_json,
    result_to_json,
    shares,
    spec_from_json,
    spec_to_json,
    usual,
)

OUTER = ((2, 0.7, 0.5), (4, 0.8, 0.9))


def parts(count, tokens=100, **changes):
    return tuple(Part(f"s{n}", "/p", "int8", tokens, "", **changes) for n in range(count))


def spec(*members, usual_norm=None, usual_tokens=None, momentum_off=False, outer=OUTER):
    return MergeSpec(
        1, 2, "/base", "/out", members, "int8", outer, momentum_off, 0, "2026-01-01", usual_norm, usual_tokens
    )


@pytest.mark.parametrize(
    ("sites", "row"), [(1, (1.0, 0.0)), (2, (0.7, 0.5)), (3, (0.7, 0.5)), (4, (0.8, 0.9)), (9, (0.8, 0.9))]
)
def test_the_row_with_the_most_sites_not_above_the_contributors_applies(sites, row):
    assert outer_row(OUTER, sites) == row
    assert outer_row(tuple(reversed(OUTER)), sites) == row


def test_a_sole_contributor_has_no_outer_step_even_if_the_table_has_a_row_for_it():
    assert outer_row(((1, 0.7, 0.6),), 1) == (1.0, 0.0)
    assert outer_row(((3, 0.7, 0.6),), 2) == (1.0, 0.0)


def test_momentum_ends_in_the_last_tenth_and_waits_while_a_late_delta_is_merged():
    assert plan(spec(), parts(2)) == OuterPlan(0.7, 0.5, False)
    assert plan(spec(momentum_off=True), parts(2)) == OuterPlan(1.0, 0.0, False), "the rate was chosen for both"
    assert plan(spec(momentum_off=True, outer=((2, 0.9, 0.0),)), parts(2)) == OuterPlan(0.9, 0.0, False)
    late = (*parts(1), Part("late", "/p", "int8", 100, "", 0.5, 1))
    assert plan(spec(), late) == OuterPlan(0.7, 0.0, True)


@given(st.lists(st.tuples(st.integers(1, 10**9), st.sampled_from([1.0, 0.5, 0.25])), min_size=1, max_size=40))
def test_shares_follow_tokens_and_discounts_and_sum_to_one(given_parts):
    members = [Part(str(n), "", "int8", tokens, "", weight) for n, (tokens, weight) in enumerate(given_parts)]
    found = shares(members)
    assert sum(found) == pytest.approx(1.0)
    first = members[0]
    for part, share in zip(members, found, strict=True):
        assert share * first.tokens * first.weight == pytest.approx(found[0] * part.tokens * part.weight)


def test_late_deltas_that_are_merged_alone_move_the_model_less_all_the_same():
    assert plan(spec(), parts(1, weight=0.5, stale=1)).lr == 0.5
    assert plan(spec(), (*parts(1, weight=0.5, stale=1), *parts(1, weight=0.25, stale=2))).lr == 0.7 * 0.5


def test_a_late_delta_of_equal_tokens_counts_half():
    assert shares((Part("a", "", "int8", 100, ""), Part("b", "", "int8", 100, "", 0.5, 1))) == [2 / 3, 1 / 3]


# -- gates ---------------------------------------------------------------------------


def test_one_outlier_of_two_cannot_be_told_without_a_history():
    assert outliers(spec(*parts(2)), {"s0": 1.0, "s1": 100.0}) == {}


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e16])
def test_a_norm_beyond_all_sense_is_refused_always(value):
    assert outliers(spec(*parts(2)), {"s0": value, "s1": 1.0}).keys() == {"s0"}


def test_of_three_the_one_far_above_the_median_is_refused():
    assert outliers(spec(*parts(3)), {"s0": 1.0, "s1": 1.1, "s2": 5.6}).keys() == {"s2"}
    assert outliers(spec(*parts(3)), {"s0": 1.0, "s1": 1.1, "s2": 5.4}) == {}


@pytest.mark.parametrize("growth", [0.5, 1.0])
def test_one_long_delta_among_short_ones_is_no_outlier(growth):
    members = (*parts(2, tokens=1), *(replace(part, site="long") for part in parts(1, tokens=100)))
    assert outliers(spec(*members), {"s0": 1.0, "s1": 1.0, "long": 100**growth}) == {}
    assert outliers(spec(*members), {"s0": 1.0, "s1": 1.0, "long": 501.0}).keys() == {"long"}


@pytest.mark.parametrize("count", [1, 2])
def test_alone_or_in_two_a_delta_is_held_against_recent_rounds(count):
    asked = spec(*parts(count), usual_norm=0.1, usual_tokens=100.0)  # a norm of 1 for 100 tokens
    assert outliers(asked, {f"s{n}": 4.9 for n in range(count)}) == {}
    found = outliers(asked, {f"s{n}": 5.1 for n in range(count)})
    assert len(found) == count and "recent rounds" in found["s0"]


@pytest.mark.parametrize("tokens", [1, 10_000])
@pytest.mark.parametrize("growth", [0.5, 1.0])
def test_rounds_of_another_length_are_no_outliers(tokens, growth):
    asked = spec(*parts(1, tokens), usual_norm=0.1, usual_tokens=100.0)
    assert outliers(asked, {"s0": (tokens / 100) ** growth}) == {}


def test_the_usual_norm_is_the_mean_of_the_last_twenty_and_unknown_before_there_are_five():
    assert usual([(1.0, 10)] * 4) == (None, None)
    assert usual([(1.0, 10)] * 5) == (1.0, 10.0)
    assert usual([(99.0, 1)] * 7 + [(2.0, 10)] * 10 + [(4.0, 30)] * 10) == (3.0, 20.0)
    assert per_root_token(30.0, 100) == 3.0


# -- how it travels ------------------------------------------------------------------


def test_spec_and_result_come_back_from_json_as_they_were():
    asked = spec(*parts(2, weight=0.5, stale=1), usual_norm=0.5, usual_tokens=7.0)
    assert spec_from_json(spec_to_json(asked)) == asked
    answer = MergeResult(("a",), {"b": "why"}, "d", "w", 1, "u", 2, {"a": 0.5})
    assert result_from_json(result_to_json(answer)) == answer
