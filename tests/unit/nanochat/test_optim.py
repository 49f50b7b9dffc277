"""The update rules, the saved state, and equality across ranks."""

import json
import runpy
import sys

import numpy as np
import pytest
import torch

from curtail.errors import CheckpointError
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW, Recipe, polar_express
from nanochat.presets import GPTConfig
from nanochat.schedule import Hyper

TINY = GPTConfig(16, 100, 2, 2, 2, 32)
STEADY = Hyper(lr_scale=1.0, muon_momentum=0.9, weight_decay=0.0)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(seed=0, **settings):
    model = GPT(TINY)
    model.init_weights(seed)
    return model, MuonAdamW(model, TINY, settings.pop("batch_tokens", 2**19), **settings)


def give_gradients(model, seed):
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = random(*parameter.shape, seed=1000 * seed + number)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (2, 16, 64)])
def test_the_polar_iteration_brings_all_singular_values_near_one(shape):
    result = polar_express(random(*shape) * 1e-3)
    values = torch.linalg.svdvals(result)
    assert result.shape == shape
    assert 0.6 < values.min() <= values.max() < 1.3
    # the directions stay those of the exact polar factor U V^T
    u, _, vh = torch.linalg.svd(random(*shape), full_matrices=False)
    assert torch.nn.functional.cosine_similarity(result.flatten(1), (u @ vh).flatten(1)).min() > 0.98


def test_each_matrix_of_a_stack_is_treated_alone():
    stack = random(3, 16, 16)
    torch.testing.assert_close(polar_express(stack)[1], polar_express(stack[1:2])[0], atol=1e-5, rtol=1e-4)


def test_a_zero_gradient_gives_a_zero_update():
    assert not polar_express(torch.zeros(1, 8, 4)).any()
    model, optimizer = built()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.step(STEADY)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_embeddings_and_scales_follow_torch_adamw():
    model, optimizer = built()
    width = (32 / 768) ** -0.5
    rates = {"lm_head.weight": 0.004 * width, "transformer.wte.weight": 0.3 * width}
    rates |= {"resid_lambdas": 0.005, "x0_lambdas": 0.5}
    live = dict(model.named_parameters())
    copies = {name: live[name].detach().clone().requires_grad_() for name in rates}
    groups = [{"params": [copies[name]], "lr": rate} for name, rate in rates.items()]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0)
    for step in range(4):
        give_gradients(model, step)
        for name, copy in copies.items():
            copy.grad = live[name].grad.clone()
        optimizer.step(STEADY)
        reference.step()
    for name, copy in copies.items():
        torch.testing.assert_close(live[name], copy)


def test_a_matrix_step_has_the_rate_of_its_shape_and_batch():
    model, optimizer = built(batch_tokens=2**17)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    give_gradients(model, 0)
    optimizer.step(STEADY)
    for name, tall in (("attn.c_q", 1), ("mlp.c_fc", 4), ("mlp.c_proj", 1)):
        name = f"transformer.h.0.{name}.weight"
        step = (model.state_dict()[name] - before[name]).norm()
        # an orthogonal matrix of smaller side 32 has norm sqrt(32); a quarter of the batch halves the rate
        assert step.item() == pytest.approx(0.01 * tall**0.5 * 32**0.5, rel=0.1)


def test_updates_are_evened_out_along_the_larger_side():
    model, optimizer = built()
    gradient = random(128, 32)
    gradient[:64] *= 1e-2
    name = "transformer.h.0.mlp.c_fc.weight"
    parameter = dict(model.named_parameters())[name]
    before = parameter.detach().clone()
    for _ in range(3):
        parameter.grad = gradient.clone()
        optimizer.step(STEADY)
    rows = (parameter.detach() - before).norm(dim=1)
    assert rows.max() / rows.min() < 1.5
    assert optimizer.state_dict()[f"muon.second.{name}"].shape == (128, 1)


def test_decay_acts_only_where_it_agrees_with_the_step():
    (plain, a), (decayed, b) = built(), built()
    name = "transformer.h.0.attn.c_q.weight"
    start = plain.state_dict()[name].clone()
    for model, optimizer, decay in ((plain, a, 0.0), (decayed, b, 0.5)):
        give_gradients(model, 0)
        optimizer.step(Hyper(1.0, 0.9, decay))
    step = plain.state_dict()[name] - start
    extra = decayed.state_dict()[name] - plain.state_dict()[name]
    agrees = (step * start) < 0
    torch.testing.assert_close(extra[agrees], -0.02 * 0.5 * start[agrees], atol=1e-7, rtol=1e-3)
    assert not extra[~agrees].any()


