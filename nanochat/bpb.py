"""Bits per byte: how well a model predicts text, independent of its tokenizer.

The score is the sum of the losses (nats) of all counted targets, divided by ln 2 and
by the number of bytes of those targets. Special tokens have no bytes and are not
counted. The caller fixes the number of tokens, so the score does not depend on batch
size or rank count. Units: bits per byte, nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from curtail.errors import ConfigError
from nanochat.distributed import Ranks, sum_over_ranks
from nanochat.gpt import GPT
from nanochat.train import SampleStream


@dataclass(frozen=True, slots=True)
class BpbResult:
    """The score of one evaluation."""

    bpb: float  # bits per byte over the counted targets
    loss: float  # nats per token over the same targets
    tokens: int  # number of counted targets
    bytes: int  # of the counted targets


@torch.no_grad()
def bits_per_byte(
    model: GPT,
    stream: SampleStream,
    token_bytes: Sequence[int],
    *,
    tokens: int,
    device: torch.device,
    device_batch: int = 16,
    start: int = 0,
    ranks: Ranks | None = None,
) -> BpbResult:
    """Score the model on samples [start, start + tokens // sequence_len) of a stream.

    Sums are kept in fp64. With n ranks each one takes every n-th batch, and all get the result.

    Args:
        token_bytes: bytes of each id's raw token, 0 for specials; vocab_size of them.
        tokens: how many to read; a multiple of the model's sequence length.
        device_batch: samples per forward pass.
    Raises: ConfigError: tokens is not a positive multiple, token_bytes has a wrong
        length, or no target has any bytes.
    """
    length = model.config.sequence_len
    if tokens < length or tokens % length:
        raise ConfigError(
            f"{tokens} evaluation tokens are not whole samples of {length} tokens",
            f"use {max(length, tokens // length * length)}",
        )
    if len(token_bytes) != model.config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(token_bytes)} ids, but the model has {model.config.vocab_size}",
            "use the tokenizer with which the model was trained",
        )
    place = ranks or Ranks(0, 1, 0)
    sizes = torch.tensor(list(token_bytes), dtype=torch.int64, device=device)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # nats, targets, bytes
    stop = start + tokens // length
    was_training = model.training
    model.eval()
    for number, first in enumerate(range(start, stop, device_batch)):
        if number % place.ranks != place.rank:
            continue
        inputs, targets = stream.batch(first, min(first + device_batch, stop))
        wanted = torch.from_numpy(targets).to(device)
        losses = model(torch.from_numpy(inputs).to(device), wanted, "none").double()
        size = torch.where(wanted >= 0, sizes[wanted.clamp(min=0)], 0)
        counted = size > 0
        sums += torch.stack([losses[counted].sum(), counted.sum().double(), size.sum().double()])
    model.train(was_training)
    nats, count, size_in_all = sum_over_ranks(sums).tolist()
    if not size_in_all:
        raise ConfigError("no target of the evaluation has any bytes", "check the tokenizer's byte counts")
    return BpbResult(nats / (math.log(2) * size_in_all), nats / count, int(count), int(size_in_all))
