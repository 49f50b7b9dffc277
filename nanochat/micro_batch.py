"""Finds the largest micro-batch (samples per pass) that fits into memory.

On CUDA it tries a pass and halves the number until it fits. On a CPU, where running
out of memory would kill the process, it uses an estimate and a share of the free
memory. The optimizer step does not depend on the number, except for rounding. Units:
samples, bytes.
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
"""Share of a machine's free memory for the activations of all its ranks."""

_FLOATS_PER_CHANNEL = 40
"""Values kept for the backward pass per token, layer and channel, including the MLP; measured: about 33."""

_LOGIT_COPIES = 4


def sample_bytes(config: GPTConfig, length: int) -> int:
    """Approximate memory of one more sample of `length` tokens in training on a CPU (fp32), in bytes."""
    channels = config.n_embd * (config.n_layer * _FLOATS_PER_CHANNEL + 8)
    return 4 * length * (channels + _LOGIT_COPIES * config.padded_vocab_size)


def estimated_batch(config: GPTConfig, length: int, most: int, free: int) -> int:
    """The largest number of samples, at most `most`, whose activations fit into `free` bytes; at least 1."""
    per_token = 4 * config.n_embd * (config.n_layer * _FLOATS_PER_CHANNEL + 8)
    logits = 4 * _LOGIT_COPIES * BLOCK_ELEMENTS  # an upper limit, because the loss is computed block by block
    most_small = free // sample_bytes(config, length)
    most_large = (free - logits) // (length * per_token)
    return max(1, min(most, max(most_small, most_large)))


def free_memory() -> int:
    """Bytes that can be allocated on this machine now, within the limits of a container; 4 GiB if unknown."""
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
    """`most` halved until it may fit into `free` bytes of a GPU. Each number that is tried costs a compilation."""
    # bf16 needs half of the bytes, and a kernel that keeps less needs half of the estimate.
    bound = estimated_batch(config, length, most, 4 * free)
    while most > bound:
        most = -(-most // 2)
    return most


def fitting_batch(model: nn.Module, config: GPTConfig, length: int, most: int, device: torch.device) -> int:
    """The largest number of samples that fits into one pass on this GPU: `most`, halved as often as needed.

    The trial passes run with the optimizer's state in memory, and their gradients are deleted.
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
    """Samples per pass, the same on all ranks: the minimum of what fits on each, at most `most`.

    All ranks must call it together. Args: local_ranks: ranks that share this machine's memory.
    Raises: CurtailError: not even one sample fits into this GPU.
    """
    if device.type == "cuda":
        try:
            found = fitting_batch(model, config, length, hopeful_batch(config, length, most, _free_on(device)), device)
        except torch.OutOfMemoryError:
            raise CurtailError(
                f"not even one sample of {length} tokens fits into the memory of this GPU",
                "free GPU memory, or train a smaller model or shorter samples",
            ) from None
    else:
        found = estimated_batch(config, length, most, int(free_memory() * MEMORY_SHARE) // local_ranks)
    if rank_count(group) > 1:
        least = torch.tensor([found], dtype=torch.int64, device=device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN, group=group)
        found = int(least.item())
    return found
