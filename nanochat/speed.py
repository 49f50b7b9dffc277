"""How fast a model trains on the machine at hand: tokens per second, utilisation, memory.

Decides what is measured: whole optimizer steps on made-up tokens, without data,
checkpoints or scores, the median over the steps after two that warm up. Speed
does not depend on which tokens they are. Units: tokens, seconds, MiB.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import sys
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from curtail.clock import Clock
from nanochat.batchsize import device_batch
from nanochat.device import choose_device, compute_dtype, join_ranks, leave_ranks, ranks_from_environment
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.peaks import utilisation
from nanochat.presets import GPTConfig, flops_per_token, parameter_count
from nanochat.recipe import Recipe
from nanochat.schedule import Schedule
from nanochat.train import MicroBatch, StepBatches, inner_steps

WARM_UP = 2  # steps: allocation, autotuning, compilation


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured."""

    device: str
    ranks: int
    parameters: int
    sequence_len: int
    batch_samples: int
    device_batch_samples: int
    steps: int  # measured, warm-up left out
    seconds_per_step: float  # median
    tok_s: float  # of all ranks together, at the median step
    tflop_s: float  # likewise
    mfu: float | None  # None: no peak is known for this device
    peak_memory_mib: float  # of rank 0: allocated on CUDA, resident on a CPU
    compiled: bool
    torch: str


class _MadeUp:
    """Samples of random tokens; the same ones for the same indices."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config

    def batch(self, start: int, stop: int) -> MicroBatch:
        rows = np.random.default_rng(start).integers(
            0, self.config.vocab_size, (stop - start, self.config.sequence_len + 1)
        )
        return rows[:, :-1].copy(), rows[:, 1:].copy()


def measure_speed(
    config: GPTConfig,
    *,
    steps: int,
    batch_samples: int,
    device_batch_samples: int,
    threads: int,
    compiled: bool | None,
    clock: Clock,
    device_name: str = "auto",
) -> Speed:
    """Train `steps` steps, after `WARM_UP` more, on this process's ranks.

    Args:
        batch_samples: of one step over all ranks. device_batch_samples: per pass; 0: found.
        threads: of this rank; 0: torch's own choice. compiled: None: on CUDA only.
    Raises: ConfigError: no such device; a batch that does not split over the ranks.
    """
    if threads:
        torch.set_num_threads(threads)
    place = ranks_from_environment()
    device = choose_device(device_name, place.local_rank)
    ranks = join_ranks(device)
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        model = GPT(config, compute_dtype(device)).to(device)
        model.init_weights(1)
        use = compiled if compiled is not None else device.type == "cuda"
        net = cast(GPT, torch.compile(model, dynamic=False)) if use else model
        tokens = batch_samples * config.sequence_len
        optimizer = MuonAdamW(model, config, tokens, Recipe())
        most = max(1, batch_samples // ranks.ranks)
        per_pass = device_batch_samples or device_batch(net, config, config.sequence_len, most, device)
        batches = StepBatches(
            _MadeUp(config), start=0, stop=(WARM_UP + steps) * batch_samples, batch_samples=batch_samples,
            device_batch=min(per_pass, most), rank=ranks.rank, ranks=ranks.ranks,
        )  # fmt: skip
        marks: list[float] = []
        inner_steps(
            net, optimizer, Schedule(tokens * (WARM_UP + steps), tokens), batches, tokens_before=0,
            tokens_per_step=tokens, until=lambda step: False, on_step=lambda *_: marks.append(clock.monotonic()),
            device=device,
        )  # fmt: skip
    finally:
        leave_ranks()
    measured = marks[WARM_UP - 1 :]
    seconds = statistics.median(after - before for before, after in itertools.pairwise(measured))
    rate = tokens / max(1e-9, seconds)
    work = flops_per_token(config)
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else None
    return Speed(
        device=name or "cpu",
        ranks=ranks.ranks,
        parameters=parameter_count(config),
        sequence_len=config.sequence_len,
        batch_samples=batch_samples,
        device_batch_samples=min(per_pass, most),
        steps=steps,
        seconds_per_step=seconds,
        tok_s=rate,
        tflop_s=rate * work / 1e12,
        mfu=utilisation(rate, work, name, ranks.ranks),
        peak_memory_mib=torch.cuda.max_memory_allocated(device) / 2**20 if cuda else _resident_mib(),
        compiled=use,
        torch=torch.__version__,
    )


def _resident_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**10 if sys.platform == "linux" else 2**20)  # kilobytes on Linux, bytes on macOS
