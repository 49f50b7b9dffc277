"""The run file: strict, and helpful when it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from curtail.config import config_from_json, load_config, parse_config, reader, schema
from curtail.config.quantities import OneOf
from curtail.errors import ConfigError, NotFound
from curtail.wire.bounds import Real, Utf8, Whole, annotations_of, leaves

TABLE = {
    "run": {"name": "x"},
    "model": {"preset": "d2-demo"},
    "data": {"path": "d"},
    "training": {"token_budget": 1000, "batch_samples": 4},
    "regions": {"A": {"power_train": "2.024 kW", "power_idle": "468 W", "pue": 1.2}},
}


def changed(section: str, key: str, value: object) -> dict:
    table = copy.deepcopy(TABLE)
    table.setdefault(section, {})[key] = value
    return table


def test_quantities_become_numbers_in_one_unit():
    table = changed("policy", "threshold", "220.46226 lb/MWh")
    table["rounds"] = {"length": "5 min"}
    config = parse_config(table)
    assert config.policy.threshold == pytest.approx(100.0)
    assert config.rounds.length == 300.0
    assert config.regions["A"].power_train == 2024.0


def test_a_region_without_its_own_threshold_has_the_policys():
    table = changed("policy", "threshold", "80 g/kWh")
    assert parse_config(table).threshold("A") == 80.0
    table["regions"]["A"]["threshold"] = "120 g/kWh"
    assert parse_config(table).threshold("A") == 120.0


def test_a_paused_site_draws_idle_power_unless_the_file_says_less():
    config = parse_config(TABLE)
    assert [config.watts("A", phase) for phase in ("train", "sync", "paused")] == [2024.0, 468.0, 468.0]
    table = copy.deepcopy(TABLE)
    table["regions"]["A"]["power_paused"] = "10 W"
    assert parse_config(table).watts("A", "paused") == 10.0


def test_the_stored_form_is_the_same_run():
    config = parse_config(TABLE)
    assert config_from_json(config.to_json()) == config
    config = parse_config(changed("training", "overrides", ["final_lr=0.1", "x0_betas=0.9,0.95"]))
    assert config.training.overrides == ("final_lr=0.1", "x0_betas=0.9,0.95")
    assert config_from_json(config.to_json()) == config


OLD_KEYS = [
    ("training", "set", "overrides", ["final_lr=0.1"], ("final_lr=0.1",)),
    ("rounds", "outage", "upload_timeout", "90 s", 90.0),
    ("rounds", "stale_weight", "staleness_discount", 0.5, 0.5),
    ("rounds", "rate_power", "lr_scaling", 0.25, 0.25),
    ("rounds", "memory_power", "momentum_scaling", 0.75, 0.75),
    ("policy", "most_sites", "max_sites", 2, 2),
]


@pytest.mark.parametrize(("section", "old", "new", "written", "value"), OLD_KEYS)
def test_a_renamed_key_is_accepted_with_a_warning_that_names_the_new_one(section, old, new, written, value, caplog):
    config = parse_config(changed(section, old, written))
    assert getattr(getattr(config, section), new) == value
    assert f"the key {old} is now called {new}" in caplog.text
    both = changed(section, old, written)
    both[section][new] = written
    with pytest.raises(ConfigError, match=f"{old} is the old name of {new}, and both are given"):
        parse_config(both)


@pytest.mark.parametrize(("section", "old", "new", "written", "value"), OLD_KEYS)
def test_a_store_with_an_old_key_holds_the_same_run(section, old, new, written, value):
    config = parse_config(changed(section, new, written))
    stored = json.loads(config.to_json())
    stored[section][old] = stored[section].pop(new)
    assert config_from_json(json.dumps(stored)) == config


def test_a_run_stored_before_the_inner_factors_existed_goes_on_without_them():
    stored = json.loads(parse_config(TABLE).to_json())
    del stored["rounds"]["lr_scaling"], stored["rounds"]["momentum_scaling"]
    assert config_from_json(json.dumps(stored)).rounds.powers == (0.0, 0.0)


def test_an_outer_momentum_takes_the_place_of_the_inner_factors_unless_they_are_given():
    plain, momentum = parse_config(TABLE), changed("rounds", "outer", {"2": {"lr": 0.7, "momentum": 0.5}})
    assert plain.rounds.powers == (0.5, 0.5)
    assert parse_config(momentum).rounds.powers == (0.0, 0.0)
    momentum["rounds"]["momentum_scaling"] = 0.25
    assert parse_config(momentum).rounds.powers == (0.0, 0.25)


def test_the_samples_of_a_pass_are_a_number_or_left_to_the_site():
    given = [4, "auto", 0]
    found = [parse_config(changed("training", "device_batch_samples", n)).training.device_batch_samples for n in given]
    assert found == [4, 0, 0] and parse_config(TABLE).training.device_batch_samples == 0


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("policy", "threshold", 100, "has no unit"),
        ("policy", "threshold", "100 kW", "wrong unit 'kW'"),
        ("policy", "treshold", "100 g/kWh", "did you mean threshold"),
        ("rounds", "length", "five minutes", "is no quantity"),
        ("training", "batch_samples", 0, "at least 1"),
        ("training", "batch_samples", 1.5, "whole number"),
        ("training", "token_budget", True, "whole number"),
        ("training", "device_batch_samples", "all", 'or "auto", is needed'),
        ("training", "device_batch_samples", -1, "at least 0"),
        ("training", "recipe", 1, "a text in quotes"),
        ("training", "overrides", "final_lr=0", "a list of texts"),
        ("training", "overrides", [1], "a list of texts"),
        ("training", "warmdown_fraction", 2, "at most 1"),
        ("rounds", "codec", "int3", "use one of fp32, bf16, int8, int4"),
        ("run", "name", "", "a text in quotes"),
        ("trainig", "x", 1, "did you mean training"),
        ("fleet", "lost_after", "1 s", "shorter than two heartbeats"),
        ("policy", "permit", "1 s", "shorter than two heartbeats"),
    ],
)
def test_a_wrong_key_is_named_with_its_remedy(section, key, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_config(changed(section, key, value))


@pytest.mark.parametrize("section", ["run", "model", "data", "training", "regions"])
def test_a_missing_section_is_named(section):
    table = {name: value for name, value in TABLE.items() if name != section}
    with pytest.raises(ConfigError, match=r"missing|no region"):
        parse_config(table)


def test_the_data_path_is_relative_to_the_run_file(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text(
        '[run]\nname="x"\n[model]\npreset="p"\n[data]\npath="tokens"\n'
        '[training]\ntoken_budget=10\nbatch_samples=1\n[regions.A]\npower_train="1 kW"\npower_idle="1 W"\n'
    )
    assert load_config(file).data.path == str(tmp_path / "tokens")


def test_no_file_and_no_toml_are_clear_errors(tmp_path: Path):
    with pytest.raises(NotFound, match="there is no run file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[run\n")
    with pytest.raises(ConfigError, match="no valid TOML"):
        load_config(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("section", "key", "value", "sentence"),
    [
        ("training", "token_budget", 99999999999999999999999, r"token_budget is too large: at most 9007199254740991"),
        ("training", "token_budget", 2**53, r"token_budget is too large: at most 9007199254740991"),
        ("training", "token_budget", -(10**400), r"token_budget is too small: at least 1 "),
        ("rounds", "inner_steps", 10**30, r"inner_steps is too large: at most 9007199254740991"),
        ("run", "seed", 2**64, r"seed is too large"),
        ("rounds", "length", "1e300 h", r"length = '1e300 h' is too large: at most 262980 h, 30 years"),
        ("rounds", "grace", "1e999 s", r"grace = '1e999 s' is too large: at most 262980 h"),
        ("fleet", "heartbeat", "1e7 s", r"heartbeat = 1e\+07 is too large: at most 1e\+06"),
        ("policy", "threshold", "1e10 g/kWh", r"threshold = '1e10 g/kWh' is too large: at most 1e9 g/kWh"),
        ("policy", "threshold", "-1e10 g/kWh", r"threshold = '-1e10 g/kWh' is too small: at least -1e9 g/kWh"),
        ("policy", "deadline", "1e300 h", r"deadline = '1e300 h' is too large: at most 262980 h"),
        ("policy", "budget_kg", float("nan"), r"budget_kg is NaN"),
        ("policy", "budget_kg", float("inf"), r"budget_kg is too large: at most 1e\+15"),
        ("policy", "safety", 10**400, r"safety is too large: at most 1e\+15"),
        ("accounting", "network_kwh_per_gb", float("-inf"), r"network_kwh_per_gb is too small: at least 0"),
        ("signal", "options", {"a": [float("nan")]}, r"options: only texts, finite numbers"),
        ("rounds", "outer", {"9" * 5000: {"lr": 1.0}}, r"is no number of sites"),
    ],
)  # fmt: skip
def test_no_number_is_larger_than_a_run_can_keep_and_none_is_not_finite(section, key, value, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_config(changed(section, key, value))


def test_the_largest_numbers_are_accepted():
    table = changed("training", "token_budget", 2**53 - 1)
    table["rounds"] = {"length": "262980 h"}
    config = parse_config(table)
    assert config.training.token_budget == 2**53 - 1 and config.rounds.length == 262980 * 3600.0


@pytest.mark.parametrize("name", ["a b", "", "a" * 65, "ü", "a/b", "a\n"])
@pytest.mark.parametrize("section", ["regions", "sites"])
def test_regions_and_sites_have_names_that_messages_can_carry(section, name):
    with pytest.raises(ConfigError, match=r"cannot be the name of a (region|site): use 1 to 64 letters, digits, dots"):
        parse_config(changed(section, name, dict(TABLE["regions"]["A"]) if section == "regions" else {}))


def test_a_folder_a_file_of_bytes_and_a_number_without_end_are_told_in_plain_words(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert str(caught.value) == f"the run file {tmp_path} is a folder: name the file in it"
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(tmp_path / "bytes")
    for text in (f"a = {'9' * 5000}", f"a = {'[' * 5000}"):
        (tmp_path / "long").write_text(text)
        with pytest.raises(ConfigError, match="no valid TOML"):
            load_config(tmp_path / "long")


SECTIONS = {name: kind for name, kind in vars(schema).items() if name.endswith("Section")} | {"row": schema.OuterStep}


@pytest.mark.parametrize("kind", SECTIONS.values(), ids=SECTIONS)
def test_every_number_and_text_of_a_section_has_a_bound_of_its_type(kind):
    expected = {int: Whole, float: Real, str: (Utf8, OneOf)}
    for name, hint in annotations_of(kind).items():
        for option, bound in leaves(hint):
            if option in expected and name != "options":  # those are the plug-in's own
                assert isinstance(bound, expected[option]), f"{kind.__name__}.{name}: annotate a bound"


@dataclasses.dataclass
class Unbounded:
    count: int = 0
    share: float = 0.0
    text: str = ""


@pytest.mark.parametrize(("key", "value"), [("count", 1), ("share", 0.5), ("text", "x")])
def test_a_key_whose_field_has_no_bound_cannot_be_read(key, value):
    with pytest.raises(TypeError, match=f"here {key}: .* needs a bound"):
        reader.section(Unbounded, {key: value}, "here")
