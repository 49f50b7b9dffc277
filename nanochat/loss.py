"""Next-token cross entropy from hidden states, computed block by block to save memory.

The loss: product with the unembedding, without vocabulary padding, then softcap and
softmax in fp32. With a vocabulary of 65,536, full fp32 logits would be the largest
buffer of training. So the gradient is computed block by block together with the loss,
and only gradients are kept. Units: nats. Negative targets are not counted. Shapes: N
rows, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK_ELEMENTS = 2**27  # logits of one block: 512 MiB in fp32


def softcapped_logits(hidden: Tensor, weight: Tensor, vocab_size: int, softcap: float) -> Tensor:
    """softcap * tanh(raw / softcap) in fp32; (..., D) and (padded V, D) -> (..., V)."""
    raw = F.linear(hidden, weight.to(hidden.dtype))[..., :vocab_size]
    return softcap * torch.tanh(_at_least_fp32(raw) / softcap)


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    softcap: float,
    reduction: str = "mean",
    block_rows: int | None = None,
) -> Tensor:
    """Cross entropy of each row's softcapped logits with its target.

    Args:
        hidden: (N, D) in the compute dtype. weight: (padded V, D) fp32.
        targets: (N,) int64; negative ones are not in sum and mean, and give 0 with "none".
        reduction: "mean" over counted targets, "sum", or "none" for (N,) losses without a gradient.
        block_rows: rows per block; by default as many as fit in BLOCK_ELEMENTS logits.
    Returns: fp32 scalar, or (N,) with "none"; the mean of no targets is 0.
    Raises: ValueError: another reduction.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction {reduction!r} is not mean, sum or none")
    block_rows = block_rows or max(1, BLOCK_ELEMENTS // weight.size(0))
    if reduction == "none":
        with torch.no_grad():
            blocks = [
                _block(h, weight.to(hidden.dtype), t, vocab_size, softcap)[0]
                for h, t in zip(hidden.split(block_rows), targets.split(block_rows), strict=True)
            ]
            return torch.cat(blocks)
    total = _BlockwiseSum.apply(hidden, weight, targets, vocab_size, softcap, block_rows)
    if reduction == "sum":
        return total
    return total / (targets >= 0).sum().clamp(min=1)


def whole_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, softcap: float) -> Tensor:
    """The mean of `cross_entropy` from all logits at once, with torch's function; a reference for comparisons."""
    logits = softcapped_logits(hidden, weight, vocab_size, softcap)
    total = F.cross_entropy(logits, targets.clamp(min=-1), ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _block(h: Tensor, w: Tensor, t: Tensor, vocab_size: int, softcap: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses (n,) of one block, and the values for their gradient: logits, tanh, log-sum-exp."""
    bent = torch.tanh(_at_least_fp32(F.linear(h, w)[:, :vocab_size]) / softcap)
    logits = softcap * bent
    log_sum = torch.logsumexp(logits, dim=-1)
    picked = logits.gather(1, t.clamp(min=0)[:, None])[:, 0]
    return torch.where(t >= 0, log_sum - picked, 0.0), logits, bent, log_sum


class _BlockwiseSum(torch.autograd.Function):
    """Sum of the losses; the forward pass computes the gradient of the sum, the backward pass scales it."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, vocab_size, softcap, block_rows):  # type: ignore[no-untyped-def]
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        w = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=_at_least_fp32(hidden[:0]).dtype, device=hidden.device)
        if wanted:
            grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, hidden.size(0), block_rows):
            rows = slice(start, start + block_rows)
            h, t = hidden[rows], targets[rows]
            losses, logits, bent, log_sum = _block(h, w, t, vocab_size, softcap)
            total += losses.sum()
            if not wanted:
                continue
            # d loss / d raw = (softmax - onehot) * (1 - tanh^2)
            grad = logits.sub_(log_sum[:, None]).exp_()
            grad.scatter_add_(1, t.clamp(min=0)[:, None], torch.full_like(log_sum, -1.0)[:, None])
            grad.mul_(1.0 - bent.square()).mul_((t >= 0)[:, None])
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = grad @ w[:vocab_size]
            grad_weight[:vocab_size] += grad.t() @ h
        if wanted:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad_total):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        return (grad_hidden * grad_total).to(grad_hidden.dtype), grad_weight * grad_total, None, None, None, None
