"""The parts of the model that only some presets have: value embeddings, smear, backout, windows, scales, profiles."""

import json
from dataclasses import replace

import pytest
import torch

from curtail.errors import ConfigError
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import (
    FAMILIES,
    GPTConfig,
    config_for,
    flops_per_token,
    from_json,
    group_counts,
    parameter_count,
    preset,
    rounded_window,
    to_dict,
    to_json,
    weight_shapes,
)
from nanochat.schedule import Hyper

PLAIN = GPTConfig(16, 100, 3, 4, 2, 48)
FULL = replace(
    PLAIN, window_pattern="SSL", short_window=4, qk_scale=1.2, value_embeds=True, smear=True, backout=True,
    init_profile="2026-03",
)  # fmt: skip
STEADY = Hyper(lr_scale=1.0, muon_momentum=0.9, weight_decay=0.0)


def built(config, seed=1, shake=0.0):
    model = GPT(config)
    model.init_weights(seed)
    if shake:  # zero projections hide most of the network
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=shake)
    return model


def ids(*shape, seed=0, vocab=100):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


# -- counts ----------------------------------------------------------------

GROUPS = {
    "d20-launch": (83_886_080, 83_886_080, 393_216_000, 0, 0),
    "d20-561m": (83_886_080, 83_886_080, 393_216_000, 0, 40),
    "d20-ve": (41_943_040, 41_943_040, 393_217_200, 419_430_400, 66),
}
TOTALS = {"d20-launch": 560_988_160, "d20-561m": 560_988_200, "d20-ve": 896_533_746}


@pytest.mark.parametrize("name", GROUPS)
def test_the_groups_of_parameters_have_their_published_sizes(name):
    assert tuple(group_counts(preset(name)).values()) == GROUPS[name]
    assert list(group_counts(preset(name))) == ["wte", "lm_head", "matrices", "value_embeds", "scalars"]
    assert parameter_count(preset(name)) == sum(GROUPS[name]) == TOTALS[name]


def test_the_groups_of_a_built_model_are_the_same():
    with torch.device("meta"):
        model = GPT(preset("d20-ve"))
    assert sum(p.numel() for p in model.transformer["h"].parameters()) == 393_217_200
    assert sum(p.numel() for p in model.value_embeds.parameters()) == 419_430_400
    assert sum(p.numel() for p in model.parameters()) == 896_533_746


@pytest.mark.parametrize("depth", [1, 2, 7, 20, 26])
@pytest.mark.parametrize("family", FAMILIES)
def test_counts_follow_the_formula_at_every_depth(family, depth):
    config = config_for(family, depth, 32768, 2048)
    width, embeds = config.n_embd, (depth + 1) // 2 if family == "ve" else 0
    expected = 12 * depth * width**2 + 2 * 32768 * width + (0 if family == "launch" else 2 * depth)
    expected += embeds * (32768 * width + config.n_kv_head * 12) + (26 if family == "ve" else 0)
    assert parameter_count(config) == expected
    with torch.device("meta"):
        state = GPT(config).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == weight_shapes(config)


def test_work_per_token_of_the_model_with_value_embeddings():
    assert flops_per_token(preset("d20-ve")) == 2_886_212_784


def test_it_has_147_tensors_in_nanochat_naming():
    names = set(weight_shapes(preset("d20-ve")))
    assert len(names) == 147
    added = names - set(weight_shapes(preset("d20-561m")))
    layers = range(1, 20, 2)
    assert added == {
        *(f"value_embeds.{layer}.weight" for layer in layers),
        *(f"transformer.h.{layer}.attn.ve_gate.weight" for layer in layers),
        "smear_gate.weight", "smear_lambda", "backout_lambda",
    }  # fmt: skip


# -- configurations --------------------------------------------------------


def test_named_models_are_their_families_at_their_depth():
    assert config_for("lambdas", 20, 65536, 2048) == preset("d20-561m")
    assert config_for("launch", 20, 65536, 2048) == preset("d20-launch")
    assert config_for("ve", 20, 32768, 2048) == preset("d20-ve")
    assert config_for("lambdas", 4, 4096, 128) == preset("d4-test")
    assert config_for("lambdas", 2, 512, 64) == preset("d2-test")


def test_an_odd_depth_gets_whole_heads_of_128():
    config = config_for("ve", 13, 32768, 2048)
    assert (config.n_embd, config.n_head, config.n_kv_head, config.head_dim) == (896, 7, 7, 128)


@pytest.mark.parametrize(("family", "depth"), [("best", 4), ("ve", 0), ("lambdas", -1)])
def test_an_impossible_family_or_depth_is_refused(family, depth):
    with pytest.raises(ConfigError):
        config_for(family, depth, 512, 64)


