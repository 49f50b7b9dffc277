"""Device, ranks and process group of a job, and its collective operations.

Chooses device, compute dtype and process group from the environment that torchrun
sets. Without torchrun there is one rank and no process group. One rank is one process
with one device; all ranks must call a collective together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from curtail.errors import ConfigError

BUCKET_ELEMENTS = 2**25  # elements of one gradient exchange: 128 MiB of fp32


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank of this process, and the number of ranks."""

    rank: int  # 0 to ranks - 1
    ranks: int
    local_rank: int  # on this machine


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device called `name`: "cpu", "cuda", or "auto" for CUDA if available.

    Raises: ConfigError: another name; CUDA is requested and not available; more ranks than devices.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"there is no device {name!r}", "use auto, cpu or cuda")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("no CUDA device is usable here", "check nvidia-smi and the driver, or use the device cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no device for local rank {local_rank}: this machine has {torch.cuda.device_count()}",
            "start at most as many ranks as this machine has devices",
        )
    return torch.device("cuda", local_rank)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 on CUDA, fp32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def ranks_from_environment(environment: dict[str, str] | None = None) -> Ranks:
    """Rank, number of ranks and local rank as torchrun sets them; one rank if it did not.

    Raises: ConfigError: a variable is not a number or they contradict each other.
    """
    values = os.environ if environment is None else environment
    try:
        found = Ranks(int(values.get("RANK", 0)), int(values.get("WORLD_SIZE", 1)), int(values.get("LOCAL_RANK", 0)))
    except ValueError as error:
        raise ConfigError(
            f"RANK, WORLD_SIZE or LOCAL_RANK is not a number: {error}", "start it with torchrun"
        ) from None
    if not (0 <= found.rank < found.ranks and found.local_rank >= 0):
        raise ConfigError(f"rank {found.rank} of {found.ranks} is impossible", "start it with torchrun")
    return found


COLLECTIVE_S = 1800.0
"""Longest wait of a rank for the others within a step, for what trains."""


def join_ranks(device: torch.device, timeout: float = 600.0) -> Ranks:
    """Join the process group of the job: NCCL on CUDA, gloo on the CPU, none with one rank.

    Args: timeout: seconds after which a collective fails on every rank.
    """
    found = ranks_from_environment()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if found.ranks > 1 and not dist.is_initialized():
        cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            rank=found.rank,
            world_size=found.ranks,
            timeout=timedelta(seconds=timeout),
            device_id=device if cuda else None,
        )
    return found


def leave_ranks() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank_count(group: dist.ProcessGroup | None = None) -> int:
    """Number of ranks in the group; 1 without a process group."""
    return dist.get_world_size(group) if dist.is_initialized() else 1


def agree(flag: bool, device: torch.device, group: dist.ProcessGroup | None = None) -> bool:
    """True on every rank if `flag` is true on any rank, so that all ranks stop at the same step."""
    if rank_count(group) == 1:
        return flag
    seen = torch.tensor(int(flag), dtype=torch.int32, device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=group)
    return bool(seen.item())


def sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The elementwise sum over all ranks, in place."""
    if rank_count(group) > 1:
        dist.all_reduce(values, group=group)
    return values


@torch.no_grad()
def broadcast_weights(model: nn.Module, source: int = 0, group: dist.ProcessGroup | None = None) -> None:
    """Give every rank the parameters of rank `source`, in place."""
    if rank_count(group) > 1:
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=source, group=group)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None = None) -> None:
    """Replace each gradient by its unweighted mean over the ranks.

    Gradients are exchanged in flat buckets. A gradient that is missing on a rank counts as zero there.
    """
    ranks = rank_count(group)
    if ranks == 1:
        return
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and size + parameter.numel() > BUCKET_ELEMENTS:
            _average_bucket(bucket, ranks, group)
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        _average_bucket(bucket, ranks, group)


def _average_bucket(bucket: list[nn.Parameter], ranks: int, group: dist.ProcessGroup | None) -> None:
    gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    flat /= ranks
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
