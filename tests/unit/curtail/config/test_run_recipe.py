"""The recipe of a federated run: from the run file to what a job is told, and across restarts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from controller.home import home as homes
from controller.home.run_info import run_info
from curtail.config import RunConfig, parse_config
from curtail.errors import ConfigError
from nanochat import presets
from nanochat.recipe import BEST, REFERENCE, recipe_from_json, recipe_of


def config_with(**training: object) -> RunConfig:
    return parse_config(
        {
            "run": {"name": "x"},
            "model": {"preset": "d2-test"},
            "data": {"path": "data"},
            "training": {"token_budget": 100_000, "batch_samples": 4, **training},
            "regions": {"A": {"power_train": "1 W", "power_idle": "1 W"}},
        }
    )


@pytest.mark.parametrize(
    ("training", "wanted"),
    [
        ({}, REFERENCE),
        ({"recipe": "reference", "warmdown_fraction": 0.4}, REFERENCE),
        ({"warmdown_fraction": 0.1}, replace(REFERENCE, warmdown_fraction=0.1)),
        ({"recipe": "best"}, BEST),
        ({"recipe": "best", "warmdown_fraction": 0.4}, replace(BEST, warmdown_fraction=0.4)),
        (
            {"recipe": "best", "overrides": ["final_lr=0", "x0_betas=0.9,0.99", "equal_rows=false"]},
            recipe_of("best", ["final_lr=0", "x0_betas=0.9,0.99", "equal_rows=false"]),
        ),
    ],
)
def test_a_job_is_told_every_number_of_the_recipe_of_the_run_file(training, wanted):
    config = config_with(**training)
    model = presets.to_json(presets.preset("d2-test"))
    info = run_info(config, "id", model, "m" * 64, "t" * 64, 64, 1000)
    assert recipe_from_json(info.recipe) == wanted
    assert (info.device_batch_samples, info.token_budget) == (0, 64_000)


@pytest.mark.parametrize(
    ("training", "says"),
    [
        ({"recipe": "fast"}, r"\[training\]: there is no recipe 'fast': use one of reference, best"),
        ({"overrides": ["tilt=1"]}, r"\[training\]: 'tilt=1' is not a setting of a recipe: write KEY=VALUE"),
        ({"overrides": ["final_lr=2"]}, "final_lr is 2.0: give a number from 0 to 1"),
        (
            {"overrides": ["warmdown_fraction=0.1"], "warmdown_fraction": 0.2},
            "and in overrides: keep one of them",
        ),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(training, says):
    with pytest.raises(ConfigError, match=says):
        homes.recipe_for(config_with(**training))


@pytest.fixture
def data() -> homes.Data:
    return homes.Data(Path("data"), None, "d" * 64)


def begun_with(text: str) -> SimpleNamespace:
    """What the store holds of a run whose run file was `text`, as far as it matters here."""
    return SimpleNamespace(config=text, manifest="d" * 64)


def test_a_run_begun_before_recipes_could_be_chosen_goes_on(data):
    values = json.loads(config_with().to_json())
    for name in ("recipe", "overrides"):
        del values["training"][name]
    values["training"]["warmdown_fraction"] = 0.4
    run = begun_with(json.dumps(values))
    homes._check_same(Path("home"), config_with(), data, run)
    homes._check_same(Path("home"), config_with(warmdown_fraction=0.4, device_batch_samples="auto"), data, run)
    with pytest.raises(ConfigError, match=r"\[training\] warmdown_fraction = 0.4, but the run file has 0.65"):
        homes._check_same(Path("home"), config_with(warmdown_fraction=0.65), data, run)


def test_a_run_does_not_go_on_with_another_recipe(data):
    run = begun_with(config_with(recipe="best", overrides=["final_lr=0.1"]).to_json())
    homes._check_same(Path("home"), config_with(recipe="best", overrides=["final_lr=0.1"]), data, run)
    with pytest.raises(ConfigError, match=r"\[training\] overrides = "):
        homes._check_same(Path("home"), config_with(recipe="best"), data, run)
    with pytest.raises(ConfigError, match=r"\[training\] recipe = 'best', but the run file has 'reference'"):
        homes._check_same(Path("home"), config_with(overrides=["final_lr=0.1"], warmdown_fraction=0.65), data, run)
