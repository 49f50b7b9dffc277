"""Sampling: repeatable, bounded, and correct beyond the model's longest input."""

import pytest
import torch

from curtail.errors import ConfigError
from nanochat.engine import generate
from nanochat.gpt import GPT
from nanochat.presets import GPTConfig


def built():
    model = GPT(GPTConfig(8, 50, 1, 2, 2, 32))
    model.init_weights(0)
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
    return model


class Fixed(torch.nn.Module):
    """A model whose next token is the last one plus 1, nearly always."""

    def __init__(self, vocab=10, length=4):
        super().__init__()
        self.config = GPTConfig(length, vocab, 1, 1, 1, 2)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, idx):
        self.seen.append(idx.tolist()[0])
        return 12.0 * torch.nn.functional.one_hot((idx + 1) % self.config.vocab_size, self.config.vocab_size).float()


def test_one_seed_gives_one_continuation_and_another_seed_another():
    model = built()
    first, again, other = (list(generate(model, [1, 2], 20, temperature=5.0, seed=s)) for s in (1, 1, 2))
    assert first == again != other
    assert len(first) == 20
    assert all(0 <= token < 50 for token in first)


def test_temperature_zero_takes_the_likeliest_token():
    model = built()
    ids = [3]
    for token in generate(model, [3], 6, temperature=0):
        assert token == int(model(torch.tensor([ids]))[0, -1].argmax())
        ids.append(token)


def test_only_the_last_tokens_that_fit_are_seen():
    model = Fixed()
    assert list(generate(model, [0, 1, 2, 3, 4, 5], 3, temperature=0)) == [6, 7, 8]
    assert model.seen == [[2, 3, 4, 5], [3, 4, 5, 6], [4, 5, 6, 7]]


def test_a_context_longer_than_the_model_continues_as_its_end_does():
    model = built()
    prompt = list(range(20))
    whole = list(generate(model, prompt, 12, temperature=0))
    assert whole == list(generate(model, prompt[-8:], 12, temperature=0))


def test_a_bos_ends_the_text_and_is_not_given_out():
    assert list(generate(Fixed(), [5], 100, temperature=0, bos_id=9)) == [6, 7, 8]


def test_top_k_draws_among_the_likeliest_only():
    model = built()
    likeliest = set(model(torch.tensor([[7]]))[0, -1].topk(3).indices.tolist())
    drawn = {next(generate(model, [7], 1, temperature=20.0, top_k=3, seed=seed)) for seed in range(60)}
    assert drawn == likeliest
    assert next(generate(model, [7], 1, temperature=1.0, top_k=500)) < 50


def test_draws_follow_the_probabilities():
    model = built()
    probabilities = torch.softmax(model(torch.tensor([[7]]))[0, -1] / 10.0, dim=0)
    drawn = torch.tensor([next(generate(model, [7], 1, temperature=10.0, seed=seed)) for seed in range(400)])
    found = torch.bincount(drawn, minlength=50) / 400
    assert (found - probabilities).abs().max() < 0.08


@pytest.mark.parametrize(
    "wrong",
    [{"prompt_ids": []}, {"prompt_ids": [50]}, {"prompt_ids": [-1]}, {"temperature": -1.0}, {"top_k": 0}],
)
def test_impossible_requests_are_refused_at_the_call(wrong):
    with pytest.raises(ConfigError):
        generate(built(), **({"prompt_ids": [1], "max_tokens": 1} | wrong))


def test_no_tokens_are_given_when_none_are_asked_for():
    assert list(generate(built(), [1], 0)) == []
