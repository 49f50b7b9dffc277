"""The regime as functions of values: how many sites may train, why, and for how long."""

from __future__ import annotations

import pytest

from controller.scheduling.regime import SiteStanding, advance_regime, explain_regime, training_sites
from controller.store.rows import RunRow
from curtail.policy.rules import Regime, Verdict

YES = Verdict("A", True, 600.0, "MCI 50 is below 100 g/kWh", True)
NO = Verdict("B", False, 0.0, "MCI 400 is not below 100 g/kWh", False)
REGIONS = {"A": YES, "B": NO}


def standing(site: str, region: str = "A", heard: bool = True, away: bool = False, verdict: Verdict | None = YES):
    return SiteStanding(site, region, heard, away, verdict)


def test_only_sites_that_are_heard_and_have_a_good_verdict_may_train():
    sites = [standing("a"), standing("b", heard=False), standing("c", verdict=NO), standing("d", verdict=None)]
    assert training_sites("", sites) == ["a"]
    assert training_sites("the token budget is reached", sites) == []


@pytest.mark.parametrize(
    ("regime", "refusal", "sites", "expected"),
    [
        (Regime.PAUSED, "the token budget is reached", [standing("a")], "the token budget is reached"),
        (Regime.PAUSED, "", [], "no site has joined"),
        (Regime.PAUSED, "", [standing("a", heard=False), standing("b", heard=False)],
         "no site is heard from: a, b"),
        (Regime.PAUSED, "", [standing("a", heard=False), standing("b", "B", heard=False, away=True, verdict=NO)],
         f"B: {NO.reason}"),
        (Regime.PAUSED, "", [standing("a", heard=False), standing("b", "B", verdict=NO)], f"B: {NO.reason}"),
        (Regime.LOCAL, "", [standing("a"), standing("b", "B", verdict=NO)], "curtailed: a"),
        (Regime.LOCAL, "", [standing("a"), standing("b", verdict=NO)], "curtailed: a"),
        (Regime.FEDERATED, "", [standing("a"), standing("b", verdict=None)], "curtailed: a, b"),
    ],
)  # fmt: skip
def test_the_reason_names_the_run_then_sites_that_are_away_then_silence_then_the_verdicts(
    regime, refusal, sites, expected
):
    assert explain_regime(regime, refusal, sites, REGIONS) == expected


RUN = RunRow("r", "", "", "", "", 8, "RUNNING", 0.0, 1000.0, 1000.0, 0, 0, 8000, "PAUSED", 900.0,
             {"PAUSED": 30.0}, None, None)  # fmt: skip


def test_the_seconds_go_to_the_regime_before_and_a_new_one_begins_now():
    assert advance_regime(RUN, Regime.PAUSED, 1005.0) == {"clock": 1005.0, "regime_seconds": {"PAUSED": 35.0}}
    assert advance_regime(RUN, Regime.LOCAL, 1005.0) == {
        "clock": 1005.0, "regime_seconds": {"PAUSED": 35.0}, "regime": "LOCAL", "regime_since": 1005.0,
    }  # fmt: skip


def test_a_clock_that_goes_back_takes_no_seconds_away():
    assert advance_regime(RUN, Regime.PAUSED, 990.0) == {"clock": 990.0, "regime_seconds": {"PAUSED": 30.0}}
