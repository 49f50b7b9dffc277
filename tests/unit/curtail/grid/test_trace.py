"""Traces as a source of readings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from controller.signals.replay import TraceSource
from curtail.errors import DataError, NotFound
from curtail.grid.trace import load_trace

ROWS = "point_time,A,B\n2026-01-01 00:00:00+00:00,100,\n2026-01-01 00:05:00+00:00,220.46226,7\n"
T0 = 1767225600.0


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(text)
    return path


def test_a_value_holds_for_one_period_from_its_stamp(tmp_path):
    trace = load_trace(write(tmp_path, ROWS), "g/kWh", ["A"])
    assert trace.period == 300.0 and trace.end == T0 + 600
    assert trace.reading("A", "r", T0 + 299).mci == 100.0
    assert trace.reading("A", "r", T0 + 300).mci == pytest.approx(220.46226)


def test_pounds_are_converted(tmp_path):
    trace = load_trace(write(tmp_path, ROWS), "lb/MWh", ["A"])
    assert trace.reading("A", "r", T0 + 300).mci == pytest.approx(100.0)


def test_before_the_start_after_the_end_and_in_an_empty_cell_it_is_unknown_with_a_reason(tmp_path):
    trace = load_trace(write(tmp_path, ROWS), "g/kWh", ["A", "B"])
    for column, now, words in (("A", T0 - 1, "starts at"), ("A", T0 + 600, "ended at"), ("B", T0, "no value")):
        reading = trace.reading(column, "r", now)
        assert reading.mci is None and words in reading.reason


def test_the_forecast_ends_dirty_where_the_trace_ends(tmp_path):
    trace = load_trace(write(tmp_path, ROWS), "g/kWh", ["A"])
    source = TraceSource(trace, {"r": "A"}, foresight=True)
    forecast = source.forecast("r", T0, 600.0)
    assert forecast is not None and forecast.points[-1] == (T0 + 600, math.inf)
    assert TraceSource(trace, {"r": "A"}, foresight=False).forecast("r", T0, 600.0) is None
    assert source.ended(T0 + 600) and not source.ended(T0 + 599)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not a trace"),
        ("time,A\n", "is not a trace"),
        ("point_time,B\n", "has no column 'A'"),
        ("point_time,A\n2026-01-01 00:00:00,5\n", "has no time zone"),
        ("point_time,A\nyesterday,5\n", "is not a time"),
        ("point_time,A\n2026-01-01 00:00+00:00,x\n", "is not a number"),
        ("point_time,A\n2026-01-01 00:00+00:00,4000\n", "above 3000"),
        ("point_time,A\n2026-01-01 00:00+00:00,5\n", "fewer than two rows"),
        ("point_time,A\n2026-01-01 00:05+00:00,5\n2026-01-01 00:00+00:00,5\n", "is not later than"),
        ("point_time,A\n2026-01-01 00:05+00:00,5,6\n", "has 3 columns"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_by_line(tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence):
        load_trace(write(tmp_path, text), "g/kWh", ["A"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"none\.csv"):
        load_trace(tmp_path / "none.csv", "g/kWh", ["A"])
