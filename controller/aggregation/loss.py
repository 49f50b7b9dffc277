"""The training loss that a run shows: a mean over its last steps. Pure.

A version may be made of one step, where a window or the budget ends, and the loss of a few samples says
little of a model. So what a version's contributions say, each a mean over its own steps, is averaged over
the versions before it, the older the less: as nanochat prints a debiased exponential mean of its steps.
Losses are nats per token.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import expm1

SMOOTH_STEPS = 100
"""Batches after which a loss counts 1/e: less than a round of several sites, so that usual versions hardly lag."""

SMOOTH_SHARE = 0.1
"""And no more than this share of the run so far: at first the loss falls fast."""


def mean_loss(parts: Iterable[tuple[int, float | None]]) -> float | None:
    """The mean of several contributions, each (tokens, its mean loss), by tokens; None if none has a loss."""
    known = [(tokens, loss) for tokens, loss in parts if loss is not None and tokens > 0]
    tokens = sum(count for count, _ in known)
    return sum(count * loss for count, loss in known) / tokens if tokens else None


def smoothed(before: float | None, tokens_before: int, loss: float | None, tokens: int, span: float) -> float | None:
    """The smoothed loss after one more version.

    With weights exp(-age / span) for each token, age counted in tokens, which add up to 1: nothing of where
    it began is left in it. From the value before and its tokens alone, so that nothing else has to be kept.
    Early in a run the span is `SMOOTH_SHARE` of its tokens.

    Args:
        before, tokens_before: the value so far and the tokens of all versions that it is of.
        loss, tokens: of the version; None: nothing is known of it, the value stays.
        span: tokens after which a loss counts 1/e, at most.
    """
    if before is None or loss is None or tokens <= 0:
        return before if loss is None or tokens <= 0 else loss
    total = tokens_before + tokens
    span = min(span, SMOOTH_SHARE * total)
    return before + (loss - before) * expm1(-tokens / span) / expm1(-total / span)


def span_tokens(batch_samples: int, sequence_len: int) -> float:
    """The span of a run's smoothed loss, in tokens."""
    return float(SMOOTH_STEPS * batch_samples * sequence_len)
