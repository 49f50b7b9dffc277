"""The benchmark of parity: its made-up fleet does what the product does, and its table counts right."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat import delta, weights
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig
from nanochat.recipe import recipe_of
from nanochat.train import StepBatches, inner_steps

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))
spec = importlib.util.spec_from_file_location("benchmarks.parity", ROOT / "benchmarks" / "parity.py")
assert spec and spec.loader
parity = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parity)
sys.path.remove(str(ROOT))
runs = sys.modules["benchmarks.parity_run"]

TINY = GPTConfig(8, 64, 1, 1, 1, 16)
BATCH_TOKENS = 2 * 8
RECIPE = ("reference_batch_tokens=256", "momentum_warmup_steps=0")


class Texts:
    """Random samples; remembers which were read."""

    def __init__(self, *, alike: bool = False) -> None:
        self.ids = np.random.default_rng(7).integers(0, 64, (1 if alike else 500, 9))
        self.read: list[int] = []

    def batch(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        self.read += range(start, stop)
        rows = self.ids[np.arange(start, stop) % len(self.ids)]
        return rows[:, :-1], rows[:, 1:]


def scale(steps: int):
    return runs.Scale(TINY, steps * BATCH_TOKENS, RECIPE)


def fleet(texts: Texts, steps: int, **setting):
    return runs.Run(runs.Setting(batch_samples=2, **setting), scale(steps), texts, 1)


def plain_loop(texts: Texts, steps: int) -> weights.Weights:
    model = GPT(TINY)
    model.init_weights(1)
    recipe = recipe_of("reference", RECIPE)
    inner_steps(
        model,
        MuonAdamW(model, TINY, BATCH_TOKENS, recipe),
        recipe.schedule(TINY, steps * BATCH_TOKENS, BATCH_TOKENS),
        StepBatches(texts, start=0, stop=2 * steps, batch_samples=2, device_batch=2),
        tokens_before=0,
        tokens_per_step=BATCH_TOKENS,
        until=lambda step: False,
        device=torch.device("cpu"),
    )
    return weights.from_model(model)


def test_one_site_in_rounds_is_bit_equal_to_the_plain_loop() -> None:
    found = fleet(Texts(), 10, sites=1, inner_steps=3).finish()
    assert weights.digest(found) == weights.digest(plain_loop(Texts(), 10))


def test_two_sites_with_the_same_text_do_what_one_does_in_half_the_tokens() -> None:
    found = fleet(Texts(alike=True), 20, inner_steps=1, codec="fp32").finish()
    alone = plain_loop(Texts(alike=True), 10)
    for name, array in found.items():
        np.testing.assert_allclose(array, alone[name], rtol=0, atol=1e-4, err_msg=name)


def test_a_round_with_int4_changes_the_weights_nearly_as_with_fp32_and_sends_less() -> None:
    exact, coded = (fleet(Texts(), 60, codec=codec, feedback=codec == "int4") for codec in ("fp32", "int4"))
    start = exact.base
    for run in (exact, coded):
        run._round([0, 1])
    assert delta.norm(delta.difference(exact.base, coded.base)) < 0.2 * delta.norm(delta.difference(start, exact.base))
    assert sum(coded.uploads) < 0.4 * sum(exact.uploads)


def test_a_script_trains_every_sample_of_the_budget_once() -> None:
    texts = Texts()
    run = fleet(texts, 40, inner_steps=4, script=((2, ""), (5, "A"), (6, "ABC"), (3, "BC"), (4, "C")))
    run.finish()
    assert sorted(texts.read) == list(range(80))
    assert set(run.rounds_by_sites) == {1, 2, 3}
    assert run.tokens == 40 * BATCH_TOKENS


def test_a_sole_site_gives_way_as_soon_as_another_may_train() -> None:
    run = fleet(Texts(), 30, inner_steps=100, script=((5, "A"), (5, "AB"), (5, "")))
    run._round([0])
    assert run.clock == 5
    run._round([0, 1])
    assert run.clock == 10  # until both must stop


def test_a_site_that_leaves_hands_in_fewer_tokens_and_the_others_go_on() -> None:
    run = fleet(Texts(), 60, inner_steps=10, script=((4, "AB"), (50, "A")))
    run._round([0, 1])
    assert (run.clock, run.tokens) == (10, 14 * BATCH_TOKENS)
    assert run.pool.size == 120 - 28, "the rest of the lease came back"


def test_the_velocity_is_forgotten_when_one_site_is_left() -> None:
    run = fleet(Texts(), 100, inner_steps=4, outer_lr=0.7, outer_momentum=0.5)
    run._round([0, 1])
    assert run.merge.velocity
    run._round([0])
    assert not run.merge.velocity


def test_reset_begins_a_new_inner_optimizer_in_every_round_of_several() -> None:
    kept, reset = (fleet(Texts(), 40, inner_steps=4, inner_state=state) for state in ("kept", "reset"))
    for run in (kept, reset):
        run._round([0, 1])
        run._round([0, 1])
    assert [run.sites[1].optimizer.step_count for run in (kept, reset)] == [8, 4]


def test_the_rate_grows_with_the_power_of_the_sites_and_rises_for_a_joiner() -> None:
    site = fleet(Texts(), 40).sites[0]
    plain = site.schedule.at(0).lr_scale
    site.optimizer.step_count = 4
    assert runs.Rates(site.schedule, site.optimizer, 2.0**0.5, 10).at(0).lr_scale == pytest.approx(plain * 2**0.5 * 0.5)


def test_steps_made_ahead_train_every_sample_once_and_miss_the_version_they_belong_to() -> None:
    texts, there = Texts(), Texts()
    ahead, waited = fleet(texts, 80, inner_steps=10, ahead_steps=4), fleet(there, 80, inner_steps=10)
    assert weights.digest(ahead.finish()) != weights.digest(waited.finish())
    assert sorted(texts.read) == sorted(there.read) == list(range(160))
    assert (ahead.version, ahead.tokens) == (waited.version, waited.tokens)


def test_with_one_text_steps_made_ahead_lose_nothing() -> None:
    ahead, plain = (
        fleet(Texts(alike=True), 40, inner_steps=5, codec="fp32", ahead_steps=steps) for steps in (2, 0)
    )  # fmt: skip
    start = plain.base
    moved = delta.norm(delta.difference(start, plain.finish()))
    # both sites are where the version is; what is left is rounding, which Muon makes larger
    assert delta.norm(delta.difference(ahead.finish(), plain.base)) < 0.01 * moved


def test_a_late_contribution_is_in_the_next_version_at_a_discount_without_momentum() -> None:
    run = fleet(Texts(), 90, sites=3, inner_steps=5, outer_lr=0.7, outer_momentum=0.5, late_every=2)
    run._round([0, 1, 2])
    run._round([0, 1, 2])
    assert (run.tokens, run.sites[2].late.tokens) == (25 * BATCH_TOKENS, 5 * BATCH_TOKENS)
    velocity = run.merge.velocity
    run._round([0, 1, 2])
    assert run.tokens == 40 * BATCH_TOKENS and run.sites[2].late is None
    assert run.merge.velocity is velocity, "it waits"
    late = runs.Contribution({}, 8, stale=1)
    assert run.merge._part(0, late).weight == 0.5
    run.finish()
    assert run.tokens == 90 * BATCH_TOKENS


def test_sites_that_split_the_batch_make_that_many_more_steps() -> None:
    run = fleet(Texts(), 40, inner_steps=4, split=True)
    run._round([0, 1])
    assert [site.optimizer.step_count for site in run.sites] == [8, 8]
    assert run.tokens == 8 * BATCH_TOKENS


# -- the table ---------------------------------------------------------------


def line(name: str, seed: int, loss: float, **more: object) -> dict[str, object]:
    return {"name": name, "seed": seed, "loss": loss, "rounds": 9, "upload_bytes": 1500, "key": "", **more}


def test_differences_are_paired_by_seed_and_spread_is_the_standard_deviation() -> None:
    lines = [line("one site", seed, 3.0 + seed) for seed in (1, 2, 3)]
    lines += [line("2 sites (base)", seed, 3.0 + seed + gap) for seed, gap in ((1, 0.01), (2, 0.02), (3, 0.03))]
    one, two = parity.table(lines, parity.SETTINGS).splitlines()[2:]
    assert one.startswith("| one site | 5.0000 | 1.0000 |  |")
    assert two.startswith("| 2 sites (base) | 5.0200 | 1.0100 | +0.0200 ± 0.0100 |")


def test_runs_are_compared_with_one_site_of_the_same_tokens() -> None:
    settings = parity.SETTINGS
    found = {
        name: [parity.baseline_of(settings[name], sites, settings) for sites in (1, 2, 3)]
        for name in ("one site", "2 sites (base)", "2 sites, twice the tokens")
    }
    assert found["one site"][0] == ""
    assert found["2 sites (base)"] == ["one site", "one site, batch of 2", "one site, batch of 3"]
    assert found["2 sites, twice the tokens"] == ["", "one site, batch of 2, twice the tokens", ""]


def test_the_second_difference_is_to_one_site_with_the_batch_of_all() -> None:
    lines = [
        line(name, 1, loss) for name, loss in (("one site", 3.0), ("one site, batch of 3", 3.5), ("3 sites", 3.25))
    ]
    lines += [line("script", 1, 3.125), line("batch split", 1, 3.0625)]
    rows = {row.split(" | ")[0]: row for row in parity.table(lines, parity.SETTINGS).splitlines()[2:]}
    assert "| one seed | +0.2500 | -0.2500 |" in rows["| 3 sites"]
    assert "| one seed | +0.1250 |  |" in rows["| script"]
    assert "| one seed | +0.0625 |  |" in rows["| batch split"]


def test_unknown_names_and_single_seeds_do_not_break_the_table() -> None:
    text = parity.table([line("one site", 1, 3.5), line("of another version", 1, 1.0)], parity.SETTINGS)
    assert text.splitlines()[2:] == ["| one site | 3.5000 | one seed |  |  | 9 | 2 | 1 |"]


def test_a_table_compares_with_its_own_one_site_at_its_own_rate() -> None:
    settings = parity.MANY_SETTINGS
    assert parity.baseline_of(settings["many: 3 sites, H 10"], 1, settings) == "many: one site"
    assert parity.baseline_of(settings["many: 3 sites, H 30"], 3, settings) == "many: one site, batch of 3"
    assert parity.baseline_of(settings["many: one site"], 1, settings) == ""


def test_the_budget_is_a_whole_number_of_scripts() -> None:
    for steps in (parity.STEPS, parity.MANY_STEPS, parity.LONG_STEPS):
        assert steps % sum(steps * len(names) for steps, names in parity.SCRIPT) == 0
    assert {len(names) for _, names in parity.SCRIPT} == {0, 1, 2, 3}


def test_all_settings_are_told_apart() -> None:
    keys = {parity.key(setting, scale, 1) for setting, scale in parity.EVERY.values()}
    assert len(keys) == len(parity.EVERY)


def test_the_texts_are_part_of_what_makes_a_run_but_the_first_ones_change_no_key() -> None:
    old, new = (parity.key(parity.BASE, replace(parity.SCALE, texts=texts), 1) for texts in parity.TEXTS)
    assert "texts" not in old and '"texts": "library_and_tests"' in new


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Runs that only note that they were asked for."""
    made: list[tuple[str, int]] = []

    def simulate(setting, scale, data, seed):
        made.append((setting.codec, seed))
        return runs.Outcome(3.0, 1.5, 100, 4, {2: 4}, 1000, 0.1)

    monkeypatch.setattr(parity, "simulate", simulate)
    monkeypatch.setattr(parity, "prepare", lambda folder, left_out: None)
    monkeypatch.setattr(parity, "Data", lambda folder: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda on: None)
    return made


