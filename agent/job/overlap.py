"""Steps made ahead: on kept samples, while the contribution before them travels. Pure.

Decides which samples and which hyperparameters they use, and what they are worth
once the next assignment is there. A site never waits for its own contribution as
long as its lease has samples left; nothing trained ahead is counted until the
controller has given exactly these samples to this job again. Units: samples, tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from curtail import wire
from nanochat.train import NO_STEPS, TrainReport


class Rebase(StrEnum):
    """How the model gets to the next base, and what becomes of the steps made ahead."""

    SAME = "same"  # the next base is the snapshot: nothing is touched, the steps count
    ADD = "add"  # add (next base - snapshot): the steps count
    LOAD = "load"  # copy the next base over the model: the steps are lost


@dataclass(slots=True)
class TrainingRound:
    """The round being trained, on every rank."""

    assignment: wire.Assignment
    began: float  # rank 0: when the controller answered, seconds of Clock.monotonic
    report: TrainReport = NO_STEPS  # of this round; starts with the steps made ahead
    closing: bool = False  # nothing more is trained, what was made ahead is handed in


def steps_of(assignment: wire.Assignment, batch_samples: int, ahead: int = 0) -> int:
    """Inner steps of the round at most; beside others, those of a round after the `ahead` made before it began.

    If these counted among them, a site that once waited long for another one would commit early ever after, train
    a whole round ahead of every version, and win nothing by it.
    """
    most = assignment.steps + (ahead if assignment.codec != "weights" else 0)
    return min(most, (assignment.lease_stop - assignment.lease_start) // batch_samples)


def part(assignment: wire.Assignment, done: int, most: int, batch_samples: int) -> wire.Assignment:
    """The steps [done, most) of a lease as an assignment of their own, hyperparameters included."""
    start = assignment.lease_start
    return replace(
        assignment,
        lease_start=start + done * batch_samples,
        lease_stop=start + most * batch_samples,
        tokens_before=assignment.tokens_before + done * assignment.tokens_per_step,
        steps=most - done,
    )


def rest(assignment: wire.Assignment, report: TrainReport, batch_samples: int) -> wire.Assignment | None:
    """What may be trained ahead after `report`: the kept rest of the lease in whole steps; None: nothing.

    Not more than a round's worth, so that no contribution has more than two. Beside others nothing either
    if the rest is shorter than a round: it would be used up long before they end the next one, and a new lease
    has enough. A sole site gets what follows on it.
    """
    whole = (assignment.lease_stop - assignment.lease_start) // batch_samples
    left = whole - report.steps
    if not assignment.keep or left <= 0:
        return None
    if assignment.codec != "weights" and left < min(report.steps, assignment.steps):
        return None
    return part(assignment, report.steps, min(whole, report.steps + assignment.steps), batch_samples)


def land(
    before: wire.Assignment,
    kept_start: int,
    ahead_samples: int,
    following: wire.Assignment,
    *,
    accepted: bool,
    snapshot_digest: str,
) -> Rebase:
    """What the steps ahead are worth under the `following` assignment.

    Args: before, accepted: the round before and whether its contribution was taken.
        kept_start, ahead_samples: where the kept samples begin, how many were used.
        snapshot_digest: of the weights that were handed in.
    """
    if not accepted or following.base_version != before.base_version + 1:
        return Rebase.LOAD
    fits = following.lease_start == kept_start and kept_start + ahead_samples <= following.lease_stop
    if ahead_samples and not fits:
        return Rebase.LOAD
    if following.base_digest == snapshot_digest:
        return Rebase.SAME
    # Whole weights were meant to become the next version as they are: another one means that something went wrong.
    if before.codec == "weights" or not ahead_samples:
        return Rebase.LOAD
    return Rebase.ADD
