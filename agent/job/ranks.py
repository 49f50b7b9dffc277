"""Messages from rank 0 to all ranks of a job.

They use a gloo group of their own on the CPU, so that they never wait for a device
and do not depend on the backend of the gradients. All ranks must make the same calls
in the same order; with one rank every call returns its argument at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from nanochat.distributed import Ranks

WAIT_S = 3600.0
"""Longest silence of rank 0, in seconds: it may be downloading weights. A rank that dies ends the job much sooner."""


class RankGroup:
    """The ranks of this job.

    Args: ranks: as `nanochat.distributed.join_ranks` returned it.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._group: dist.ProcessGroup | None = None
        if ranks.ranks > 1:
            group = dist.new_group(backend="gloo", timeout=timedelta(seconds=WAIT_S))
            assert isinstance(group, dist.ProcessGroup)
            self._group = group

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which alone talks to the controller."""
        return self.ranks.rank == 0

    def share(self, message: dict[str, Any] | None) -> dict[str, Any]:
        """Rank 0's message on every rank; the others pass None."""
        if self._group is None:
            assert message is not None
            return message
        text = json.dumps(message).encode() if message is not None else b""
        size = torch.tensor([len(text)], dtype=torch.int64)
        dist.broadcast(size, 0, group=self._group)
        body = torch.zeros(int(size.item()), dtype=torch.uint8)
        if message is not None:
            body.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(body, 0, group=self._group)
        value = json.loads(bytes(body.tolist()))
        assert isinstance(value, dict)
        return value

    def share_code(self, code: int) -> int:
        """Rank 0's small number on every rank; sent before each step, so it is one tiny message."""
        if self._group is None:
            return code
        value = torch.tensor([code], dtype=torch.int32)
        dist.broadcast(value, 0, group=self._group)
        return int(value.item())

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank, on every rank; a barrier, too."""
        if self._group is None:
            return flag
        value = torch.tensor([int(flag)], dtype=torch.int32)
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._group)
        return bool(value.item())

    def share_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Overwrite these CPU tensors with rank 0's, in name order."""
        if self._group is not None:
            for name in sorted(tensors):
                dist.broadcast(tensors[name], 0, group=self._group)
