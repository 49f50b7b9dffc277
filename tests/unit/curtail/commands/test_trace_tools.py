"""Traces of others brought in, shown in the terminal, and invented for a year."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from curtail import __main__ as entry
from curtail.commands.trace.importer import import_traces, read_any
from curtail.commands.trace.show import blocks, windows
from curtail.commands.trace.synth_year import KINDS, Region, write_year, year
from curtail.errors import DataError, NotFound, UsageError
from curtail.grid.trace import Trace, load_trace

T0 = 1_767_225_600.0  # 2026-01-01 00:00 UTC
POUNDS = 0.45359237
RECORDED = Path(__file__).resolve().parents[5] / "shared" / "data" / "mci_2026-01-11_18h.csv"
WIDE = "point_time,CAISO,DE\n2026-01-01 00:00:00+00:00,100,\n2026-01-01 01:05:00+01:00,200,7\n"
LONG = "point_time,value\n2026-01-01T00:00:00+00:00,100\n2026-01-01T00:05:00+00:00,200\n"
OFFSET = ",CAISO,DE\n0,100,7\n300,200,8\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


# -- import -----------------------------------------------------------------------------


def test_the_three_forms_become_one(tmp_path):
    long = write(tmp_path, "CAISO_NORTH_co2_moer_2026-01-01_2026-01-02.csv", LONG)
    assert read_any(long, "lb/MWh") == {"CAISO_NORTH": {T0: 100 * POUNDS, T0 + 300: 200 * POUNDS}}
    wide = write(tmp_path, "w.csv", WIDE)
    assert read_any(wide, "g/kWh") == {"CAISO": {T0: 100.0, T0 + 300: 200.0}, "DE": {T0: None, T0 + 300: 7.0}}
    offset = write(tmp_path, "o.csv", OFFSET)
    assert read_any(offset, "g/kWh", T0)["DE"] == {T0: 7.0, T0 + 300: 8.0}


def test_what_was_imported_is_a_trace_with_all_digits(tmp_path, capsys):
    first = write(tmp_path, "CAISO_NORTH_co2_moer_a_b.csv", LONG)
    later = LONG.replace("T00:00", "T00:10").replace("T00:05", "T00:15")
    second = write(tmp_path, "CAISO_NORTH_co2_moer_b_c.csv", later)
    other = write(tmp_path, "SPP_TX_co2_moer_a_b.csv", LONG)
    out = tmp_path / "out.csv"
    assert import_traces([first, second, other], "lb/MWh", out, None, ["NORTH=CAISO_NORTH", "SPP_TX"]) == 0
    assert "4 readings of 2 regions, every 300 s" in capsys.readouterr().out
    trace = load_trace(out, "g/kWh")
    assert trace.values["NORTH"] == tuple(v * POUNDS for v in (100.0, 200.0, 100.0, 200.0))
    assert trace.values["SPP_TX"] == (100 * POUNDS, 200 * POUNDS, None, None)
    assert trace.start == T0 and trace.period == 300.0


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "point_time,A\n2026-01-01 00:00,5\n2026-01-01 00:05,5\n", "has no time zone"),
        ("a.csv", "when,A\n2026-01-01 00:00+00:00,5\n2026-01-01 00:05+00:00,5\n", "neither point_time nor a number"),
        ("a.csv", "point_time,A\n2026-01-01 00:00+00:00,5\n", "fewer than two rows"),
        ("a.csv", "point_time,A,A\n1,2,3\n1,2,3\n", "no header with a name for each"),
        ("a.csv", "point_time,A\n2026-01-01 00:05+00:00,5\n2026-01-01 00:00+00:00,5\n", "is not later than"),
        ("a.csv", "point_time,A\n2026-01-01 00:05+00:00,5\n2026-01-01 00:10+00:00,9999\n", "above 3000"),
        ("a.csv", "point_time,A\n2026-01-01 00:05+00:00,5\n2026-01-01 00:10+00:00,x\n", "is not a number"),
        ("a.csv", "point_time,A\n2026-01-01 00:05+00:00,5\n2026-01-01 00:10+00:00,5,6\n", "has 3 columns"),
        ("X_co2_aoer_a_b.csv", LONG, "co2_aoer, which is not a marginal intensity"),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_by_line_and_nothing_is_written(tmp_path, name, text, words):
    with pytest.raises(DataError, match=words):
        import_traces([write(tmp_path, name, text)], "g/kWh", tmp_path / "out.csv", None, [])
    assert not (tmp_path / "out.csv").exists()


def test_files_that_disagree_or_do_not_fit_are_refused(tmp_path):
    one = write(tmp_path, "A_co2_moer_1_2.csv", LONG)
    two = write(tmp_path, "A_co2_moer_2_3.csv", LONG.replace(",200", ",201"))
    with pytest.raises(DataError, match="another value for A"):
        import_traces([one, two], "g/kWh", tmp_path / "out.csv", None, [])
    hourly = write(tmp_path, "h.csv", "point_time,B\n2026-01-01 00:00Z,5\n2026-01-01 01:00Z,5\n")
    with pytest.raises(DataError, match="A 300 s, B 3600 s"):
        import_traces([one, hourly], "g/kWh", tmp_path / "out.csv", None, [])


def test_seconds_need_a_start_and_only_they_do(tmp_path):
    offset, wide = write(tmp_path, "o.csv", OFFSET), write(tmp_path, "w.csv", WIDE)
    with pytest.raises(UsageError, match="are in seconds"):
        import_traces([offset], "g/kWh", tmp_path / "out.csv", None, [])
    with pytest.raises(UsageError, match="has no time zone"):
        import_traces([offset], "g/kWh", tmp_path / "out.csv", "2026-01-01T00:00", [])
    with pytest.raises(UsageError, match="--start is only for files with times in seconds"):
        import_traces([wide], "g/kWh", tmp_path / "out.csv", "2026-01-01T00:00Z", [])
    with pytest.raises(UsageError, match="no region 'FR': they have CAISO, DE"):
        import_traces([wide], "g/kWh", tmp_path / "out.csv", None, ["X=FR"])
    with pytest.raises(NotFound, match="does not exist"):
        import_traces([tmp_path / "none.csv"], "g/kWh", tmp_path / "out.csv", None, [])
    assert import_traces([offset], "g/kWh", tmp_path / "out.csv", "2026-01-01T01:00+01:00", []) == 0
    assert load_trace(tmp_path / "out.csv", "g/kWh").start == T0


# -- show -------------------------------------------------------------------------------


def trace(*values: float | None, period: float = 300.0) -> Trace:
    return Trace("t", tuple(T0 + period * i for i in range(len(values))), {"A": values}, period)


def test_windows_are_strictly_below_and_end_where_nothing_is_known():
    found = windows(trace(50.0, 70.0, 100.0, None, 10.0, None, 20.0), "A", 100.0)
    assert [(s.start - T0, s.stop - T0, s.mean, s.highest) for s in found] == [
        (0.0, 600.0, 60.0, 70.0), (1200.0, 1500.0, 10.0, 10.0), (1800.0, 2100.0, 20.0, 20.0),
    ]  # fmt: skip


def test_a_hole_in_the_file_ends_a_window():
    holed = Trace("t", (T0, T0 + 300.0, T0 + 3600.0), {"A": (1.0, 1.0, 1.0)}, 300.0)
    assert [(s.start - T0, s.stop - T0) for s in windows(holed, "A", 100.0)] == [(0.0, 600.0), (3600.0, 3900.0)]


@pytest.mark.skipif(not RECORDED.exists(), reason="the recorded trace is not here")
def test_windows_of_the_recorded_trace_are_those_that_were_counted_by_hand():
    recorded = load_trace(RECORDED, "g/kWh")
    hours = {name: sum(s.stop - s.start for s in windows(recorded, name, 100.0)) / 3600.0 for name in recorded.values}
    assert hours == pytest.approx({"CAISO_NORTH": 6.0833, "SPP_TX": 6.8333, "NEM_SA": 10.5, "DE": 0.0}, abs=1e-3)


def test_blocks_show_the_mean_of_their_stretch_and_colour_what_is_below():
    found = blocks(trace(0.0, 0.0, 800.0, 800.0, 50.0, 750.0, None, None), "A", 4, 100.0, 0.0, 800.0)
    assert found == [("▁", "green"), ("█", ""), ("▅", "yellow"), (" ", "")]


def test_the_command_prints_plot_and_windows(tmp_path, capsys):
    path = write(tmp_path, "t.csv", "point_time,A\n" + "".join(
        f"2026-01-01 0{hour}:00Z,{value}\n" for hour, value in enumerate((50, 60, 500, 500))
    ))  # fmt: skip
    assert entry.run(["trace", "show", str(path), "--unit", "g/kWh", "--width", "40"]) == 0
    out = capsys.readouterr().out
    assert "A: 1 windows below 100 g/kWh, 2.00 h, 50.0 %" in out
    assert "2026-01-01 00:00Z to 2026-01-01 02:00Z      120 min  mean  55.0, highest  60.0 g/kWh" in out
    line = next(line for line in out.splitlines() if line.startswith("A  "))
    assert line == "A  " + "▁" * 20 + "█" * 20


def test_a_trace_without_values_is_refused(tmp_path, capsys):
    path = write(tmp_path, "t.csv", "point_time,A\n2026-01-01 00:00Z,\n2026-01-01 01:00Z,\n")
    assert entry.run(["trace", "show", str(path), "--unit", "g/kWh"]) == 2
    assert "has no value in A" in capsys.readouterr().err


# -- a year -------------------------------------------------------------------------------

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_year_of_the_model_has_the_shape_of_its_kind():
    share = {}
    for kind in KINDS:
        values = year(Region("R", kind), START, 365.0, 1800.0, seed=1)
        assert len(values) == 365 * 48 and min(values) >= 0.0 and max(values) < 900.0
        share[kind] = sum(value < 100.0 for value in values) / len(values)
    assert 0.03 < share["solar"] < 0.2 and 0.1 < share["wind"] < 0.4 and 0.05 < share["mixed"] < 0.4
    assert share["thermal"] < 0.01


def test_the_sun_is_thrown_away_at_local_noon_and_hardly_in_winter():
    values = year(Region("R", "solar", offset_h=-8.0), START, 365.0, 3600.0, seed=2)
    low = [index for index, value in enumerate(values) if value < 100.0]
    assert {index % 24 for index in low} <= set(range(15, 26)), "07:00 to 17:00 at UTC-8"
    in_summer = sum(3 <= index // 24 // 30.5 < 9 for index in low)
    assert in_summer > 2 * (len(low) - in_summer)


def test_equal_seeds_give_equal_years_and_regions_do_not_depend_on_each_other(tmp_path):
    assert year(Region("R", "wind"), START, 3.0, 300.0, 1) == year(Region("R", "wind"), START, 3.0, 300.0, 1)
    assert year(Region("R", "wind"), START, 3.0, 300.0, 1) != year(Region("R", "wind"), START, 3.0, 300.0, 2)
    assert year(Region("R", "wind"), START, 3.0, 300.0, 1) != year(Region("Q", "wind"), START, 3.0, 300.0, 1)


def test_a_written_year_is_a_trace(tmp_path, capsys):
    out = tmp_path / "y.csv"
    assert write_year(out, ["W:solar:-8", "N:wind"], 2.0, 300, "2026-06-01T00:00:00Z", 1) == 0
    read = load_trace(out, "g/kWh")
    assert set(read.values) == {"W", "N"} and len(read.stamps) == 576 and read.period == 300.0
    assert "W: solar, below 100 g/kWh" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--region", "A"], "needs either --segment or --days: give one of them"),
        (["--region", "A", "--segment", "60:", "--days", "3"], "give one of them"),
        (["--region", "A", "--days", "3"], "is not valid with --days"),
        (["--region", "A:lava", "--days", "3"], "is not valid with --days"),
        (["--region", "A:wind:99", "--days", "3"], "is not valid with --days"),
        (["--region", "A:wind", "--region", "A:solar", "--days", "3"], "named twice"),
        (["--region", "A:wind", "--days", "0"], "invalid value for --days: 0"),
        (["--region", "A:wind", "--days", "3", "--start", "2026-01-01"], "no time zone"),
    ],
)
def test_a_senseless_year_is_refused(tmp_path, capsys, arguments, words):
    assert entry.run(["trace", "synth", "--out", str(tmp_path / "x.csv"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
