"""Hyperparameters by name: the prototype's, and what came after."""

from dataclasses import fields, replace

import pytest
import torch

from curtail.errors import ConfigError
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig, config_for, preset
from nanochat.recipe import BEST, RECIPES, REFERENCE, Recipe, batch_tokens_for, horizon, recipe_of
from nanochat.schedule import Hyper, Schedule, default_weight_decay

D20 = preset("d20-561m")
BATCH = 2**19


def test_the_reference_schedule_is_that_of_a_federated_run():
    made = REFERENCE.schedule(D20, 23_400 * BATCH, BATCH)
    assert made == Schedule(
        token_budget=23_400 * BATCH, batch_tokens=BATCH, warmdown_fraction=0.4, weight_decay=default_weight_decay(20)
    )


def test_best_falls_longer_and_not_to_zero():
    made = BEST.schedule(D20, 1000 * BATCH, BATCH)
    assert made.at(0).lr_scale == pytest.approx(1 / 40)
    assert made.at(340 * BATCH).lr_scale == 1.0
    assert made.at(1000 * BATCH).lr_scale == pytest.approx(0.05)
    assert made.at(0).muon_momentum == pytest.approx(0.85)
    assert made.at(1000 * BATCH).muon_momentum == pytest.approx(0.90)
    assert made.at(500 * BATCH).weight_decay == pytest.approx(made.weight_decay / 2)


def test_momentum_climbs_to_its_height_before_it_falls():
    made = BEST.schedule(D20, 2000 * BATCH, BATCH)
    assert made.at(400 * BATCH).muon_momentum == pytest.approx(0.97)
    assert made.at(699 * BATCH).muon_momentum == pytest.approx(0.97)
    assert made.at(2000 * BATCH).muon_momentum == pytest.approx(0.90)


def test_decay_by_horizon_forgets_as_much_over_a_run_of_any_size():
    def forgotten(budget, batch):
        rate = BEST.matrix_lr * (batch / 2**19) ** 0.5
        return BEST.weight_decay(D20, budget, batch) * rate * budget / batch

    assert forgotten(2**33, 2**19) == pytest.approx(forgotten(2**27, 2**14))
    twelve = config_for("lambdas", 12, D20.vocab_size, D20.sequence_len)
    assert BEST.weight_decay(twelve, horizon(twelve, "best"), 2**19) == pytest.approx(0.28)


def test_a_run_of_few_steps_does_not_warm_up_for_most_of_them():
    made = BEST.schedule(D20, 20 * BATCH, BATCH)
    assert made.at(2 * BATCH).lr_scale == 1.0


def test_budgets_and_batches():
    assert horizon(D20, "reference") == 20 * 560_988_200
    assert horizon(D20, "best") == 12 * (393_216_000 + 83_886_080)
    assert batch_tokens_for(D20, "reference", 10**9) == 2**19
    assert batch_tokens_for(D20, "best", horizon(D20, "best")) == 2**20
    twelve = config_for("lambdas", 12, 65536, 2048)
    assert batch_tokens_for(twelve, "best", horizon(twelve, "best")) == 2**19


def test_every_number_can_be_set():
    for field in fields(Recipe):
        value = getattr(BEST, field.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        assert getattr(recipe_of("reference", [f"{field.name}={text}"]), field.name) == value
    both = recipe_of("best", ["final_lr=0", "x0_betas=0.8,0.95"])
    assert both == replace(BEST, final_lr=0.0, x0_betas=(0.8, 0.95))


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("nope=1", "KEY=VALUE"), ("final_lr", "KEY=VALUE"), ("final_lr=x", "a number"), ("final_lr=nan", "a number"),
        ("final_lr=2", "0 to 1"), ("matrix_lr=-1", "a number"), ("equal_rows=1", "true or false"),
        ("x0_betas=0.9", "two numbers"), ("warmup_steps=1.5", "an integer"), ("decay_shape=round", "linear"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_is_refused(setting, says):
    with pytest.raises(ConfigError, match=says):
        recipe_of("reference", [setting])


def test_there_are_two_recipes():
    assert set(RECIPES) == {"reference", "best"}
    with pytest.raises(ConfigError, match="reference, best"):
        recipe_of("other")


def update(recipe, gradient):
    config = GPTConfig(16, 100, 1, 2, 2, 32)
    model = GPT(config)
    model.init_weights(0)
    optimizer = MuonAdamW(model, config, 2**19, recipe)
    weight = model.transformer["h"][0].mlp.c_fc.weight
    before = weight.detach().clone()
    weight.grad = gradient
    optimizer.step(Hyper(1.0, 0.9, 0.0))
    return weight.detach() - before


def test_the_exact_norm_is_that_of_an_orthogonal_matrix():
    gradient = torch.randn(128, 32, generator=torch.Generator().manual_seed(0)) ** 3
    step = update(replace(REFERENCE, exact_norm=True), gradient.clone())
    assert step.norm().item() == pytest.approx(0.02 * 4**0.5 * 32**0.5, rel=1e-4)


def test_equal_rows_let_a_quiet_row_take_part_in_the_polar_iteration():
    gradient = torch.randn(128, 32, generator=torch.Generator().manual_seed(0))
    gradient[:3] *= 1e-6
    plain, equal = (update(replace(REFERENCE, equal_rows=on, muon_beta2=1.0), gradient.clone()) for on in (False, True))
    quiet = [step[:3].norm() / step[3:6].norm() for step in (plain, equal)]
    assert quiet[0] < 0.1 < 0.5 < quiet[1]
