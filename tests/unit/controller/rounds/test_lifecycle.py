"""Rounds, leases and the ledger's arithmetic, without a store."""

from __future__ import annotations

import pytest

from controller.rounds.lifecycle import (
    MEMBER_NEXT,
    ROUND_NEXT,
    Member,
    MemberEvent,
    Round,
    RoundEvent,
    RoundKind,
    advance_member,
    advance_round,
    discount,
    ending,
    grace,
    inner_factors,
    may_enter,
    may_keep,
    momentum_off,
    overdue,
)
from controller.store import sample_pool
from controller.store.sample_pool import Pool, Range
from curtail.errors import RefusedTransition


def reachable(start, table):
    seen = {start}
    while True:
        more = {after for (state, _), after in table.items() if state in seen} - seen
        if not more:
            return seen
        seen |= more


def test_every_state_of_a_round_and_of_a_member_can_end():
    for state in Round:
        assert reachable(state, ROUND_NEXT) & {Round.MERGED, Round.ABANDONED}
    for member in Member:
        assert reachable(member, MEMBER_NEXT) - {Member.TRAINING, Member.LATE, Member.COMMITTED}


def test_a_forbidden_event_raises():
    with pytest.raises(RefusedTransition, match="MERGED"):
        advance_round(Round.MERGED, RoundEvent.MEMBER_JOINED)
    with pytest.raises(RefusedTransition, match="LOST"):
        advance_member(Member.LOST, MemberEvent.COMMIT)


@pytest.mark.parametrize(
    ("states", "now", "event"),
    [
        ([Member.TRAINING], 0.0, None),
        ([Member.TRAINING, Member.COMMITTED], 14.9, None),
        ([Member.TRAINING, Member.COMMITTED], 15.0, RoundEvent.DEADLINE_PASSED),
        ([Member.TRAINING], 15.0, None),
        ([Member.TRAINING], 25.0, RoundEvent.NOTHING_COMMITTED),
        ([Member.COMMITTED, Member.COMMITTED], 0.0, RoundEvent.MEMBERS_DONE),
        ([Member.COMMITTED, Member.LOST], 0.0, RoundEvent.MEMBERS_DONE),
        ([Member.RETURNED], 0.0, RoundEvent.NOTHING_COMMITTED),
        ([], 0.0, RoundEvent.NOTHING_COMMITTED),
    ],
)
def test_a_round_ends_when_nobody_trains_or_the_grace_is_over(states, now, event):
    assert ending(states, now, closes=15.0, last=25.0) is event


def test_below_the_quorum_a_round_waits_longer_but_not_for_ever():
    states = [Member.TRAINING, Member.COMMITTED]
    assert ending(states, 15.0, closes=15.0, last=25.0, quorum=2) is None
    assert ending(states, 25.0, closes=15.0, last=25.0, quorum=2) is RoundEvent.DEADLINE_PASSED
    assert ending([Member.COMMITTED, Member.LOST], 0.0, closes=15.0, last=25.0, quorum=2) is RoundEvent.MEMBERS_DONE


def test_the_grace_follows_recent_arrivals_within_its_bounds():
    assert grace([1.0] * 4, most=30.0) == 30.0, "few arrivals say nothing"
    assert grace([0.0] * 20, most=30.0) == 5.0
    assert grace([10.0, 10.0, 11.0, 12.0, 12.0], most=30.0) == 15.0  # median 11, deviations 1, 1, 0, 1, 1
    assert grace([30.0] * 12 + [0.0] * 8, most=30.0) == 30.0, "who was not waited for widens it again"
    assert grace([0.0] * 20, most=2.0) == 2.0


def test_only_a_delta_can_come_late_and_only_where_the_run_takes_it():
    assert overdue(RoundKind.FEDERATED, 0.5) is MemberEvent.OVERDUE
    assert overdue(RoundKind.FEDERATED, 0.0) is MemberEvent.DEADLINE_PASSED
    assert overdue(RoundKind.LOCAL, 0.5) is MemberEvent.DEADLINE_PASSED
    assert [discount(0.5, n) for n in (0, 1, 2)] == [1.0, 0.5, 0.25]
    assert discount(0.0, 0) == 1.0


def test_a_sole_site_may_train_on_and_others_only_with_overlap():
    assert [may_keep(kind, overlap) for kind in RoundKind for overlap in (False, True)] == [True, True, False, True]


def test_a_sole_site_trains_by_the_schedule_and_several_by_the_powers_of_their_number():
    assert inner_factors(1, 0.5, 1.0) == inner_factors(0, 0.5, 1.0) == (1.0, 1.0)
    assert inner_factors(4, 0.5, 1.0) == (2.0, 4.0)
    assert inner_factors(4, 0.0, 0.0) == (1.0, 1.0)