def test_a_rate_of_zero_changes_no_weight_but_the_state():
    model, optimizer = built()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    give_gradients(model, 0)
    optimizer.step(Hyper(0.0, 0.9, 0.1))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert optimizer.state_dict()["muon.momentum.transformer.h.0.attn.c_q.weight"].any()


def test_saved_state_names_every_parameter_and_continues_bit_for_bit():
    model, optimizer = built()
    for step in range(3):
        give_gradients(model, step)
        optimizer.step(STEADY)
    other = GPT(TINY)
    other.load_state_dict(model.state_dict())
    resumed = MuonAdamW(other, TINY, 2**19)
    state = optimizer.state_dict()
    resumed.load_state_dict(state)
    assert {name.split(".", 2)[2] for name in state if name != "step"} == set(model.state_dict())
    for m, o in ((model, optimizer), (other, resumed)):
        give_gradients(m, 9)
        o.step(STEADY)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in optimizer.state_dict().items())


def test_a_saved_state_does_not_change_with_later_steps():
    model, optimizer = built()
    state = optimizer.state_dict()
    give_gradients(model, 0)
    optimizer.step(STEADY)
    assert not any(value.any() for value in state.values())


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_a_foreign_state_is_refused_and_changes_nothing(damage):
    _, optimizer = built()
    state = {name: value + 1 for name, value in optimizer.state_dict().items()}
    if damage == "missing":
        del state["step"]
    elif damage == "unknown":
        state["other"] = torch.zeros(1)
    else:
        state["adamw.mean.x0_lambdas"] = torch.zeros(7)
    with pytest.raises(CheckpointError):
        optimizer.load_state_dict(state)
    assert not any(value.any() for value in optimizer.state_dict().values())


def test_rates_can_be_set_by_a_recipe():
    model, optimizer = built(recipe=Recipe(matrix_lr=0.0, embedding_lr=0.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    give_gradients(model, 0)
    optimizer.step(STEADY)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"lm_head.weight", "resid_lambdas", "x0_lambdas"}


RANKS_PROGRAM = """
import json, sys
import numpy as np, torch
from nanochat import distributed as places
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig
from nanochat.schedule import Schedule
from nanochat.train import StepBatches, inner_steps
from nanochat.weights import digest, from_model

class Stream:
    def batch(self, start, stop):
        rows = np.stack([np.random.default_rng(i).integers(0, 100, 17) for i in range(start, stop)])
        return rows[:, :-1].copy(), rows[:, 1:].copy()

torch.set_num_threads(1)
cpu = places.choose_device("cpu")
ranks = places.join_ranks(cpu)
# without lambdas: their first gradient is rounding alone, and AdamW makes a full step of it
model = GPT(GPTConfig(16, 100, 2, 2, 2, 32, lambdas=False))
model.init_weights(ranks.rank)  # other weights on each rank, until the broadcast
places.broadcast_weights(model)
optimizer = MuonAdamW(model, model.config, 8 * 16)
batches = StepBatches(Stream(), start=0, stop=24, batch_samples=8, device_batch=3, rank=ranks.rank, ranks=ranks.ranks)
agreed = [places.agree(ranks.rank == 0, cpu), places.agree(False, cpu)]
report = inner_steps(model, optimizer, Schedule(10**4, 128), batches, tokens_before=0, tokens_per_step=128,
                     until=lambda step: False, device=cpu)
weights = from_model(model)
np.savez(f"{sys.argv[1]}/{ranks.ranks}-{ranks.rank}.npz", **weights)
facts = {"digest": digest(weights), "agreed": agreed, "samples": report.samples, "tokens": report.tokens,
         "losses": [report.loss_first, report.loss_last, report.loss_mean]}
with open(f"{sys.argv[1]}/{ranks.ranks}-{ranks.rank}.json", "w") as file:
    json.dump(facts, file)
places.leave_ranks()
"""


def test_two_ranks_make_the_same_steps_as_one_rank_with_the_whole_batch(tmp_path, monkeypatch, run_two_ranks):
    program = tmp_path / "program.py"
    program.write_text(RANKS_PROGRAM)
    monkeypatch.setattr(sys, "argv", [str(program), str(tmp_path)])
    runpy.run_path(str(program))
    run_two_ranks(program, tmp_path)
    one, left, right = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert left == right
    assert left["agreed"] == [True, False]
    assert (left["samples"], left["tokens"]) == (one["samples"], one["tokens"]) == (24, 384)
    assert left["losses"] == pytest.approx(one["losses"], rel=1e-5)
    whole, halves = np.load(tmp_path / "1-0.npz"), np.load(tmp_path / "2-0.npz")
    for name in whole.files:
        np.testing.assert_allclose(halves[name], whole[name], atol=2e-5, err_msg=name)
