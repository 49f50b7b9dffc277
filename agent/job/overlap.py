"""Overlapped steps: inner steps on kept samples while the contribution before them travels. Pure.

Decides which samples and which hyperparameters they use, and what becomes of them
once the next assignment is there. A site never waits for its own contribution as
long as its lease has samples left; no overlapped step counts until the controller has
given exactly these samples to this job again. Units: samples, tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from curtail import wire
from nanochat.train import NO_STEPS, TrainReport


class Rebase(StrEnum):
    """How the model gets to the next base weights, and what becomes of the overlapped steps."""

    SAME = "same"  # the next base is the snapshot: the model stays as it is, the steps count
    ADD = "add"  # add (next base - snapshot) to the model: the steps count
    LOAD = "load"  # copy the next base into the model: the steps are lost


@dataclass(slots=True)
class TrainingRound:
    """The round being trained, on every rank."""

    assignment: wire.Assignment
    began: float  # on rank 0: when the controller answered, seconds of Clock.monotonic
    report: TrainReport = NO_STEPS  # of this round; begins with its overlapped steps
    closing: bool = False  # no more is trained, the overlapped steps are handed in


def steps_of(assignment: wire.Assignment, batch_samples: int, overlapped: int = 0) -> int:
    """The most inner steps of the round; in a federated one they come on top of the `overlapped` ones.

    If overlapped steps counted among them, a site that once waited long for another one would from then on commit
    early, train a whole round before every version, and gain nothing by it.
    """
    most = assignment.steps + (overlapped if assignment.codec != "weights" else 0)
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


def overlap_part(assignment: wire.Assignment, report: TrainReport, batch_samples: int) -> wire.Assignment | None:
    """What may be trained after `report` while it travels: the kept rest of the lease, in whole steps; None: nothing.

    At most one round's steps, so that no contribution holds more than two. In a federated round nothing if the
    rest is shorter than a round: it would be used up long before the others end the next one, and a new lease
    has enough. The lease of a sole site grows by what follows on it.
    """
    whole = (assignment.lease_stop - assignment.lease_start) // batch_samples
    left = whole - report.steps
    if not assignment.keep or left <= 0:
        return None
    if assignment.codec != "weights" and left < min(report.steps, assignment.steps):
        return None
    return part(assignment, report.steps, min(whole, report.steps + assignment.steps), batch_samples)


def choose_rebase(
    before: wire.Assignment,
    kept_start: int,
    overlapped_samples: int,
    following: wire.Assignment,
    *,
    accepted: bool,
    snapshot_digest: str,
) -> Rebase:
    """How the model goes on under the `following` assignment.

    Args:
        before, accepted: the round before, and whether its contribution was accepted.
        kept_start, overlapped_samples: where the kept samples begin, and how many were used.
        snapshot_digest: of the weights that were handed in.
    """
    if not accepted or following.base_version != before.base_version + 1:
        return Rebase.LOAD
    fits = following.lease_start == kept_start and kept_start + overlapped_samples <= following.lease_stop
    if overlapped_samples and not fits:
        return Rebase.LOAD
    if following.base_digest == snapshot_digest:
        return Rebase.SAME
    # Exact weights should become the next version as they are: another version means that something went wrong.
    if before.codec == "weights" or not overlapped_samples:
        return Rebase.LOAD
    return Rebase.ADD
