"""Three boundaries, sensitivity, and what the same training could have emitted otherwise."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from curtail.carbon.accounting import Basis, Detail, Entry
from curtail.carbon.boundaries import boundaries, per_tokens, sensitivity
from curtail.carbon.counterfactual import Trained, counterfactuals, trained
from curtail.carbon.lower_bound import oracle_kg
from curtail.commands.ledger.totals import run_totals
from curtail.config import AccountingSection, parse_config
from curtail.errors import ConfigError

HOUR = 3600.0


def row(site, phase, t0, t1, watts, mci, pue=1.0, sent=0, tokens=0):
    machine = watts * (t1 - t0) / 3.6e6
    kwh = machine * pue
    detail = Detail(machine, None, None, 0.0, tokens, 0, sent, Basis(mci, "test", t0, 100.0))
    kg = None if mci is None else kwh * mci / 1000.0
    inside = mci is not None and mci < 100.0
    return Entry(site, site.upper(), phase, t0, t1, watts, "constant", pue, 1.0, kwh, mci, kg, inside, detail)


ROWS = [
    row("a", "train", 0.0, HOUR, 2000.0, 50.0, pue=1.5, sent=2_000_000_000),
    row("a", "paused", HOUR, 3 * HOUR, 500.0, 400.0, pue=1.5),
    row("b", "paused", 0.0, 3 * HOUR, 100.0, None),
]


def test_every_boundary_holds_the_one_before_and_pue_is_counted_once():
    found = boundaries(ROWS, 3 * HOUR, AccountingSection(0.06, 20.0, 480.0, 29.0))
    assert (found.attributed_kwh, found.attributed_kg) == (pytest.approx(2.0), pytest.approx(0.1)), "without PUE"
    assert (found.reserved_kwh, found.reserved_kg) == (pytest.approx(3.3), pytest.approx(0.5))
    assert (found.pue_kwh, found.pue_kg) == (pytest.approx(1.5), pytest.approx(0.25))
    assert (found.network_kwh, found.network_kg) == (pytest.approx(0.12), pytest.approx(0.0576))
    assert (found.controller_kwh, found.controller_kg) == (pytest.approx(0.06), pytest.approx(0.0288))
    assert (found.site_hours, found.embodied_kg) == (pytest.approx(6.0), pytest.approx(0.174))
    assert found.unknown_kwh == pytest.approx(0.3)
    assert found.full_kwh == pytest.approx(3.3 + 1.5 + 0.12 + 0.06)
    assert found.full_kg == pytest.approx(0.5 + 0.25 + 0.0576 + 0.0288 + 0.174)
    assert found.full_kwh - found.network_kwh - found.controller_kwh == pytest.approx(sum(r.kwh for r in ROWS))


def test_carbon_is_told_for_a_billion_tokens():
    assert per_tokens(0.5, 2_000_000_000) == 0.25 and per_tokens(0.5, 0) is None


def test_sensitivity_says_what_assumptions_are_worth():
    readings = {"A": [(0.0, 0.0), (HOUR, 100.0), (2 * HOUR, None), (3 * HOUR, 100.0)]}
    rows = [row("a", "train", 0.0, HOUR, 1000.0, 0.0), row("a", "train", HOUR, 2 * HOUR, 1000.0, 100.0)]
    found = sensitivity([*rows, row("a", "paused", 0.0, HOUR, 5.0, None)], readings)
    assert found.step_kg == pytest.approx(0.1)
    assert found.linear_kg == pytest.approx(0.05 + 0.1), "half of 100 on average in the first hour"
    assert (found.plus_20_kg, found.minus_20_kg) == (pytest.approx(0.12), pytest.approx(0.08))
    assert found.zeros_at_50_kg == pytest.approx(0.15)
    assert sensitivity(rows, {}).linear_kg == pytest.approx(0.1), "without readings as booked"


@pytest.mark.parametrize(("start", "stop"), [(-1000.0, 500.0), (100.0, 9000.0), (3000.0, 3001.0)])
def test_the_mean_between_readings_is_that_of_a_fine_sum(start, stop):
    points = [(0.0, 10.0), (1000.0, 500.0), (2500.0, -40.0), (4000.0, 90.0)]

    def line(t):
        clamped = [(at, max(0.0, mci)) for at, mci in points]
        for (a, x), (b, y) in pairwise(clamped):
            if a <= t < b:
                return x + (y - x) * (t - a) / (b - a)
        return clamped[0][1] if t < 0 else clamped[-1][1]

    count = 200_000
    fine = math.fsum(line(start + (n + 0.5) * (stop - start) / count) for n in range(count)) / count
    found = sensitivity([row("a", "train", start, stop, 1000.0, 1.0)], {"A": points})
    assert found.linear_kg == pytest.approx(1.0 * (stop - start) / 3.6e6 * fine, rel=1e-6)


# -- counterfactuals -----------------------------------------------------------

SITES = [Trained("a", "A", 2000.0, HOUR, 0), Trained("b", "B", 1000.0, HOUR, 0)]
READINGS = {"A": [(0.0, 50.0), (2 * HOUR, 500.0)], "B": [(0.0, 300.0), (HOUR, 0.0)]}
CAPS = {"A": 100.0, "B": 100.0}


def test_each_site_alone_starts_at_once_and_the_best_of_them_is_named():
    found = counterfactuals(SITES, READINGS, 0.0, 4 * HOUR, CAPS, 0.25)
    a, b = found.alone
    assert (a.kg, a.hours, a.known_share) == (pytest.approx(4.0 * 0.05), 2.0, 1.0)
    assert (b.kg, b.hours) == (pytest.approx(0.3), 2.0)
    assert found.best == a
    assert (found.unconstrained_kg, found.unconstrained_h) == (pytest.approx(2 * 0.05 + 1 * 0.3), 1.0)
    # the least: B after its first hour, at nothing
    assert found.oracle_kg == 0.0 and found.efficiency_pct == 0.0


def test_the_oracle_has_the_runs_own_time_and_its_thresholds_first():
    short = counterfactuals(SITES, READINGS, 0.0, 2 * HOUR, CAPS, 0.2)
    assert short.oracle_kg == pytest.approx(oracle_kg([(HOUR, 0.0), (2 * HOUR, 100.0)], 2 * HOUR, 1000.0))
    assert short.efficiency_pct == pytest.approx(100 * 0.1 / 0.2)
    tight = counterfactuals(SITES, READINGS, 0.0, HOUR, CAPS, 0.5)
    assert tight.oracle_kg == pytest.approx(0.1 + 0.3), "where the windows do not hold the work, above the threshold"
    assert counterfactuals(SITES, READINGS, 0.0, HOUR / 2, CAPS, 0.5).oracle_kg is None


def test_the_same_tokens_take_a_slow_site_longer():
    sites = [Trained("a", "A", 2000.0, HOUR, 3000), Trained("b", "B", 1000.0, HOUR, 1000)]
    found = counterfactuals(sites, {"A": [(0.0, 10.0)], "B": [(0.0, 10.0)]}, 0.0, 8 * HOUR, CAPS, 1.0)
    assert [one.hours for one in found.alone] == [pytest.approx(4 / 3), pytest.approx(4.0)]
    assert [one.kg for one in found.alone] == [pytest.approx(2.0 * 4 / 3 * 0.01), pytest.approx(4.0 * 0.01)]
    assert found.unconstrained_h == pytest.approx(1.0)
    assert found.oracle_kg == pytest.approx(2.0 * 4 / 3 * 0.01), "all of it on the site that needs less for a token"


def test_a_site_alone_that_outlasts_the_readings_says_for_how_long_they_hold():
    found = counterfactuals(SITES, READINGS, 0.0, HOUR, CAPS, 0.5)
    assert {one.known_share for one in found.alone} == {0.5}


def test_without_training_or_readings_there_is_nothing_to_compare():
    assert counterfactuals([], READINGS, 0.0, HOUR, CAPS, 0.0).best is None
    assert counterfactuals(SITES, {"A": READINGS["A"]}, 0.0, HOUR, CAPS, 1.0).oracle_kg is None


def test_sites_train_at_the_power_and_speed_of_their_rows():
    config = parse_config(
        {
            "run": {"name": "t"}, "model": {"preset": "d2-test"}, "data": {"path": "x"},
            "training": {"token_budget": 10, "batch_samples": 1},
            "regions": {name: {"power_train": "700 W", "power_idle": "1 W", "pue": 2.0} for name in ("A", "B")},
        }
    )  # fmt: skip
    a = [
        row("a", "train", 0.0, 10.0, 100.0, 1.0, pue=1.5),
        row("a", "train", 10.0, 20.0, 300.0, 1.0, pue=1.5, tokens=40),
    ]
    found = trained([*a, row("b", "paused", 0.0, 1.0, 1.0, 1.0)], config)
    assert found == [Trained("a", "A", 300.0, 20.0, 40), Trained("b", "B", 1400.0, 0.0, 0)]
    assert found[0].speed == 2.0


def test_the_run_file_sets_the_factors_of_the_full_boundary():
    table = {
        "run": {"name": "t"}, "model": {"preset": "d2-test"}, "data": {"path": "x"},
        "training": {"token_budget": 10, "batch_samples": 1},
        "regions": {"A": {"power_train": "1 W", "power_idle": "1 W"}},
    }  # fmt: skip
    assert parse_config(table).accounting == AccountingSection(0.06, 20.0, 480.0, 29.0)
    own = {"network_kwh_per_gb": 0, "controller_power": "1 kW", "intensity": "1 g/kWh", "embodied_g_per_site_hour": 7.5}
    assert parse_config({**table, "accounting": own}).accounting == AccountingSection(0.0, 1000.0, 1.0, 7.5)
    with pytest.raises(ConfigError, match="accounting"):
        parse_config({**table, "accounting": {"controller_power": 20}})


def test_the_command_shows_a_run_inside_each_boundary(world, capsys):
    world.ready("a", "job")
    world.beat("a", "job", "train")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=10)
    for _ in range(4):
        world.tick(300.0)
    assert run_totals(world.home, as_json=True) == 0
    found, energy = json.loads(capsys.readouterr().out), world.status().energy
    totals, inside = found["at_decision"]["totals"], found["at_decision"]["boundaries"]
    assert totals["kg_attributed"] == pytest.approx(energy.kg_attributed, rel=1e-6)
    assert inside["attributed_kg"] == pytest.approx(energy.kg_attributed, rel=1e-6)
    assert inside["network_kwh"] > 0 and found["at_decision"]["full_kg"] > inside["reserved_kg"] > 0
    assert found["tokens"] == 320 and found["head"] == energy.ledger_head
    assert found["counterfactuals"]["efficiency_pct"] == pytest.approx(100.0, rel=0.05), "it trained all the time"
    assert run_totals(world.home, as_json=False) == 0
    text = capsys.readouterr().out
    assert "lower bound in the same time" in text and "SCI:" in text and energy.ledger_head in text
