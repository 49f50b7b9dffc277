"""The inner training loop: batches in, updated weights and a report out.

Decides how one site's ranks make optimizer steps from samples: accumulation of
micro-batches, hyperparameters by global tokens, the reported loss. The caller
decides when to stop (`until`), where samples come from and what happens to the
weights. Units: tokens, seconds, losses in nats per token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from curtail.errors import ConfigError
from nanochat.distributed import rank_count, sum_over_ranks
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.schedule import Timetable

MicroBatch = tuple[np.ndarray, np.ndarray]  # inputs and targets, each (n, T) int64


class SampleStream(Protocol):
    """The part of a packed token stream (`nanochat.stream`) that this module needs."""

    def batch(self, start: int, stop: int) -> MicroBatch:
        """Samples [start, stop) as inputs and targets, each (stop - start, T) int64."""
        ...


@dataclass(frozen=True, slots=True)
class TrainReport:
    """The result of `inner_steps`, over all ranks of this site."""

    steps: int
    samples: int
    tokens: int
    loss_first: float | None  # nats per token, mean over ranks; None if no step was made
    loss_last: float | None
    loss_mean: float | None
    seconds: float

    def then(self, later: TrainReport) -> TrainReport:
        """The combined report of this call and a later one that continued from it."""
        if not self.steps or not later.steps:
            kept = later if later.steps else self
            return replace(kept, seconds=self.seconds + later.seconds)
        assert self.loss_mean is not None and later.loss_mean is not None
        steps = self.steps + later.steps
        return TrainReport(
            steps=steps,
            samples=self.samples + later.samples,
            tokens=self.tokens + later.tokens,
            loss_first=self.loss_first,
            loss_last=later.loss_last,
            loss_mean=(self.steps * self.loss_mean + later.steps * later.loss_mean) / steps,
            seconds=self.seconds + later.seconds,
        )


NO_STEPS = TrainReport(0, 0, 0, None, None, None, 0.0)
"""The report of no steps."""


class StepBatches:
    """The micro-batches of one rank, step after step, from a range of samples.

    Step s uses samples [start + s*B, start + (s+1)*B). Rank r uses the r-th of
    equal slices, in micro-batches of at most `device_batch` samples. Samples that do
    not fill a last step are not used. A thread reads the next step in advance.

    Args:
        start, stop: the range of sample indices, as in a data lease.
        batch_samples: B, samples of one step over all ranks.
        device_batch: most samples per forward and backward pass.
    Raises: ConfigError: B cannot be split evenly over the ranks.
    """

    def __init__(
        self,
        stream: SampleStream,
        *,
        start: int,
        stop: int,
        batch_samples: int,
        device_batch: int,
        rank: int = 0,
        ranks: int = 1,
        prefetch: bool = True,
    ) -> None:
        if batch_samples < 1 or device_batch < 1:
            raise ConfigError("batch sizes must be at least 1 sample", "raise batch_samples or device_batch")
        if batch_samples % ranks:
            raise ConfigError(
                f"a batch of {batch_samples} samples does not split over {ranks} ranks",
                f"use a batch of {-(-batch_samples // ranks) * ranks} samples, or another number of ranks",
            )
        assert 0 <= rank < ranks and 0 <= start <= stop
        self.stream, self.start, self.batch_samples, self.device_batch = stream, start, batch_samples, device_batch
        self.slice = batch_samples // ranks
        self.rank, self.prefetch = rank, prefetch
        self.steps = (stop - start) // batch_samples

    def step(self, index: int) -> list[MicroBatch]:
        """The micro-batches of step `index` for this rank."""
        first = self.start + index * self.batch_samples + self.rank * self.slice
        last = first + self.slice
        cuts = range(first, last, self.device_batch)
        return [self.stream.batch(cut, min(cut + self.device_batch, last)) for cut in cuts]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        if not self.prefetch:
            yield from map(self.step, range(self.steps))
            return
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
            ahead = reader.submit(self.step, 0) if self.steps else None
            for index in range(self.steps):
                assert ahead is not None
                ready = ahead.result()
                ahead = reader.submit(self.step, index + 1) if index + 1 < self.steps else None
                yield ready


def inner_steps(
    model: GPT,
    optimizer: MuonAdamW,
    schedule: Timetable,
    batches: Iterable[Sequence[MicroBatch]],
    *,
    tokens_before: int,
    tokens_per_step: int,
    until: Callable[[int], bool],
    on_step: Callable[[int, float, int], None] | None = None,
    lr_factor: Callable[[int], float] | None = None,
    device: torch.device,
) -> TrainReport:
    """Train until `until` says so or the batches end.

    Step s of this call runs with the hyperparameters at tokens_before + s * tokens_per_step.

    Args:
        batches: per optimizer step, this rank's micro-batches; they are weighted by their
            number of targets. All ranks must get the same number of steps.
        tokens_before: global tokens at the start of this call.
        tokens_per_step: growth of the global tokens per step of this call: this site's
            batch, plus the tokens of other sites meanwhile.
        until: called before each step with its index from 0; true ends the call. It must
            return the same on all ranks (`distributed.agree`).
        on_step: called after each step with its index, loss and global tokens. It waits
            for the device, so pass it only if the values are used.
        lr_factor: step index -> an additional factor on the learning rate.
    Returns: the report, equal on all ranks except for `seconds`.
    """
    ranks = rank_count(optimizer.group)
    began = time.perf_counter()
    losses: list[Tensor] = []
    samples = tokens = 0
    model.train()
    source = iter(batches)
    try:
        while not until(len(losses)):
            micro_batches = next(source, None)
            if micro_batches is None:
                break
            step = len(losses)
            loss = _gradients(model, micro_batches, device)
            hyper = schedule.at(tokens_before + step * tokens_per_step)
            if lr_factor is not None:
                hyper = replace(hyper, lr_scale=hyper.lr_scale * lr_factor(step))
            optimizer.step(hyper)
            optimizer.zero_grad()
            losses.append(sum_over_ranks(loss, optimizer.group) / ranks)
            samples += ranks * sum(len(inputs) for inputs, _ in micro_batches)
            tokens += ranks * sum(inputs.size for inputs, _ in micro_batches)
            if on_step:
                on_step(step, losses[-1].item(), tokens_before + (step + 1) * tokens_per_step)
    finally:
        if close := getattr(source, "close", None):
            close()  # ends the reader thread of StepBatches
    return _report(losses, samples, tokens, began)


def _report(losses: list[Tensor], samples: int, tokens: int, began: float) -> TrainReport:
    """The report of all steps; waits for the device once."""
    values = torch.stack(losses).double().cpu() if losses else None
    return TrainReport(
        steps=len(losses),
        samples=samples,
        tokens=tokens,
        loss_first=values[0].item() if values is not None else None,
        loss_last=values[-1].item() if values is not None else None,
        loss_mean=values.mean().item() if values is not None else None,
        seconds=time.perf_counter() - began,
    )


def _gradients(model: GPT, micro_batches: Sequence[MicroBatch], device: torch.device) -> Tensor:
    """Accumulate the gradient of the mean loss over all targets. Returns: that loss, detached, fp32."""
    targets_in_all = sum(targets.size for _, targets in micro_batches)
    total = torch.zeros((), dtype=torch.float32, device=device)
    for inputs, targets in micro_batches:
        loss = model(_on(inputs, device), _on(targets, device)) * (targets.size / targets_in_all)
        loss.backward()
        total += loss.detach()
    return total


def _on(ids: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(ids)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
