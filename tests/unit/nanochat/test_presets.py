"""Parameter counts, work per token and the JSON form of model configurations."""

import json

import pytest
import torch

from curtail.errors import ConfigError
from nanochat.gpt import GPT
from nanochat.presets import (
    PRESETS,
    GPTConfig,
    flops_per_token,
    from_json,
    parameter_count,
    preset,
    to_json,
    weight_shapes,
)

COUNTS = {"d20-561m": 560_988_200, "d20-launch": 560_988_160, "d2-test": 524_292, "d4-test": 5_242_888}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_named_models_have_their_published_number_of_parameters(name, count):
    config = preset(name)
    formula = 12 * config.n_layer * config.n_embd**2 + 2 * config.vocab_size * config.n_embd
    assert parameter_count(config) == count == formula + 2 * config.n_layer * config.lambdas


@pytest.mark.parametrize("name", PRESETS)
def test_the_built_model_has_exactly_the_declared_weights(name):
    with torch.device("meta"):
        model = GPT(preset(name))
    state = model.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == weight_shapes(preset(name))
    assert sum(p.numel() for p in model.parameters()) == parameter_count(preset(name))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_d20_model_has_124_tensors_in_nanochat_naming():
    names = list(weight_shapes(preset("d20-561m")))
    assert len(names) == 124
    assert {"resid_lambdas", "x0_lambdas", "lm_head.weight", "transformer.wte.weight"} < set(names)
    assert {"transformer.h.19.attn.c_q.weight", "transformer.h.0.mlp.c_proj.weight"} < set(names)
    assert names == sorted(names)


def test_work_per_token_follows_the_published_formula():
    assert flops_per_token(preset("d20-561m")) == 3_491_758_080


def test_short_windows_cost_less_and_the_last_layer_sees_all():
    config = GPTConfig(64, 512, 5, 2, 2, 64, window_pattern="SSSL")
    assert config.windows() == (32, 32, 32, 64, 64)
    assert flops_per_token(config) < flops_per_token(GPTConfig(64, 512, 5, 2, 2, 64))


def test_the_vocabulary_is_padded_to_a_multiple_of_64():
    assert weight_shapes(GPTConfig(64, 513, 1, 1, 1, 64))["lm_head.weight"] == (576, 64)


def test_an_unknown_preset_is_refused_with_the_known_names():
    with pytest.raises(ConfigError, match="d20-561m"):
        preset("d21")


@pytest.mark.parametrize("name", PRESETS)
def test_json_brings_back_the_same_configuration(name):
    assert from_json(to_json(preset(name))) == preset(name)


def broken(**changes):
    values = json.loads(to_json(preset("d2-test"))) | changes
    return json.dumps({key: value for key, value in values.items() if value is not None})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        broken(n_layer=None),
        broken(extra=1),
        broken(n_layer=2.0),
        broken(n_layer=True),
        broken(lambdas=1),
        broken(window_pattern="X"),
        broken(n_head=3),
        broken(n_kv_head=0),
        broken(softcap=float("nan")),
    ],
)
def test_a_damaged_configuration_is_refused(text):
    with pytest.raises(ConfigError):
        from_json(text)


def test_a_number_without_a_fraction_is_a_float_too():
    assert from_json(broken(softcap=15)).softcap == 15.0
