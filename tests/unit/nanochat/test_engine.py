"""Sampling: repeatable, bounded, correct beyond the model's longest input, and the same with a cache as without."""

from dataclasses import replace

import pytest
import torch

from curtail.errors import ConfigError
from nanochat.engine import Context, first_seen, generate
from nanochat.gpt import GPT, Cache
from nanochat.presets import GPTConfig, config_for


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

    def forward(self, idx, cache):
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


PLAIN = GPTConfig(24, 50, 5, 4, 2, 32)
WINDOWS = replace(PLAIN, window_pattern="SSL", short_window=5)
FULL = replace(WINDOWS, value_embeds=True, smear=True, backout=True, qk_scale=1.2, rope_base=100000.0)
KINDS = {"plain": PLAIN, "windows": WINDOWS, "all features": FULL, "launch": replace(PLAIN, lambdas=False)}


def shaken(config, seed=0):
    """A model in which every weight matters: initial projections and gates are zero."""
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.15)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_logits_with_a_cache_are_those_without_also_past_the_longest_input(kind):
    model = shaken(KINDS[kind])
    context = Context(model, [7, 3, 11])
    for number in range(70):
        length = len(context.ids)
        found = context.logits()
        with torch.no_grad():
            whole = model(torch.tensor([context.ids[first_seen(length, 24) :]]))[0, -1]
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)
        context.ids.append((5 * number + int(found.argmax())) % 50)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [(24,), (1,) * 24, (7, 1, 9, 1, 6), (2, 22)])
def test_a_cache_may_be_filled_in_pieces_and_for_several_texts_at_once(kind, cuts):
    model = shaken(KINDS[kind])
    ids = torch.randint(0, 50, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(ids)
        cache, read = Cache(model.config), 0
        for cut in cuts:
            found = model(ids[:, read : read + cut], cache=cache)
            read += cut
            assert cache.length == read
            torch.testing.assert_close(found, whole[:, read - 1 : read], atol=1e-5, rtol=0)


def test_a_full_cache_takes_no_more():
    model = shaken(PLAIN)
    with torch.no_grad(), pytest.raises(AssertionError, match="25 tokens exceed 24"):
        cache = Cache(model.config)
        model(torch.zeros(1, 24, dtype=torch.int64), cache=cache)
        model(torch.zeros(1, 1, dtype=torch.int64), cache=cache)


def test_a_token_is_read_once_while_the_text_fits():
    read = []

    class Watched(GPT):
        def forward(self, idx, *more, **others):
            read.append(idx.size(1))
            return super().forward(idx, *more, **others)

    model = Watched(config_for("ve", 2, 64, 16))
    model.init_weights(0)
    assert len(list(generate(model, [1, 2, 3, 4], 21, temperature=0))) == 21
    # 16 fit; then 4 are forgotten at a time, and the 13 that remain with the new one are read again
    assert read == [4, *[1] * 12, 13, *[1] * 3, 13, *[1] * 3]


@pytest.mark.parametrize("sequence_len", [1, 2, 3, 4, 8, 30, 2048])
def test_at_most_a_quarter_is_forgotten_and_never_too_little(sequence_len):
    firsts = [first_seen(length, sequence_len) for length in range(3 * sequence_len + 2)]
    assert firsts == sorted(firsts)
    for length, first in enumerate(firsts):
        assert length - first <= sequence_len
        assert first == 0 if length <= sequence_len else length - first > sequence_len - max(1, sequence_len // 4)


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_the_text_is_the_one_that_passes_without_a_cache_give(temperature):
    model = shaken(FULL)
    generator = torch.Generator().manual_seed(4)
    ids = [9, 8, 7]
    expected = []
    for _ in range(50):
        with torch.no_grad():
            logits = model(torch.tensor([ids[first_seen(len(ids), 24) :]]))[0, -1]
        if temperature:
            logits = logits.topk(20)
            chosen = torch.multinomial(torch.softmax(logits.values / temperature, 0), 1, generator=generator)
            expected.append(int(logits.indices[chosen]))
        else:
            expected.append(int(logits.argmax()))
        ids.append(expected[-1])
    assert list(generate(model, [9, 8, 7], 50, temperature, top_k=20, seed=4)) == expected
