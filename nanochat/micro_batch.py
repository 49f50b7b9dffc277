"""How many samples go through the model at once, found instead of asked for.

On CUDA a pass is tried and the number halved until it fits; on a CPU, where
running out of memory kills the process, an estimate is kept below a share of the
memory that is free. The optimizer step is the same whatever the number is, but
for rounding. Units: samples, bytes.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from curtail.errors import CurtailError
from nanochat.distributed import rank_count
from nanochat.loss import BLOCK_ELEMENTS
from nanochat.presets import GPTConfig

MEMORY_SHARE = 0.25
"""Part of a machine's free memory that activations of all its ranks may take."""

_FLOATS_PER_CHANNEL = 40
"""Values kept for the backward pass for each token, layer and channel, the wide MLP included; measured: about 33."""

_LOGIT_COPIES = 4


def sample_bytes(config: GPTConfig, length: int) -> int:
    """About what one more sample of `length` tokens takes in training on a CPU (fp32), in bytes."""
    channels = config.n_embd * (config.n_layer * _FLOATS_PER_CHANNEL + 8)
    return 4 * length * (channels + _LOGIT_COPIES * config.padded_vocab_size)


def estimated_batch(config: GPTConfig, length: int, most: int, free: int) -> int:
    """The largest number of samples, at most `most`, whose activations stay within `free` bytes; at least 1."""
    per_token = 4 * config.n_embd * (config.n_layer * _FLOATS_PER_CHANNEL + 8)
    logits = 4 * _LOGIT_COPIES * BLOCK_ELEMENTS  # never more: the loss is made block by block
    most_small = free // sample_bytes(config, length)
    most_large = (free - logits) // (length * per_token)
    return max(1, min(most, max(most_small, most_large)))


def free_memory() -> int:
    """Bytes that could be allocated on this machine now, limits of a container included; 4 GiB if unknown."""
    free = 4 * 2**30
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            free = min(free, max(0, int(limit) - used))
    except (OSError, ValueError, IndexError):
        pass
    return free


def hopeful_batch(config: GPTConfig, length: int, most: int, free: int) -> int:
    """`most` halved until it is not hopeless for a GPU with `free` bytes: each number tried may be compiled anew."""
    # half of the bytes in bf16, and half of the estimate for a kernel that keeps less
    bound = estimated_batch(config, length, most, 4 * free)
    while most > bound:
        most = -(-most // 2)
    return most


def fitting_batch(model: nn.Module, config: GPTConfig, length: int, most: int, device: torch.device) -> int:
    """The largest number of samples, `most` halved as often as needed, that one pass can take on this GPU.

    The passes are made with the optimizer's state in memory and leave no gradient behind.
    Raises: torch.OutOfMemoryError: not even one sample fits.
    """
    tried = most
    while True:
        try:
            ids = torch.zeros((tried, length), dtype=torch.int64, device=device)
            for _ in range(2):  # the second pass adds to the gradients of the first
                model(ids, ids).backward()
            torch.cuda.synchronize(device)
            return tried
        except torch.OutOfMemoryError:
            if tried == 1:
                raise
        finally:
            for parameter in model.parameters():
                parameter.grad = None
            torch.cuda.empty_cache()
        tried = -(-tried // 2)


def _free_on(device: torch.device) -> int:
    return int(torch.cuda.mem_get_info(device)[0])


def device_batch(
    model: nn.Module,
    config: GPTConfig,
    length: int,
    most: int,
    device: torch.device,
    *,
    local_ranks: int = 1,
    group: dist.ProcessGroup | None = None,
) -> int:
    """Samples per pass for all ranks alike: the least of what each can take, at most `most`.

    All ranks must call it together. Args: local_ranks: ranks that share this machine's memory.
    Raises: CurtailError: not even one sample fits into this GPU.
    """
    if device.type == "cuda":
        try:
            found = fitting_batch(model, config, length, hopeful_batch(config, length, most, _free_on(device)), device)
        except torch.OutOfMemoryError:
            raise CurtailError(
                f"not one sample of {length} tokens fits into the memory of this GPU",
                "free its memory, or train a smaller model or shorter samples",
            ) from None
    else:
        found = estimated_batch(config, length, most, int(free_memory() * MEMORY_SHARE) // local_ranks)
    if rank_count(group) > 1:
        least = torch.tensor([found], dtype=torch.int64, device=device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group)
        found = int(least.item())
    return found