@pytest.mark.parametrize(("length", "window"), [(2048, 512), (2049, 640), (512, 128), (100, 128), (4096, 1024)])
def test_short_windows_are_a_quarter_in_whole_tiles(length, window):
    assert rounded_window(length, 4) == window == config_for("ve", 4, 512, length).short_window


def test_windows_never_exceed_the_input_and_the_default_is_half():
    assert config_for("ve", 5, 512, 1024).windows() == (256, 256, 256, 1024, 1024)
    assert config_for("ve", 4, 512, 100).windows() == (100, 100, 100, 100)
    assert replace(PLAIN, window_pattern="S").windows() == (8, 8, 16)


@pytest.mark.parametrize("layers", range(1, 6))
def test_every_other_layer_has_a_value_embedding_and_the_last_one_always(layers):
    config = replace(FULL, n_layer=layers)
    assert config.value_embed_layers() == tuple(i for i in range(layers) if i % 2 == (layers - 1) % 2)
    assert replace(config, value_embeds=False).value_embed_layers() == ()


OLD = (
    '{"lambdas": true, "n_embd": 128, "n_head": 1, "n_kv_head": 1, "n_layer": 2, "rope_base": 10000.0,'
    ' "sequence_len": 64, "softcap": 15.0, "vocab_size": 512, "window_pattern": "L"}'
)


def test_a_configuration_stored_before_the_features_is_still_the_same():
    assert from_json(OLD) == preset("d2-test")
    assert to_json(preset("d2-test")) == OLD


def test_a_feature_is_stored_where_it_is_used():
    assert from_json(to_json(FULL)) == FULL
    assert set(to_dict(FULL)) - set(json.loads(OLD)) == {
        "short_window", "qk_scale", "value_embeds", "smear", "backout", "init_profile",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="lacks 'softcap'"):
        from_json(OLD.replace('"softcap": 15.0, ', ""))


@pytest.mark.parametrize(
    "wrong",
    [
        {"short_window": -1},
        {"qk_scale": 0.0},
        {"ve_gate_scale": float("nan")},
        {"value_embeds": True, "ve_gate_channels": 49},
        {"value_embeds": True, "ve_gate_channels": 0},
        {"smear": True, "n_embd": 16},
        {"init_profile": "2025"},
    ],
)
def test_impossible_features_are_refused(wrong):
    with pytest.raises(ConfigError):
        replace(PLAIN, **wrong)


# -- the network -----------------------------------------------------------


def test_initial_weights_of_the_later_profile():
    config = replace(config_for("ve", 4, 4096, 128), n_head=2, n_kv_head=2)
    state = built(config).state_dict()
    bound = (3 / 256) ** 0.5
    assert state["transformer.wte.weight"].std().item() == pytest.approx(0.8, rel=0.02)
    assert state["transformer.h.2.mlp.c_fc.weight"].abs().max().item() == pytest.approx(0.4 * bound, rel=0.01)
    assert state["transformer.h.2.attn.c_v.weight"].abs().max().item() == pytest.approx(bound, rel=0.01)
    assert state["value_embeds.3.weight"].abs().max().item() == pytest.approx(bound, rel=0.01)
    assert state["resid_lambdas"].tolist() == pytest.approx([1.15, 1.15 - 0.1 / 3, 1.15 - 0.2 / 3, 1.05])
    assert state["x0_lambdas"].tolist() == pytest.approx([0.2, 0.15, 0.1, 0.05])
    for name in ("smear_gate.weight", "transformer.h.1.attn.ve_gate.weight"):
        assert state[name].min() >= 0 and 0.01 < state[name].max() <= 0.02
    assert (state["smear_lambda"].item(), state["backout_lambda"].item()) == (0, pytest.approx(0.2))
    assert not state["transformer.h.1.attn.c_proj.weight"].any()


def test_gates_of_the_earlier_profile_begin_in_the_middle():
    state = built(replace(PLAIN, value_embeds=True)).state_dict()
    assert not state["transformer.h.0.attn.ve_gate.weight"].any()
    assert state["value_embeds.2.weight"].any()


def test_a_feature_leaves_the_initial_weights_of_the_others_alone():
    plain, more = (
        built(PLAIN).state_dict(),
        built(replace(PLAIN, backout=True, qk_scale=2.0, softcap=20.0)).state_dict(),
    )
    assert all(torch.equal(plain[name], more[name]) for name in plain)


def test_a_token_changes_no_logit_before_it():
    model = built(FULL, shake=0.2)
    before = ids(2, 16)
    after = before.clone()
    after[:, 9] = (after[:, 9] + 1) % 100
    with torch.no_grad():
        a, b = model(before), model(after)
    torch.testing.assert_close(a[:, :9], b[:, :9])
    assert (a[:, 9:] - b[:, 9:]).abs().amax(dim=-1).min() > 1e-6


