"""Measures training speed on this machine: tokens per second, utilisation, memory.

It measures whole optimizer steps on random tokens, without data, checkpoints or
evaluation, and takes the median after two warm-up steps, for one attention backend or
for all of them. The speed does not depend on the tokens. Units: tokens, seconds, MiB.
"""

from __future__ import annotations

import gc
import itertools
import resource
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from curtail.errors import ConfigError
from curtail.system.clock import Clock
from nanochat.acceleration import accelerate
from nanochat.attention_kernels import BACKENDS
from nanochat.distributed import Ranks, choose_device, compute_dtype, join_ranks, leave_ranks, ranks_from_environment
from nanochat.gpt import GPT
from nanochat.micro_batch import device_batch
from nanochat.optim import MuonAdamW
from nanochat.peak_flops import utilisation
from nanochat.presets import GPTConfig, flops_per_token, parameter_count
from nanochat.recipe import Recipe
from nanochat.schedule import Schedule
from nanochat.train import MicroBatch, StepBatches, inner_steps

WARM_UP = 2  # steps: allocation, autotuning, compilation


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The settings of a measurement."""

    steps: int  # after the warm-up
    batch_samples: int  # of one step over all ranks
    device_batch_samples: int = 0  # per pass; 0: find the largest that fits
    threads: int = 0  # of this rank; 0: torch's default
    compiled: bool | None = None  # None: on CUDA only
    attention: str = "auto"
    fp8: bool = False
    fused_loss: bool = True  # false: all logits at once
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Speed:
    """The result of a measurement."""

    device: str
    ranks: int
    parameters: int
    sequence_len: int
    batch_samples: int
    device_batch_samples: int
    steps: int  # measured steps, without warm-up
    seconds_per_step: float  # median
    tok_s: float  # of all ranks together, at the median step
    tflop_s: float  # likewise
    mfu: float | None  # share of the bf16 peak, also with fp8; None: the device's peak is unknown
    peak_memory_mib: float  # of rank 0: allocated on CUDA, resident on a CPU
    compiled: bool
    attention: str
    windows: str  # see `attention_backend.Choice`
    refused: dict[str, str]  # earlier attention backends that do not work, and why
    fp8: bool
    loss: str
    torch: str


@dataclass(frozen=True, slots=True)
class NotMeasured:
    """An attention backend that was not measured."""

    attention: str
    reason: str


class _MadeUp:
    """Samples of random tokens; equal indices give equal samples."""

    def __init__(self, config: GPTConfig) -> None:
        self.config = config

    def batch(self, start: int, stop: int) -> MicroBatch:
        rows = np.random.default_rng(start).integers(
            0, self.config.vocab_size, (stop - start, self.config.sequence_len + 1)
        )
        return rows[:, :-1].copy(), rows[:, 1:].copy()


def measure_speed(config: GPTConfig, asked: BenchOptions, clock: Clock) -> Speed:
    """Measure the training speed with the settings `asked`, on all ranks of this job.

    Raises: ConfigError: no such device; the batch does not split over the ranks; the attention backend
        or fp8 does not work here.
    """
    with _ranks(asked) as (device, ranks):
        return _measured(config, asked, device, ranks, clock)


def measure_backends(config: GPTConfig, asked: BenchOptions, clock: Clock) -> list[Speed | NotMeasured]:
    """Measure every attention backend for the device, in the order of the table.

    Raises: ConfigError: as `measure_speed`, except for backends that do not work.
    """
    found: list[Speed | NotMeasured] = []
    with _ranks(asked) as (device, ranks):
        for backend in BACKENDS[device.type]:
            try:
                found.append(_measured(config, replace(asked, attention=backend.name), device, ranks, clock))
            except (ConfigError, torch.OutOfMemoryError) as error:
                reason = error.message if isinstance(error, ConfigError) else "it does not fit into this GPU's memory"
                found.append(NotMeasured(backend.name, reason))
            finally:
                _forget(device)
    return found


@contextmanager
def _ranks(asked: BenchOptions) -> Iterator[tuple[torch.device, Ranks]]:
    if asked.threads:
        torch.set_num_threads(asked.threads)
    place = ranks_from_environment()
    device = choose_device(asked.device, place.local_rank)
    try:
        yield device, join_ranks(device)
    finally:
        leave_ranks()


def _forget(device: torch.device) -> None:
    """Free what a measurement has allocated, so that the next one starts under equal conditions."""
    gc.collect()
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()


def _measured(config: GPTConfig, asked: BenchOptions, device: torch.device, ranks: Ranks, clock: Clock) -> Speed:
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    model = GPT(config, compute_dtype(device)).to(device)
    model.init_weights(1)
    model.fused_loss = asked.fused_loss
    fast = accelerate(model, device, attention=asked.attention, fp8=asked.fp8, compiled=asked.compiled)
    tokens = asked.batch_samples * config.sequence_len
    optimizer = MuonAdamW(model, config, tokens, Recipe())
    most = max(1, asked.batch_samples // ranks.ranks)
    per_pass = asked.device_batch_samples or device_batch(fast.net, config, config.sequence_len, most, device)
    steps = WARM_UP + asked.steps
    batches = StepBatches(
        _MadeUp(config), start=0, stop=steps * asked.batch_samples, batch_samples=asked.batch_samples,
        device_batch=min(per_pass, most), rank=ranks.rank, ranks=ranks.ranks,
    )  # fmt: skip
    marks: list[float] = []
    inner_steps(
        fast.net, optimizer, Schedule(tokens * steps, tokens), batches, tokens_before=0, tokens_per_step=tokens,
        until=lambda step: False, on_step=lambda *_: marks.append(clock.monotonic()), device=device,
    )  # fmt: skip
    seconds = statistics.median(after - before for before, after in itertools.pairwise(marks[WARM_UP - 1 :]))
    rate = tokens / max(1e-9, seconds)
    work = flops_per_token(config)
    name = torch.cuda.get_device_name(device) if cuda else None
    return Speed(
        device=name or "cpu",
        ranks=ranks.ranks,
        parameters=parameter_count(config),
        sequence_len=config.sequence_len,
        batch_samples=asked.batch_samples,
        device_batch_samples=min(per_pass, most),
        steps=asked.steps,
        seconds_per_step=seconds,
        tok_s=rate,
        tflop_s=rate * work / 1e12,
        mfu=utilisation(rate, work, name, ranks.ranks),
        peak_memory_mib=torch.cuda.max_memory_allocated(device) / 2**20 if cuda else _resident_mib(),
        compiled=fast.compiled,
        attention=fast.choice.backend.name,
        windows=fast.choice.windows,
        refused=dict(fast.choice.refused),
        fp8=bool(fast.fp8_layers),
        loss="fused" if asked.fused_loss else "plain",
        torch=torch.__version__,
    )


def _resident_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**10 if sys.platform == "linux" else 2**20)  # kilobytes on Linux, bytes on macOS
