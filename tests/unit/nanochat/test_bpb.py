"""Bits per byte against a slow and plain computation."""

import math

import numpy as np
import pytest
import torch

from curtail.errors import ConfigError
from nanochat.bpb import bits_per_byte
from nanochat.distributed import Ranks
from nanochat.gpt import GPT
from nanochat.presets import GPTConfig

TINY = GPTConfig(16, 64, 1, 2, 2, 32)
CPU = torch.device("cpu")
BYTES = [1 + i % 5 for i in range(60)] + [0] * 4  # the last four ids are specials


class Stream:
    def batch(self, start, stop):
        rows = np.stack([np.random.default_rng(i).integers(0, 64, 17) for i in range(start, stop)])
        return rows[:, :-1].copy(), rows[:, 1:].copy()


def built():
    model = GPT(TINY)
    model.init_weights(0)
    with torch.no_grad():
        model.lm_head.weight.mul_(300)  # predictions that differ from token to token
    return model


def score(model, **settings):
    settings = {"tokens": 160, "device": CPU} | settings
    return bits_per_byte(model, Stream(), settings.pop("token_bytes", BYTES), **settings)


def test_the_score_equals_a_sum_token_by_token():
    model = built()
    nats = count = size = 0
    for sample in range(3, 13):
        inputs, targets = Stream().batch(sample, sample + 1)
        logits = model(torch.from_numpy(inputs)).double()
        for place, target in enumerate(targets[0]):
            if BYTES[target]:
                nats -= logits[0, place].log_softmax(dim=0)[target].item()
                count += 1
                size += BYTES[target]
    result = score(model, start=3)
    assert (result.tokens, result.bytes) == (count, size)
    assert count < 160
    assert result.bpb == pytest.approx(nats / math.log(2) / size, rel=1e-6)
    assert result.loss == pytest.approx(nats / count, rel=1e-6)


@pytest.mark.parametrize("device_batch", [1, 3, 100])
def test_the_batch_size_does_not_change_what_is_scored(device_batch):
    model = built()
    one, other = score(model), score(model, device_batch=device_batch)
    assert (one.tokens, one.bytes) == (other.tokens, other.bytes)
    assert one.bpb == pytest.approx(other.bpb, rel=1e-6)


def test_ranks_share_the_batches_between_them():
    model = built()
    whole = score(model, device_batch=3)
    parts = [score(model, device_batch=3, ranks=Ranks(r, 2, r)) for r in range(2)]
    assert sum(part.tokens for part in parts) == whole.tokens
    assert sum(part.bytes for part in parts) == whole.bytes


def test_scoring_changes_neither_mode_nor_gradients():
    model = built().train()
    score(model)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("tokens", [0, 15, 17, -16])
def test_tokens_that_make_no_whole_samples_are_refused(tokens):
    with pytest.raises(ConfigError, match="use 16"):
        score(built(), tokens=tokens)


def test_a_foreign_tokenizer_is_refused():
    with pytest.raises(ConfigError, match="60 ids"):
        score(built(), token_bytes=BYTES[:60])


def test_text_without_bytes_is_refused():
    with pytest.raises(ConfigError, match="has any bytes"):
        score(built(), token_bytes=[0] * 64)
