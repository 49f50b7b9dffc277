"""What the ledger's rows teach of a site: its starts, stops, exchanges and power."""

from __future__ import annotations

import pytest

from controller.scheduling.site_costs import Learned, costs, learn
from curtail.carbon.accounting import LedgerEntry
from curtail.policy.costs import SiteCosts

ASSUMED = SiteCosts(100.0, 15.0, 30.0, 2000.0, 500.0, 400.0)


def rows(*spells: tuple[str, float], site: str = "a", watts: float = 1000.0, method: str = "constant", at: float = 0.0):
    """Rows on end: phase and seconds of each."""
    found = []
    for phase, seconds in spells:
        found.append(LedgerEntry(site, "A", phase, at, at + seconds, watts, method, 1.0, 1.0, 0.0, 50.0, 0.0, True))
        at += seconds
    return found


def of(entries, site: str = "a") -> SiteCosts:
    return costs(learn(entries).get(site, Learned()), ASSUMED)


WINDOW = (("paused", 500.0), ("start", 40.0), ("train", 600.0), ("sync", 10.0), ("train", 600.0), ("drain", 5.0))


def test_before_anything_is_measured_the_run_file_says_it():
    assert of([]) == ASSUMED


def test_a_measured_start_stop_and_exchange_count_beside_what_is_assumed_until_there_are_three():
    one = of(rows(*WINDOW, ("paused", 1.0)))
    assert (one.start_s, one.stop_s, one.sync_s) == (70.0, 10.0, 20.0)
    three = of(rows(*WINDOW * 3, ("paused", 1.0)))
    assert (three.start_s, three.stop_s, three.sync_s) == (40.0, 5.0, 10.0)
    assert (three.train_w, three.idle_w, three.paused_w) == (2000.0, 500.0, 400.0), "power was not measured"


def test_a_reading_that_changes_within_a_spell_does_not_end_it():
    split = rows(("paused", 9.0), ("start", 30.0), ("start", 10.0), ("train", 5.0), ("train", 5.0), ("paused", 1.0))
    assert learn(split)["a"].seconds == {"start": (40.0,)}


def test_the_median_of_the_last_five_forgets_one_odd_start_and_what_was_long_ago():
    starts = [900.0, 900.0, 50.0, 50.0, 50.0, 3000.0, 60.0]
    entries = rows(
        *[spell for s in starts for spell in (("paused", 9.0), ("start", s), ("train", 9.0))], ("drain", 1.0)
    )
    assert of(entries).start_s == 50.0


def test_a_start_that_never_trains_and_a_drain_that_nothing_is_known_of_teach_nothing():
    assert learn(rows(("start", 40.0), ("drain", 5.0), ("start", 7.0)))["a"].seconds == {}
    torn = [*rows(("train", 9.0), ("drain", 5.0)), *rows(("paused", 9.0), at=500.0)]
    assert learn(torn)["a"].seconds == {}, "the controller was away when the drain ended"


def test_waiting_after_a_start_or_for_a_gap_is_no_exchange():
    waits = rows(
        ("start", 9.0),
        ("sync", 200.0),
        ("train", 9.0),
        ("hold", 300.0),
        ("sync", 99.0),
        ("train", 1.0),
        ("paused", 1.0),
    )
    assert "sync" not in learn(waits)["a"].seconds


def test_power_is_learned_from_rows_that_were_measured_by_phase():
    measured = rows(
        ("paused", 9.0), ("train", 9.0), ("paused", 9.0), ("train", 1.0), watts=1234.0, method="nvml-total-energy"
    )
    found = of(measured)
    assert (found.train_w, found.paused_w, found.idle_w) == (1234.0, 1234.0, 500.0)


def test_sites_are_learned_apart_and_going_on_equals_reading_all_rows_again():
    entries = [
        *rows(*WINDOW, ("paused", 9.0)),
        *rows(("paused", 9.0), ("start", 70.0), ("train", 9.0), ("drain", 2.0), site="b"),
    ]
    for cut in range(len(entries)):
        assert learn(entries[cut:], learn(entries[:cut])) == learn(entries)
    assert of(entries, "b").start_s == pytest.approx(85.0)
