"""The first half of a hand-in: local weights become the arrays that are uploaded. Pure, no torch.

Decides the form of a contribution: the exact weights (codec "weights"), or the
pseudo-gradient, base minus local, in a lossy codec with error feedback. The second
half, which has the disk and the network, is `agent.job.submit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from curtail.errors import CheckpointError
from nanochat.delta import Encoded, all_finite, difference, encode_with_feedback
from nanochat.weights import Weights, digest

EXACT = "weights"
"""The codec of a sole site: its weights become the next version as they are."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What is uploaded, and what must be remembered of it."""

    codec: str
    digest: str  # of the local weights
    arrays: Mapping[str, np.ndarray]
    residual: Encoded  # what the codec lost, to be added to the next pseudo-gradient; int4 only
    problem: str = ""  # why the residual before it was dropped


def encode(local: Weights, base: Weights, codec: str, residual: Encoded) -> Contribution:
    """Encode what was trained.

    Args:
        local: the trained weights. base: the weights that the training started from; not used by codec "weights".
        residual: what the contribution before this one lost; empty: nothing.
    Raises: CheckpointError: the weights are not finite, or not those of the base's model.
    """
    if not all_finite(local):
        raise CheckpointError("the trained weights are not finite", "lower the learning rates")
    if codec == EXACT:
        return Contribution(codec, digest(local), local, {})
    arrays: Encoded = {}
    lost: Encoded = {}
    problem = ""
    for name in sorted(base):  # one array after the other: a whole pseudo-gradient would be a further model in memory
        pseudo_gradient = difference({name: base[name]}, {name: local[name]})
        try:
            encoded, left = encode_with_feedback(pseudo_gradient, codec, residual or None)
        except CheckpointError as error:
            if not residual:
                raise
            problem, residual = str(error), {}
            encoded, left = encode_with_feedback(pseudo_gradient, codec, None)
        arrays |= encoded
        lost |= left
    return Contribution(codec, digest(local), arrays, lost, problem)
