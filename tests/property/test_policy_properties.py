"""Policy: what holds for every reading."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from curtail.grid.reading import Reading, unknown
from curtail.policy.rules import RegionRule, Window, judge, remember

values = st.one_of(st.none(), st.floats(-500, 4000), st.just(float("nan")))
times = st.floats(0, 10_000)


def make(value: float | None, at: float) -> Reading:
    return unknown("A", at, "t", "nothing") if value is None else Reading("A", value, at, at + 300, "t")


@given(values, times, times, st.floats(-100, 1500), st.floats(0, 500))
def test_raising_the_threshold_never_loses_a_permit(value, at, now, threshold, extra):
    low, high = RegionRule("A", threshold, 600.0), RegionRule("A", threshold + extra, 600.0)
    reading = make(value, at)
    granted_low = judge(low, remember(Window(), low, reading, now), reading, now).granted
    granted_high = judge(high, remember(Window(), high, reading, now), reading, now).granted
    assert granted_high or not granted_low


@given(values, times, times, st.floats(0, 2000))
def test_no_permit_outlives_its_reading(value, at, now, max_age):
    rule = RegionRule("A", 100.0, max_age)
    reading = make(value, at)
    found = judge(rule, remember(Window(), rule, reading, now), reading, now)
    if found.granted:
        assert found.until <= at + max_age
        assert found.curtailed
    else:
        assert found.reason
