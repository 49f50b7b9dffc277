"""How the optimizer's work and state are split over the ranks of one job.

Rows (or matrices of a stack) are cut into as many equal shares as there are
ranks; the last shares may be shorter or empty. Each rank averages, updates and
remembers its own share only, and all get the results. Only the plain collectives
that both gloo and nccl have are used, one after the other, without futures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.distributed import rank_count


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank owns of `count` rows: [start, stop)."""

    count: int
    rank: int
    ranks: int

    @property
    def rows(self) -> int:
        """Rows of a full share; what is missing in the last ones is padding."""
        return -(-self.count // self.ranks)

    @property
    def start(self) -> int:
        return min(self.count, self.rank * self.rows)

    @property
    def stop(self) -> int:
        return min(self.count, self.start + self.rows)

    @property
    def own(self) -> slice:
        """The owned rows of a whole tensor."""
        return slice(self.start, self.stop)


def share_of(count: int, group: dist.ProcessGroup | None, split: bool = True) -> Share:
    """This rank's share of `count` rows; all of them without `split` or with one rank."""
    ranks = rank_count(group) if split else 1
    return Share(count, dist.get_rank(group) if ranks > 1 else 0, ranks)


def mean_of_share(gradient: Tensor, share: Share, group: dist.ProcessGroup | None) -> Tensor:
    """The owned rows of the gradient's mean over all ranks; a new tensor if there are several.

    Args: gradient: (count, ...), this rank's own.
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
    """All rows from every rank's owned ones; (count, ...) on every rank."""
    if share.ranks == 1:
        return own
    whole = own.new_empty((share.rows * share.ranks, *own.shape[1:]))
    dist.all_gather_into_tensor(whole, _padded(own, share.rows), group=group)
    return whole[: share.count]


def _padded(tensor: Tensor, rows: int) -> Tensor:
    if tensor.size(0) == rows:
        return tensor.contiguous()
    return torch.cat((tensor, tensor.new_zeros((rows - tensor.size(0), *tensor.shape[1:]))))