def test_a_finished_run_is_not_repeated_and_a_broken_line_is_made_again(tmp_path: Path, pretended) -> None:
    out = tmp_path / "out.jsonl"
    parity.main(["--only", "fp32", "--seeds", "1", "2", "--out", str(out)])
    assert pretended == [("fp32", 1), ("fp32", 2)]
    whole = out.read_text()
    out.write_text(whole[:-10])  # killed while it wrote the second line
    parity.main(["--only", "fp32", "--only", "int4", "--seeds", "1", "2", "--out", str(out)])
    assert pretended[2:] == [("int4", 1), ("fp32", 2), ("int4", 2)]
    assert [json.loads(text)["seed"] for text in out.read_text().splitlines()] == [1, 1, 2, 2]


def test_a_run_with_another_setting_of_the_same_name_is_made_again(tmp_path: Path, pretended, monkeypatch) -> None:
    out = tmp_path / "out.jsonl"
    parity.main(["--only", "fp32", "--seeds", "1", "--out", str(out)])
    setting, scale = parity.EVERY["fp32"]
    monkeypatch.setitem(parity.EVERY, "fp32", (replace(setting, inner_steps=7), scale))
    parity.main(["--only", "fp32", "--seeds", "1", "--out", str(out)])
    assert len(pretended) == 2


def test_the_rows_of_one_table_are_made_alone_and_on_their_own_texts(tmp_path: Path, pretended, monkeypatch) -> None:
    prepared: list[tuple[str, frozenset[str]]] = []
    monkeypatch.setattr(parity, "prepare", lambda folder, left_out: prepared.append((folder.name, left_out)))
    out = tmp_path / "out.jsonl"
    parity.main(["--rows-of", "long", "--seeds", "1", "--out", str(out)])
    assert [json.loads(text)["name"] for text in out.read_text().splitlines()] == list(parity.LONG_SETTINGS)
    assert prepared == [("out.data_library_and_tests", parity.INSTALLED)]


def test_an_empty_file_has_no_table_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parity.main(["--table", str(tmp_path / "nothing")])
    assert left.value.code == 2
    assert "there are no results" in capsys.readouterr().err
