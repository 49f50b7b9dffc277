"""Readings: what counts as knowing."""

from __future__ import annotations

import math

import pytest

from curtail.grid.reading import Reading, check_value, to_g_per_kwh, unknown, unusable

FRESH = Reading("A", 50.0, 1000.0, 1300.0, "test")


def test_a_fresh_value_is_usable():
    assert unusable(FRESH, 1100.0, 600.0) is None


def test_no_reading_is_unusable_and_says_so():
    assert unusable(None, 0.0, 600.0) == "no reading has arrived yet"


def test_an_unknown_reading_gives_its_own_reason():
    assert unusable(unknown("A", 10.0, "test", "the trace ended"), 10.0, 600.0) == "the trace ended"


def test_a_value_is_stale_only_after_max_age():
    assert unusable(FRESH, 1600.0, 600.0) is None
    assert "stale" in (unusable(FRESH, 1600.1, 600.0) or "")


def test_a_value_from_the_future_is_refused():
    assert "future" in (unusable(FRESH, 100.0, 600.0) or "")


def test_a_percentile_sized_number_of_the_wrong_unit_is_refused_only_when_impossible():
    assert check_value(3001.0) is not None
    assert check_value(-20.0) is None
    assert check_value(math.nan) is not None


def test_a_hundred_grams_are_two_hundred_twenty_pounds():
    assert to_g_per_kwh(220.46226, "lb/MWh") == pytest.approx(100.0, abs=1e-4)
    with pytest.raises(ValueError, match="unknown unit"):
        to_g_per_kwh(1.0, "percentile")
