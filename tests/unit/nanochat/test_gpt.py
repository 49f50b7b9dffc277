"""The network: initial weights, causality, loss, and the blockwise gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from nanochat.attention import norm, rotary_tables, rotate
from nanochat.gpt import GPT
from nanochat.loss import cross_entropy, softcapped_logits
from nanochat.presets import GPTConfig, preset

TINY = GPTConfig(16, 100, 2, 4, 2, 32)


def built(config=TINY, seed=1, spread=0.0):
    model = GPT(config)
    model.init_weights(seed)
    if spread:  # all-zero projections hide most of the network
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=spread)
    return model


def ids(*shape, seed=0, vocab=100):
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(seed))


def test_the_initial_loss_is_that_of_a_uniform_guess():
    model = built(preset("d2-test"))
    loss = model(ids(4, 64, vocab=512), ids(4, 64, seed=1, vocab=512))
    assert loss.item() == pytest.approx(math.log(512), abs=0.01)


def test_one_seed_gives_one_set_of_weights():
    first, again, other = (built(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_initial_weights_have_the_declared_distributions():
    state = built(GPTConfig(16, 512, 2, 2, 2, 128)).state_dict()
    assert state["transformer.wte.weight"].std().item() == pytest.approx(1.0, rel=0.02)
    assert state["lm_head.weight"].std().item() == pytest.approx(0.001, rel=0.02)
    query = state["transformer.h.1.attn.c_q.weight"]
    assert query.std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert query.abs().max().item() <= (3 / 128) ** 0.5
    assert not state["transformer.h.1.attn.c_proj.weight"].any()
    assert not state["transformer.h.0.mlp.c_proj.weight"].any()
    assert state["resid_lambdas"].tolist() == [1, 1]
    assert state["x0_lambdas"].tolist() == [0, 0]


@pytest.mark.parametrize("pattern", ["L", "SL"])
def test_a_token_changes_no_logit_before_it(pattern):
    model = built(GPTConfig(16, 100, 2, 4, 2, 32, window_pattern=pattern), spread=0.3)
    before = ids(2, 16)
    after = before.clone()
    after[:, 9] = (after[:, 9] + 1) % 100
    with torch.no_grad():
        a, b = model(before), model(after)
    torch.testing.assert_close(a[:, :9], b[:, :9])
    assert (a[:, 9:] - b[:, 9:]).abs().amax(dim=-1).min() > 1e-6


def test_a_short_window_hides_what_lies_further_back():
    config = GPTConfig(16, 100, 2, 2, 2, 32, window_pattern="S")
    attention = built(config, spread=0.3).transformer["h"][0].attn
    cos, sin = rotary_tables(16, 16, 10000.0, torch.float32)
    x = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 0] += 1.0
    with torch.no_grad():
        difference = (attention(x, cos, sin) - attention(changed, cos, sin)).abs().amax(dim=-1)[0]
    assert (difference[:9] > 1e-6).all()  # window 8: token 8 still sees token 0
    assert (difference[9:] < 1e-6).all()


def test_attention_equals_the_written_out_formula():
    model = built(spread=0.3)
    attention = model.transformer["h"][0].attn
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    q, k, v = ((attention.get_submodule(c)(x)).view(2, 16, -1, 8) for c in ("c_q", "c_k", "c_v"))

    def turned(z):  # as complex numbers: multiply by e^(-i angle)
        angle = torch.outer(torch.arange(16.0), 10000.0 ** -(torch.arange(0, 8, 2) / 8))[:, None]
        y = torch.complex(z[..., :4], z[..., 4:]) * torch.exp(-1j * angle)
        return norm(torch.cat((y.real, y.imag), dim=-1))

    q, k = turned(q), turned(k).repeat_interleave(2, dim=2)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5
    scores = scores.masked_fill(torch.ones(16, 16).tril() == 0, -math.inf).softmax(dim=-1)
    y = torch.einsum("bhts,bshd->bthd", scores, v.repeat_interleave(2, dim=2)).reshape(2, 16, 32)
    torch.testing.assert_close(attention(x, model.cos, model.sin), attention.c_proj(y), atol=1e-5, rtol=1e-4)


def test_rotation_depends_on_distance_only():
    cos, sin = rotary_tables(16, 8, 10000.0, torch.float64)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned_q = rotate(q.expand(1, 16, 1, 8), cos, sin)[0, :, 0]
    turned_k = rotate(k.expand(1, 16, 1, 8), cos, sin)[0, :, 0]
    products = turned_q @ turned_k.T
    for distance in range(16):
        diagonal = products.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-6, rtol=1e-6)


def test_logits_are_cut_to_the_vocabulary_and_bent_below_the_softcap():
    model = built(spread=3.0)
    logits = model(ids(2, 16))
    assert logits.shape == (2, 16, 100)
    assert logits.dtype == torch.float32
    assert logits.abs().max() <= 15
    assert logits.abs().max() > 10


def test_rotary_tables_are_not_part_of_the_weights():
    assert not {"cos", "sin"} & set(built().state_dict())


def test_bf16_products_leave_weights_and_gradients_in_fp32():
    model = GPT(TINY, torch.bfloat16)
    model.init_weights(0)
    loss = model(ids(2, 16), ids(2, 16, seed=1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    assert loss.item() == pytest.approx(built(seed=0)(ids(2, 16), ids(2, 16, seed=1)).item(), rel=0.01)


@pytest.mark.parametrize("block_rows", [1, 7, 100])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_blockwise_loss_and_gradient_equal_the_plain_ones(block_rows, reduction):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(20, 8, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(64, 8, dtype=torch.float64, generator=generator).mul_(5).requires_grad_()
    targets = torch.randint(0, 50, (20,), generator=generator)
    targets[[3, 4, 19]] = -1
    logits = softcapped_logits(hidden, weight, 50, 15.0)
    plain = F.cross_entropy(logits, targets, ignore_index=-1, reduction=reduction)
    ours = cross_entropy(hidden, weight, targets, 50, 15.0, reduction, block_rows)
    torch.testing.assert_close(ours, plain)
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    torch.testing.assert_close(torch.autograd.grad(3 * ours, (hidden, weight)), expected)


def test_single_losses_add_up_to_the_sum_and_skip_uncounted_targets():
    model = built(spread=0.3)
    inputs, targets = ids(2, 16), ids(2, 16, seed=1)
    targets[0, :5] = -1
    each = model(inputs, targets, "none")
    assert each.shape == (2, 16)
    assert not each[0, :5].any()
    torch.testing.assert_close(each.sum(), model(inputs, targets, "sum"))
    torch.testing.assert_close(each.sum() / 27, model(inputs, targets))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="max"):
        built()(ids(1, 4), ids(1, 4), "max")


def test_the_launch_form_is_the_later_form_with_its_scales_at_one_and_zero():
    launch = GPT(GPTConfig(16, 100, 2, 4, 2, 32, lambdas=False))
    later = built(spread=0.3)
    with torch.no_grad():
        later.resid_lambdas.fill_(1.0)
        later.x0_lambdas.fill_(0.0)
    launch.load_state_dict({k: v for k, v in later.state_dict().items() if "lambdas" not in k})
    torch.testing.assert_close(launch(ids(2, 16)), later(ids(2, 16)))
