"""The smoothed training loss that a run displays; pure.

A version may consist of a single step, at the end of a window or of the budget, and the loss of a few samples
is noisy. So the loss of each version (the mean over its contributions' steps) enters a debiased exponential
moving average over the versions, like the one that nanochat prints over steps. Losses are nats per token.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import expm1

SMOOTH_STEPS = 100
"""Batches after which a loss has the weight 1/e. Less than a usual round, so that the average hardly lags."""

SMOOTH_SHARE = 0.1
"""The span is at most this share of the run so far, because the loss falls fast at first."""


def mean_loss(parts: Iterable[tuple[int, float | None]]) -> float | None:
    """The token-weighted mean of several contributions, each (tokens, mean loss); None if none has a loss."""
    known = [(tokens, loss) for tokens, loss in parts if loss is not None and tokens > 0]
    tokens = sum(count for count, _ in known)
    return sum(count * loss for count, loss in known) / tokens if tokens else None


def smoothed(before: float | None, tokens_before: int, loss: float | None, tokens: int, span: float) -> float | None:
    """The smoothed loss after one more version.

    Each token has the weight exp(-age / span), with its age in tokens. The weights are normalised to 1, so the
    start value leaves no bias. Only the previous value and its tokens are needed. Early in a run the span is
    `SMOOTH_SHARE` of its tokens.

    Args:
        before, tokens_before: the value so far, and the tokens of all versions in it.
        loss, tokens: of the new version; None: unknown, then the value stays.
        span: upper limit of the tokens after which a loss has the weight 1/e.
    """
    if before is None or loss is None or tokens <= 0:
        return before if loss is None or tokens <= 0 else loss
    total = tokens_before + tokens
    span = min(span, SMOOTH_SHARE * total)
    return before + (loss - before) * expm1(-tokens / span) / expm1(-total / span)


def span_tokens(batch_samples: int, sequence_len: int) -> float:
    """The span of a run's smoothed loss, in tokens."""
    return float(SMOOTH_STEPS * batch_samples * sequence_len)
