"""Inner steps and the samples they use."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from curtail.errors import ConfigError
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig
from nanochat.schedule import Hyper, Schedule
from nanochat.train import StepBatches, inner_steps
from nanochat.weights import digest, from_model

TINY = GPTConfig(16, 64, 2, 2, 2, 32)
CPU = torch.device("cpu")
SCHEDULE = Schedule(token_budget=10**5, batch_tokens=128)


class Counting:
    """Sample i counts upwards from i: easy to learn, easy to recognise."""

    def __init__(self):
        self.asked = []

    def batch(self, start, stop):
        self.asked.append((start, stop))
        rows = (np.arange(start, stop)[:, None] * 7 + np.arange(17)) % 64
        return rows[:, :-1].copy(), rows[:, 1:].copy()


def built(seed=0, config=TINY):
    torch.set_num_threads(1)
    model = GPT(config)
    model.init_weights(seed)
    return model, MuonAdamW(model, config, 2**15)


def batches(stop=10**6, start=0, **settings):
    settings = {"batch_samples": 8, "device_batch": 8} | settings
    return StepBatches(Counting(), start=start, stop=stop, **settings)


def train(model, optimizer, source, steps=10**9, schedule=SCHEDULE, before=0, **more):
    return inner_steps(
        model,
        optimizer,
        schedule,
        source,
        tokens_before=before,
        tokens_per_step=128,
        until=lambda step: step >= steps,
        device=CPU,
        **more,
    )


def test_the_loss_falls_on_a_text_that_can_be_learned():
    report = train(*built(), batches(), steps=60)
    assert report.loss_first == pytest.approx(math.log(64), abs=0.05)
    assert report.loss_last < 0.5 * report.loss_first
    assert report.loss_last < report.loss_mean < report.loss_first
    assert (report.steps, report.samples, report.tokens) == (60, 480, 480 * 16)


def test_training_in_two_parts_with_saved_state_equals_training_in_one():
    model, optimizer = built()
    train(model, optimizer, batches(), steps=6)
    first, first_optimizer = built()
    train(first, first_optimizer, batches(), steps=3)
    second, second_optimizer = built(seed=5)
    second.load_state_dict(first.state_dict())
    second_optimizer.load_state_dict(first_optimizer.state_dict())
    train(second, second_optimizer, batches(start=24), steps=3, before=3 * 128)
    assert digest(from_model(second)) == digest(from_model(model))


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    # without lambdas: their first gradient is rounding alone, and AdamW makes a full step of it
    plain = replace(TINY, lambdas=False)
    (whole, a), (parts, b) = built(config=plain), built(config=plain)
    one = train(whole, a, batches(), steps=3)
    other = train(parts, b, batches(device_batch=3), steps=3)
    assert other.loss_mean == pytest.approx(one.loss_mean, rel=1e-5)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-4, rtol=1e-3)


def test_hyperparameters_follow_global_tokens():
    seen = []

    class Watched(Schedule):
        def at(self, tokens):
            seen.append(tokens)
            return SCHEDULE.at(tokens)

    train(*built(), batches(), steps=3, schedule=Watched(10**5, 128), before=1000)
    assert seen == [1000, 1128, 1256]


def test_no_step_is_made_after_until_says_so_and_the_report_says_nothing_of_loss():
    model, optimizer = built()
    before = digest(from_model(model))
    report = train(model, optimizer, batches(), steps=0)
    assert (report.steps, report.tokens, report.loss_first, report.loss_mean) == (0, 0, None, None)
    assert digest(from_model(model)) == before


def test_training_ends_with_the_samples():
    assert train(*built(), batches(stop=31)).steps == 3


def test_every_step_is_told_with_its_loss_and_global_tokens():
    told = []
    report = train(*built(), batches(), steps=2, before=50, on_step=lambda *facts: told.append(facts))
    assert [(step, tokens) for step, _, tokens in told] == [(0, 178), (1, 306)]
    assert [loss for _, loss, _ in told] == [report.loss_first, report.loss_last]


def test_stopping_early_ends_the_reading_thread():
    train(*built(), batches(), steps=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_the_ranks_slices_of_a_step_make_up_its_samples():
    parts = [batches(start=100, batch_samples=12, device_batch=4, rank=r, ranks=3) for r in range(3)]
    for part in parts:
        part.step(2)
    asked = [pair for part in parts for pair in part.stream.asked]
    assert asked == [(124, 128), (128, 132), (132, 136)]


def test_a_slice_is_cut_into_micro_batches_of_at_most_the_device_batch():
    source = batches(stop=10, batch_samples=10, device_batch=4)
    assert [len(inputs) for inputs, _ in source.step(0)] == [4, 4, 2]
    assert source.steps == 1


@pytest.mark.parametrize("prefetch", [True, False])
def test_prefetching_changes_no_batch(prefetch):
    source = batches(stop=40, start=3, prefetch=prefetch)
    found = [inputs for step in source for inputs, _ in step]
    expected, _ = Counting().batch(3, 35)
    assert np.array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_range_shorter_than_a_step_has_no_steps(prefetch):
    assert list(batches(stop=7, prefetch=prefetch)) == []


def test_an_error_of_the_stream_reaches_the_caller():
    class Broken:
        def batch(self, start, stop):
            raise ConfigError("no data")

    with pytest.raises(ConfigError, match="no data"):
        list(StepBatches(Broken(), start=0, stop=8, batch_samples=8, device_batch=8))


def test_a_batch_that_does_not_split_over_the_ranks_is_refused_with_one_that_does():
    with pytest.raises(ConfigError, match="use a batch of 12"):
        batches(batch_samples=10, ranks=4)


NANOCHAT_LOSSES = [4.717464, 3.548964, 3.331767, 3.219764, 3.129002, 3.063415, 3.015353, 2.972667]


def test_the_first_losses_are_those_of_nanochat():
    """Losses of nanochat's own model and optimizers (commit 21608ec, all in fp32), same weights and inputs."""
    torch.set_num_threads(1)
    config = GPTConfig(32, 100, 2, 4, 2, 32)
    model = GPT(config)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            wave = 0.1 * torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) ** 1.5 + number)
            parameter.copy_(wave.view(parameter.shape) + (name == "resid_lambdas"))
    optimizer = MuonAdamW(model, config, 4 * 32 * 64)  # as if the batch were 64 times larger
    losses = []
    for step in range(8):
        rows = ((torch.arange(4 * 33) + step) ** 2 % 97).view(4, 33)
        loss = model(rows[:, :-1], rows[:, 1:])
        losses.append(loss.item())
        loss.backward()
        optimizer.step(Hyper(1 - step / 20, 0.85 + step * 0.005, 0.5 * (1 - step / 20)))
        optimizer.zero_grad()
    assert losses == pytest.approx(NANOCHAT_LOSSES, abs=1e-4)