def test_smear_mixes_in_the_unchanged_token_before():
    model = built(FULL, shake=0.2)
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    gate = model.smear_lambda * torch.sigmoid(x[..., :24] @ model.smear_gate.weight.T)
    expected = torch.stack([x[:, 0]] + [x[:, t] + gate[:, t] * x[:, t - 1] for t in range(1, 5)], dim=1)
    torch.testing.assert_close(model._smeared(x, None), expected)
    torch.testing.assert_close(model._smeared(x[:, 3:], x[:, 2:3]), expected[:, 3:])
    torch.testing.assert_close(model._smeared(x[:, :1], None), x[:, :1])


def test_features_that_are_switched_off_by_their_weights_change_nothing():
    """With scales at zero and values of zero the full model is the plain one of the same windows."""
    full = built(replace(FULL, qk_scale=1.0), shake=0.2)
    plain = GPT(replace(PLAIN, window_pattern="SSL", short_window=4))
    with torch.no_grad():
        full.smear_lambda.zero_()
        full.backout_lambda.zero_()
        for table in full.value_embeds.values():
            table.weight.zero_()
    plain.load_state_dict({name: value for name, value in full.state_dict().items() if name in plain.state_dict()})
    with torch.no_grad():
        torch.testing.assert_close(full(ids(2, 16)), plain(ids(2, 16)))


@pytest.mark.parametrize(
    "change",
    [
        {"smear": False},
        {"backout": False},
        {"value_embeds": False},
        {"qk_scale": 1.0},
        {"short_window": 3},
        {"rope_base": 100000.0},
        {"softcap": 20.0},
        {"ve_gate_scale": 2.0},
    ],
)
def test_every_feature_has_an_effect(change):
    full = built(FULL, shake=0.2)
    other = GPT(replace(FULL, **change))
    other.load_state_dict({name: value for name, value in full.state_dict().items() if name in other.state_dict()})
    with torch.no_grad():
        assert (full(ids(2, 16)) - other(ids(2, 16))).abs().max() > 1e-3


def test_the_scale_of_queries_and_keys_is_as_if_they_were_multiplied():
    attention = built(FULL, shake=0.2).transformer["h"][2].attn
    assert attention.scale == pytest.approx(1.2 * 1.2 / 12**0.5)
    assert built(PLAIN).transformer["h"][2].attn.scale is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_gets_a_gradient_in_fp32(dtype):
    model = GPT(FULL, dtype)
    model.load_state_dict(built(FULL, shake=0.2).state_dict())
    loss = model(ids(2, 16), ids(2, 16, seed=1))
    loss.backward()
    assert loss.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
        assert parameter.grad.any(), name


# -- the optimizer ---------------------------------------------------------


def give_gradients(model, seed):
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_new_parts_follow_torch_adamw_with_nanochats_settings():
    """At a quarter of the reference batch: value embeddings at half the rate, smear and backout at their own."""
    model = built(FULL)
    optimizer = MuonAdamW(model, FULL, 2**17)
    live = dict(model.named_parameters())
    value = {"lr": 0.15 * (48 / 768) ** -0.5 * 0.5, "betas": (0.8, 0.995), "weight_decay": 0.01}
    small = {"lr": 0.2, "betas": (0.8, 0.95), "weight_decay": 0.0}
    settings = {name: value for name in live if name.startswith("value_embeds.")}
    settings |= dict.fromkeys(("smear_gate.weight", "smear_lambda", "backout_lambda"), small)
    assert len(settings) == 5
    copies = {name: live[name].detach().clone().requires_grad_() for name in settings}
    groups = [{"params": [copies[name]], **given} for name, given in settings.items()]
    reference = torch.optim.AdamW(groups, eps=1e-10)
    for step in range(4):
        give_gradients(model, step)
        for name, copy in copies.items():
            copy.grad = live[name].grad.clone()
        optimizer.step(STEADY)
        reference.step()
    for name, copy in copies.items():
        torch.testing.assert_close(live[name], copy, msg=name)


def test_gates_are_matrices_and_the_state_has_every_name():
    model = built(FULL)
    state = MuonAdamW(model, FULL, 2**19).state_dict()
    assert "muon.momentum.transformer.h.2.attn.ve_gate.weight" in state
    assert "adamw.mean.value_embeds.2.weight" in state
    assert {name.split(".", 2)[2] for name in state if name != "step"} == set(model.state_dict())


def test_the_full_model_learns():
    model = built(FULL)
    optimizer = MuonAdamW(model, FULL, 2**15)
    rows = (torch.arange(8)[:, None] * 7 + torch.arange(17)) % 64
    losses = []
    for _ in range(25):
        loss = model(rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizer.step(STEADY)
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