def test_a_latecomer_enters_a_federated_round_only_in_its_first_half():
    assert may_enter(RoundKind.FEDERATED, 0.0, 10.0, 5.0)
    assert not may_enter(RoundKind.FEDERATED, 0.0, 10.0, 5.1)
    assert not may_enter(RoundKind.LOCAL, 0.0, 10.0, 0.0)


def test_returned_samples_are_leased_before_new_ones():
    lease, pool = sample_pool.take(Pool(100, 1000), 64)
    assert lease == Range(100, 164)
    pool = sample_pool.give_back(pool, Range(132, 164))
    pool = sample_pool.give_back(pool, Range(10, 20))
    assert sample_pool.take(pool, 64) == (Range(10, 20), Pool(132, 1000))


def test_a_piece_too_short_for_a_round_is_passed_over_until_nothing_longer_is_left():
    pool = Pool(100, 200, (Range(0, 8), Range(20, 60)))
    assert sample_pool.take(pool, 64, least=30) == (Range(20, 60), Pool(100, 200, (Range(0, 8),)))
    assert sample_pool.take(pool, 64, least=50) == (Range(100, 164), Pool(164, 200, pool.returned))
    assert sample_pool.take(pool, 30, least=50) == (Range(20, 50), Pool(100, 200, (Range(0, 8), Range(50, 60))))
    spent = Pool(200, 200, pool.returned)
    assert sample_pool.take(spent, 64, least=50) == (Range(20, 60), Pool(200, 200, (Range(0, 8),)))
    assert sample_pool.take(Pool(200, 200), 64, least=50) == (None, Pool(200, 200))


def test_a_held_lease_grows_into_what_follows_on_it_also_past_lower_pieces():
    pool = Pool(100, 1000, (Range(0, 8), Range(40, 60)))
    assert sample_pool.lengthen(pool, Range(20, 40), 30) == (
        Range(20, 50),
        Pool(100, 1000, (Range(0, 8), Range(50, 60))),
    )
    assert sample_pool.lengthen(pool, Range(80, 100), 30) == (Range(80, 110), Pool(110, 1000, pool.returned))


def test_what_comes_back_last_is_leased_again_in_one_piece_with_what_follows():
    pool = sample_pool.give_back(Pool(164, 1000), Range(132, 164))
    assert sample_pool.take(pool, 64) == (Range(132, 196), Pool(196, 1000))


def test_kept_samples_are_lengthened_only_by_the_next_free_ones():
    assert sample_pool.lengthen(Pool(80, 1000), Range(40, 80), 60) == (Range(40, 100), Pool(100, 1000))
    assert sample_pool.lengthen(Pool(80, 1000), Range(40, 80), 40) == (Range(40, 80), Pool(80, 1000))
    apart = Pool(90, 1000, (Range(10, 20),))
    assert sample_pool.lengthen(apart, Range(40, 80), 60) == (Range(40, 80), apart)
    between = Pool(200, 1000, (Range(80, 90),))
    assert sample_pool.lengthen(between, Range(40, 80), 60) == (Range(40, 90), Pool(200, 1000))


def test_samples_cannot_come_back_twice_or_before_they_were_leased():
    pool = sample_pool.give_back(Pool(100, 1000), Range(10, 20))
    with pytest.raises(ValueError, match="twice"):
        sample_pool.give_back(pool, Range(15, 25))
    with pytest.raises(ValueError, match="not leased"):
        sample_pool.give_back(pool, Range(90, 101))


def test_neighbouring_ranges_are_joined():
    pool = Pool(100, 1000)
    for part in (Range(10, 20), Range(30, 40), Range(20, 30)):
        pool = sample_pool.give_back(pool, part)
    assert pool.returned == (Range(10, 40),)


def test_the_budget_is_cut_to_whole_batches_and_shared_at_the_end():
    assert sample_pool.budget_samples(10_000, 128, 16) == 64
    assert sample_pool.budget_samples(1, 128, 16) == 16
    assert sample_pool.fair_share(1600, inner_steps=30, batch_samples=16, sites=2) == 480
    assert sample_pool.fair_share(160, inner_steps=30, batch_samples=16, sites=3) == 64
    assert sample_pool.fair_share(0, inner_steps=30, batch_samples=16, sites=3) == 0


def test_outer_momentum_ends_before_the_learning_rate_does():
    assert [momentum_off(tokens, 100) for tokens in (0, 89, 90, 100)] == [False, False, True, True]
