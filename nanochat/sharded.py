"""Shards the optimizer's work and state over the ranks of a job.

Rows (or matrices of a stack) are split into one equal share per rank; the last shares
may be shorter or empty. Each rank averages gradients, updates weights and keeps state
only for its share; then all ranks get the results. Only collectives that both gloo and
NCCL support are used, one after the other, without futures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.distributed import rank_count


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's share of `count` rows: [start, stop)."""

    count: int
    rank: int
    ranks: int

    @property
    def rows(self) -> int:
        """Rows of a full share; the last shares are padded to this."""
        return -(-self.count // self.ranks)

    @property
    def start(self) -> int:
        return min(self.count, self.rank * self.rows)

    @property
    def stop(self) -> int:
        return min(self.count, self.start + self.rows)

    @property
    def own(self) -> slice:
        """The slice of this share in a whole tensor."""
        return slice(self.start, self.stop)


def share_of(count: int, group: dist.ProcessGroup | None, split: bool = True) -> Share:
    """This rank's share of `count` rows; all rows without `split` or with one rank."""
    ranks = rank_count(group) if split else 1
    return Share(count, dist.get_rank(group) if ranks > 1 else 0, ranks)


def mean_of_share(gradient: Tensor, share: Share, group: dist.ProcessGroup | None) -> Tensor:
    """This share's rows of the gradient's mean over all ranks; a new tensor with several ranks.

    Args: gradient: (count, ...), this rank's gradient.
    """
    everyone = rank_count(group)
    if everyone == 1:
        return gradient
    if share.ranks == 1:
        mean = gradient.clone()
        dist.all_reduce(mean, group=group)
        return mean.div_(everyone)
    mean = gradient.new_empty((share.rows, *gradient.shape[1:]))
    dist.reduce_scatter_tensor(mean, _padded(gradient, share.rows * share.ranks), group=group)
    return mean.div_(everyone)[: share.stop - share.start]


def gathered(own: Tensor, share: Share, group: dist.ProcessGroup | None) -> Tensor:
    """All rows, gathered from the shares of all ranks; (count, ...) on every rank."""
    if share.ranks == 1:
        return own
    whole = own.new_empty((share.rows * share.ranks, *own.shape[1:]))
    dist.all_gather_into_tensor(whole, _padded(own, share.rows), group=group)
    return whole[: share.count]


def _padded(tensor: Tensor, rows: int) -> Tensor:
    if tensor.size(0) == rows:
        return tensor.contiguous()
    return torch.cat((tensor, tensor.new_zeros((rows - tensor.size(0), *tensor.shape[1:]))))
