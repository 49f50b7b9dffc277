"""The base weights: rank 0's copy, in memory, of exactly one version that the controller knows.

Decides how the copy follows the controller's versions and when it must be fetched
whole. The pseudo-gradient of a round is measured against it. No torch, no network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from curtail import wire
from curtail.errors import CheckpointError, CurtailError
from nanochat.delta import apply_update, decode, read_delta
from nanochat.weights import Shapes, Weights, digest, read_weights


@dataclass(frozen=True, slots=True)
class BaseWeights:
    """A weight set that the controller knows under this version and digest."""

    version: int
    digest: str
    weights: Weights  # writable arrays: updates are applied in place


class OutOfSync(CurtailError):
    """The base weights cannot follow the controller's version; they must be dropped and fetched whole."""


def bring_up_to_date(
    base: BaseWeights | None, assignment: wire.Assignment, file: Path | None, shapes: Shapes
) -> BaseWeights:
    """The base weights that `assignment` starts from; applies an update to `base` in place.

    Args: file: what the assignment had to fetch, the whole weights or an update; None: nothing.
    Raises: OutOfSync, CheckpointError: the file cannot be used; `base` may be half updated then.
    """
    if file is None:
        if base is None or base.digest != assignment.base_digest:
            raise OutOfSync("the controller takes weights for held that are not")
        return replace(base, version=assignment.base_version)
    if assignment.fetch == "weights":
        # Copied out of the mapped file: later updates are applied in place, and the file is deleted.
        weights = {name: array.copy() for name, array in read_weights(file, shapes).items()}
        if digest(weights) != assignment.base_digest:
            raise CheckpointError(
                f"the weights of version {assignment.base_version} are not what the controller says",
                "look at the controller's disk; its versions are damaged",
            )
        return BaseWeights(assignment.base_version, assignment.base_digest, weights)
    if base is None:
        raise OutOfSync("the controller sent an update and there is nothing to update")
    weights = apply_update(base.weights, decode(read_delta(file, shapes)), out=base.weights)
    if digest(weights) != assignment.base_digest:
        raise OutOfSync("after the update the weights differ from the controller's")
    return BaseWeights(assignment.base_version, assignment.base_digest, weights)
