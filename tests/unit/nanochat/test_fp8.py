"""Products in 8-bit floats: rounding, gradients, which matrices take part, and where it is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from curtail.errors import ConfigError
from nanochat import fp8
from nanochat.acceleration import accelerate
from nanochat.gpt import GPT
from nanochat.presets import GPTConfig, preset

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WIDE = GPTConfig(32, 128, 2, 2, 2, 128)


def drawn(*shape, seed=0, spread=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


def share(found, expected):
    """Distance as a share of the norm."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float8_e4m3fn, 448), (torch.float8_e5m2, 57344)])
@pytest.mark.parametrize("spread", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_the_largest_value_becomes_the_largest_there_is(dtype, most, spread):
    x = drawn(64, 64, spread=spread)
    values, scale = fp8.quantised(x, dtype)
    assert values.dtype == dtype and scale.dtype == torch.float32 and scale.shape == ()
    assert values.float().abs().max() == most
    back = values.float() * scale
    bits = 3 if dtype == torch.float8_e4m3fn else 2
    assert share(back, x) < 2.0**-bits / 3
    # a normal number is rounded by at most half a unit of its last place
    large = x.abs() > x.abs().max() / 2**5
    assert ((back - x).abs() / x.abs())[large].max() <= 2.0 ** -(bits + 1) * 1.001


def test_zeros_stay_zeros_and_what_is_not_finite_is_seen():
    values, scale = fp8.quantised(torch.zeros(16, 16), fp8.FORWARD)
    assert not values.float().any() and scale.isfinite()
    for bad in (float("nan"), float("inf")):
        x = torch.ones(4, 4)
        x[1, 2] = bad
        values, scale = fp8.quantised(x, fp8.FORWARD)
        assert (values.float() * scale).isnan().any()


def test_half_precision_is_scaled_in_full_precision():
    x = drawn(32, 32).bfloat16()
    values, scale = fp8.quantised(x, fp8.FORWARD)
    wide, wide_scale = fp8.quantised(x.float(), fp8.FORWARD)
    assert torch.equal(values.float(), wide.float()) and torch.equal(scale, wide_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_product_and_gradients_are_near_the_exact_ones(dtype):
    x = drawn(2, 16, 128).to(dtype).requires_grad_()
    weight = drawn(256, 128, seed=1, spread=128**-0.5).requires_grad_()
    push = drawn(2, 16, 256, seed=2).to(dtype)
    y = fp8.linear(x, weight)
    y.backward(push)
    exact_x, exact_weight = x.detach().float().requires_grad_(), weight.detach().clone().requires_grad_()
    exact = F.linear(exact_x, exact_weight)
    exact.backward(push.float())
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (dtype, dtype, torch.float32)
    assert y.shape == exact.shape
    assert 0 < share(y, exact) < 0.06  # two factors of three bits
    assert 0 < share(x.grad, exact_x.grad) < 0.1  # one of two bits, one of three
    assert 0 < share(weight.grad, exact_weight.grad) < 0.1


def test_exact_values_give_exact_products():
    x, weight = torch.eye(16).repeat(1, 8), torch.ones(128, 128)
    torch.testing.assert_close(fp8.linear(x, weight), x @ weight.T)


def test_only_large_matrices_of_blocks_take_part():
    assert fp8.takes_part("transformer.h.0.attn.c_q.weight", (1280, 1280))
    assert fp8.takes_part("transformer.h.19.mlp.c_fc", (5120, 1280))
    assert not fp8.takes_part("lm_head.weight", (65536, 1280))
    assert not fp8.takes_part("transformer.h.0.attn.ve_gate", (10, 12))
    assert not fp8.takes_part("transformer.h.0.mlp.c_fc", (256, 64))
    assert not fp8.takes_part("transformer.h.0.mlp.c_fc", (1288, 1288))
    assert fp8.enable(GPT(preset("d2-test"))) == 12


def test_a_step_in_fp8_is_near_one_without(monkeypatch):
    models = [GPT(WIDE, torch.bfloat16), GPT(WIDE, torch.bfloat16)]
    for model in models:
        model.init_weights(1)
    assert fp8.enable(models[1]) == 12
    ids = torch.randint(0, 128, (2, 33), generator=torch.Generator().manual_seed(0))
    for _ in range(6):
        losses = [model(ids[:, :-1], ids[:, 1:]) for model in models]
        for model, loss in zip(models, losses, strict=True):
            loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.05 * parameter.grad
                    parameter.grad = None
    assert losses[0] < 4.5 and losses[1].item() == pytest.approx(losses[0].item(), abs=0.1)
    assert losses[1] != losses[0]
    # scores and samples are made without it
    model = models[1].eval()
    monkeypatch.setattr(fp8, "linear", lambda *_: pytest.fail("fp8 outside of training"))
    model(ids[:, :-1])


def test_a_model_in_fp8_can_be_traced():
    model = GPT(WIDE, torch.bfloat16)
    model.init_weights(1)
    fp8.enable(model)
    ids = torch.arange(32)[None]
    traced = torch.compile(model, dynamic=False, backend="aot_eager", fullgraph=True)
    loss = traced(ids, ids)
    loss.backward()
    assert loss.item() == pytest.approx(model(ids, ids).item(), abs=0.01)
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "device", "capability", "says"),
    [
        (WIDE, CPU, None, r"a CUDA device \(Hopper or later\), this is cpu"),
        (WIDE, CUDA, (8, 0), r"capability 9.0 \(Hopper\), this device has 8.0"),
        (replace(WIDE, sequence_len=40), CUDA, (9, 0), "multiple of 16 tokens, not 40"),
        (GPTConfig(32, 128, 2, 2, 2, 120), CUDA, (9, 0), "at width 120 there are none"),
    ],
)
def test_fp8_is_refused_where_it_cannot_be(config, device, capability, says):
    with pytest.raises(ConfigError, match=says):
        fp8.check_fp8(config, device, capability)


@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (12, 0)])
def test_fp8_is_allowed_from_hopper_on(capability):
    fp8.check_fp8(WIDE, CUDA, capability)


def test_fp8_on_a_cpu_is_an_error_before_anything_is_set():
    model = GPT(WIDE)
    with pytest.raises(ConfigError, match="Hopper"):
        accelerate(model, CPU, fp8=True)
    assert not any(getattr(module, "fp8", False) for module in model.modules())
