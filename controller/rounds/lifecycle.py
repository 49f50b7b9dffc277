"""The life cycle of a round and of its members, as tables, and when a round ends.

A round has a base version, members that train from it, and ends in one merge.
LOCAL is a round with one member, which sends its exact weights; FEDERATED
rounds merge deltas. Nothing here touches the store or a clock: times are
arguments, in seconds of Unix time (they must survive a restart).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from enum import StrEnum

from curtail.errors import RefusedTransition

SPREADS = 4.0
"""Median absolute deviations that the adaptive grace lies above the median lateness."""

FEW = 5
"""Arrivals below which nothing is concluded from them."""

LEAST_GRACE_S = 5.0
"""The adaptive grace is never shorter: a heartbeat, a pause of the disk and a retry fit into it."""

MOMENTUM_SHARE = 0.9
"""Share of the budget after which the outer momentum is off."""


class Kind(StrEnum):
    """What the members of a round send."""

    LOCAL = "LOCAL"  # the sole member's exact weights
    FEDERATED = "FEDERATED"  # deltas from the base, averaged


class Round(StrEnum):
    """State of a round."""

    OPEN = "OPEN"  # members train and commit
    MERGING = "MERGING"  # contributions are fixed, the next version is being made
    MERGED = "MERGED"  # the next version is true
    ABANDONED = "ABANDONED"  # ended without any contribution


class RoundEvent(StrEnum):
    """What can happen to a round."""

    MEMBER_JOINED = "a member joined"
    MEMBERS_DONE = "all live members committed"
    DEADLINE_PASSED = "the deadline and the grace passed"
    NOTHING_COMMITTED = "it ended without a contribution"
    VERSION_PUBLISHED = "the next version is durable"
    ALL_REFUSED = "every contribution was refused"


ROUND_NEXT: dict[tuple[Round, RoundEvent], Round] = {
    (Round.OPEN, RoundEvent.MEMBER_JOINED): Round.OPEN,
    (Round.OPEN, RoundEvent.MEMBERS_DONE): Round.MERGING,
    (Round.OPEN, RoundEvent.DEADLINE_PASSED): Round.MERGING,
    (Round.OPEN, RoundEvent.NOTHING_COMMITTED): Round.ABANDONED,
    (Round.MERGING, RoundEvent.VERSION_PUBLISHED): Round.MERGED,
    (Round.MERGING, RoundEvent.ALL_REFUSED): Round.ABANDONED,
}


class Member(StrEnum):
    """State of one site in one round."""

    TRAINING = "TRAINING"  # holds a lease
    LATE = "LATE"  # its round went on without it; it holds its lease and may still contribute, at a discount
    COMMITTED = "COMMITTED"  # its contribution is durable and waits for a merge
    MERGED = "MERGED"  # its contribution is part of a version
    REFUSED = "REFUSED"  # its contribution was not usable; its samples went back
    RETURNED = "RETURNED"  # it left without a contribution; its samples went back
    LOST = "LOST"  # it fell silent or came too late; its samples went back


class MemberEvent(StrEnum):
    """What can happen to a member."""

    COMMIT = "its contribution arrived"
    JOB_ENDED = "its job ended without a commit"
    SILENT = "it fell silent"
    DEADLINE_PASSED = "it missed the deadline"
    OVERDUE = "it missed the deadline and may come late"
    MERGE = "its contribution was merged"
    REFUSE = "its contribution was refused"


MEMBER_NEXT: dict[tuple[Member, MemberEvent], Member] = {
    (Member.TRAINING, MemberEvent.COMMIT): Member.COMMITTED,
    (Member.TRAINING, MemberEvent.JOB_ENDED): Member.RETURNED,
    (Member.TRAINING, MemberEvent.SILENT): Member.LOST,
    (Member.TRAINING, MemberEvent.DEADLINE_PASSED): Member.LOST,
    (Member.TRAINING, MemberEvent.OVERDUE): Member.LATE,
    (Member.LATE, MemberEvent.COMMIT): Member.COMMITTED,
    (Member.LATE, MemberEvent.JOB_ENDED): Member.LOST,
    (Member.LATE, MemberEvent.SILENT): Member.LOST,
    (Member.COMMITTED, MemberEvent.MERGE): Member.MERGED,
    (Member.COMMITTED, MemberEvent.REFUSE): Member.REFUSED,
}


def advance_round(state: Round, event: RoundEvent) -> Round:
    """The state after `event`. Raises: RefusedTransition: `event` is forbidden in `state`."""
    try:
        return ROUND_NEXT[state, event]
    except KeyError:
        raise RefusedTransition(f"a round that is {state.value} cannot take the event '{event.value}'") from None


def advance_member(state: Member, event: MemberEvent) -> Member:
    """The state after `event`. Raises: RefusedTransition: `event` is forbidden in `state`."""
    try:
        return MEMBER_NEXT[state, event]
    except KeyError:
        raise RefusedTransition(f"a member that is {state.value} cannot take the event '{event.value}'") from None


def ending(members: Iterable[Member], now: float, closes: float, last: float, quorum: int = 1) -> RoundEvent | None:
    """Why an open round with members in these states ends at `now`, or None.

    It ends when nobody trains any more; at `closes` (deadline and grace) if at
    least `quorum` contributions are there; at `last` in any case. A round nobody
    contributed to is abandoned, so that no version is made of nothing.
    """
    states = list(members)
    committed = states.count(Member.COMMITTED)
    if Member.TRAINING not in states:
        return RoundEvent.MEMBERS_DONE if committed else RoundEvent.NOTHING_COMMITTED
    if now >= last or (now >= closes and committed >= quorum):
        return RoundEvent.DEADLINE_PASSED if committed else RoundEvent.NOTHING_COMMITTED
    return None


def grace(lateness: Sequence[float], most: float) -> float:
    """Seconds that a round waits after its deadline: as late as contributions use to come.

    The median of the recent `lateness` (seconds after the deadline, 0 for those
    before it, `most` for those that were not waited for) and `SPREADS` median
    absolute deviations more, within `LEAST_GRACE_S` and `most`. Few arrivals say
    nothing: then it is `most`. Source: hivemind issue 676 (lowcomm 5.3).
    """
    if len(lateness) < FEW:
        return most
    median = statistics.median(lateness)
    spread = statistics.median(abs(value - median) for value in lateness)
    return min(most, max(LEAST_GRACE_S, median + SPREADS * spread))


def may_enter(kind: Kind, opened: float, deadline: float, now: float) -> bool:
    """May a further site enter the open round, or should it wait for the next boundary?

    A FEDERATED round takes it while half of its time is left: less would not be
    worth the download. A LOCAL round takes nobody: its member sends exact weights.
    """
    return kind is Kind.FEDERATED and deadline - now >= 0.5 * (deadline - opened)


def may_keep(kind: Kind, overlap: bool) -> bool:
    """May a job train on beyond what it commits? A sole site always: its weights are the next version."""
    return kind is Kind.LOCAL or overlap


def overdue(kind: Kind, staleness_discount: float) -> MemberEvent:
    """What missing the deadline means. Exact weights of a LOCAL round fit no other base, so they cannot come late."""
    return MemberEvent.OVERDUE if kind is Kind.FEDERATED and staleness_discount > 0 else MemberEvent.DEADLINE_PASSED


def discount(staleness_discount: float, staleness: int) -> float:
    """What a contribution counts whose base is `staleness` versions old."""
    return 1.0 if staleness == 0 else float(staleness_discount**staleness)


def inner_factors(sites: int, lr_scaling: float, momentum_scaling: float) -> tuple[float, float]:
    """What the inner learning rates and the steps that Muon remembers are multiplied by; 1 and 1 of a sole site."""
    together = float(max(1, sites))
    return together**lr_scaling, together**momentum_scaling


def momentum_off(tokens: int, budget: int) -> bool:
    """Is the outer momentum off after `tokens` of `budget`? In the last tenth.

    The velocity would carry the model on while the learning rate falls to zero (lowcomm 5.4).
    """
    return tokens >= MOMENTUM_SHARE * budget
