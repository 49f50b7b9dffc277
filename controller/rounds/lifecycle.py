"""State tables of rounds and members, and when a round ends; pure.

A round has a base version and members that train from it, and ends with one merge.
A LOCAL round has one member, which sends its exact weights. FEDERATED rounds merge
pseudo-gradients. Times are arguments, in Unix seconds, because they must survive a
restart.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from enum import StrEnum

from curtail.errors import RefusedTransition

SPREADS = 4.0
"""The adaptive grace is the median lateness plus this many median absolute deviations."""

FEW = 5
"""With fewer arrivals the adaptive grace is not used."""

LEAST_GRACE_S = 5.0
"""Shortest adaptive grace; long enough for a heartbeat, a slow disk and a retry."""

MOMENTUM_SHARE = 0.9
"""Fraction of the token budget after which the outer momentum is off."""


class RoundKind(StrEnum):
    """What the members of a round send."""

    LOCAL = "LOCAL"  # the exact weights of the only member
    FEDERATED = "FEDERATED"  # pseudo-gradients, which are averaged


class Round(StrEnum):
    """State of a round."""

    OPEN = "OPEN"  # members train and commit
    MERGING = "MERGING"  # contributions are fixed; the next version is being computed
    MERGED = "MERGED"  # the next version is published
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
    LATE = "LATE"  # its round ended without it; it keeps its lease and may still contribute, at a discount
    COMMITTED = "COMMITTED"  # its contribution is durable and waits for a merge
    MERGED = "MERGED"  # its contribution is part of a version
    REFUSED = "REFUSED"  # its contribution was unusable; its samples returned to the pool
    RETURNED = "RETURNED"  # it left without a contribution; its samples returned to the pool
    LOST = "LOST"  # it became silent or was too late; its samples returned to the pool


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

    It ends when no member is training; at `closes` (deadline plus grace) if there
    are at least `quorum` contributions; at `last` in any case. A round without
    contributions is abandoned and makes no version.
    """
    states = list(members)
    committed = states.count(Member.COMMITTED)
    if Member.TRAINING not in states:
        return RoundEvent.MEMBERS_DONE if committed else RoundEvent.NOTHING_COMMITTED
    if now >= last or (now >= closes and committed >= quorum):
        return RoundEvent.DEADLINE_PASSED if committed else RoundEvent.NOTHING_COMMITTED
    return None


def grace(lateness: Sequence[float], most: float) -> float:
    """Seconds that a round waits after its deadline, adapted to how late contributions usually are.

    The median of the recent `lateness` (seconds after the deadline; 0 for those
    before it, `most` for those that missed the grace) plus `SPREADS` median
    absolute deviations, limited to `LEAST_GRACE_S` and `most`. With fewer than
    `FEW` arrivals it is `most`. Source: hivemind issue 676 (lowcomm 5.3).
    """
    if len(lateness) < FEW:
        return most
    median = statistics.median(lateness)
    spread = statistics.median(abs(value - median) for value in lateness)
    return min(most, max(LEAST_GRACE_S, median + SPREADS * spread))


def may_enter(kind: RoundKind, opened: float, deadline: float, now: float) -> bool:
    """May another site enter the open round, or must it wait for the next one?

    A FEDERATED round admits it while half of its time is left; with less the download
    is not worth it. A LOCAL round admits none, because its member sends exact weights.
    """
    return kind is RoundKind.FEDERATED and deadline - now >= 0.5 * (deadline - opened)


def may_keep(kind: RoundKind, overlap: bool) -> bool:
    """May a job make overlapped steps? In a LOCAL round always, because its weights are the next version."""
    return kind is RoundKind.LOCAL or overlap


def overdue(kind: RoundKind, staleness_discount: float) -> MemberEvent:
    """The event of a missed deadline. Exact weights (LOCAL) fit no other base, so they cannot be merged late."""
    return (
        MemberEvent.OVERDUE if kind is RoundKind.FEDERATED and staleness_discount > 0 else MemberEvent.DEADLINE_PASSED
    )


def discount(staleness_discount: float, staleness: int) -> float:
    """The weight of a contribution whose base is `staleness` versions old."""
    return 1.0 if staleness == 0 else float(staleness_discount**staleness)


def inner_factors(sites: int, lr_scaling: float, momentum_scaling: float) -> tuple[float, float]:
    """Factors for the inner learning rates and for Muon's momentum length, in steps; 1 and 1 with a single site."""
    together = float(max(1, sites))
    return together**lr_scaling, together**momentum_scaling


def momentum_off(tokens: int, budget: int) -> bool:
    """Is the outer momentum off after `tokens` of `budget`? It is in the last tenth.

    Otherwise the velocity would keep moving the model while the learning rate falls to zero (lowcomm 5.4).
    """
    return tokens >= MOMENTUM_SHARE * budget
