"""`curtail simulate --plot`: pictures of a plan that agree with its figures."""

from __future__ import annotations

import json
import random
import re
import struct
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from curtail import __main__ as entry
from curtail.carbon.lower_bound import bound_kg
from curtail.commands.simulate.run import Options, simulate
from curtail.commands.simulate.timeline import Timeline, grown, held_curve, oracle_course, shown_windows
from curtail.errors import CurtailError, DiskError, UsageError
from curtail.grid.trace import Trace, load_trace

SVG = "{http://www.w3.org/2000/svg}"
HOUR = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Four hours of two regions, with windows, a gap in one, and readings that change within windows."""
    chance = random.Random(7)
    lines = ["point_time,NORTH,A long name of a region"]
    for index in range(48):
        north = chance.uniform(20, 90) if 6 <= index < 30 else chance.uniform(300, 500)
        other = chance.uniform(0, 60) if 20 <= index < 44 else chance.uniform(150, 700)
        words = "" if index == 33 else f"{other:.1f}"
        lines.append(f"2026-01-01 {index // 12:02}:{index % 12 * 5:02}:00+00:00,{north:.1f},{words}")
    found = tmp_path / "trace.csv"
    found.write_text("\n".join(lines) + "\n")
    return found


def options(path: Path, **changes) -> Options:
    regions = ("NORTH", "A long name of a region")
    return Options(path, "g/kWh", regions, 9000.0, 2024.0, 468.0, forecast="perfect", **changes)


def played(path: Path, **changes) -> tuple[dict, Timeline, Trace]:
    chosen = options(path, **changes)
    trace = load_trace(path, "g/kWh", chosen.regions)
    course = Timeline(trace.start, trace.period)
    found, _ = simulate(chosen, trace, "perfect", course.note)
    return found, course, trace


def run(path: Path, *flags: str) -> int:
    fixed = ["--unit", "g/kWh", "--work-site-seconds", "9000", "--power-train-w", "2024", "--power-idle-w", "468"]
    regions = ["--regions", "NORTH,A long name of a region", "--forecast", "perfect"]
    return entry.run(["simulate", "--trace", str(path), *regions, *fixed, *flags])


# -- what is drawn is what was booked --------------------------------------------


def test_the_curves_end_at_the_figures_of_the_plan(path):
    found, course, _ = played(path)
    attributed, reserved = course.growth(standing=False), course.growth(standing=True)
    assert found["starts"] >= 2 and found["kg_reserved"] > found["kg_attributed"] > 0
    assert attributed[-1][1] == pytest.approx(found["kg_attributed"], rel=1e-9)
    assert reserved[-1][1] == pytest.approx(found["kg_reserved"], rel=1e-9)
    assert attributed == sorted(attributed) and attributed[-1][0] == pytest.approx(
        HOUR * found["runtime_h"] + 1767225600
    )


def test_energy_by_phase_adds_up_to_the_plan(path):
    found, course, _ = played(path)
    standing = sum(phases.get("paused", 0.0) for phases in course.kwh.values())
    whole = sum(sum(phases.values()) for phases in course.kwh.values())
    assert standing == pytest.approx(found["standing_kwh"], rel=1e-9)
    assert whole == pytest.approx(found["standing_kwh"] + found["energy_kwh"], rel=1e-9)


def test_the_stretches_of_training_are_those_of_the_plan(path):
    found, course, _ = played(path)
    for region, site in found["sites"].items():
        spans = course.lane(region)
        assert sum(b - a for a, b, phase in spans if phase == "train") == pytest.approx(site["train_s"])
        assert sum(phase == "start" for _, _, phase in spans) == site["starts"]
        assert all(a < b for a, b, _ in spans) and "paused" not in {phase for _, _, phase in spans}


@pytest.mark.parametrize(("hours", "cap", "work"), [(4.0, 100.0, 9000.0), (2.0, None, 9000.0), (4.0, 100.0, 77.0)])
def test_the_curve_of_the_bound_ends_at_the_bound(path, hours, cap, work):
    names = options(path).regions
    trace = load_trace(path, "g/kWh", names)
    points = oracle_course(trace, names, hours * HOUR, cap, work, 2024.0)
    assert points[-1][1] == pytest.approx(bound_kg(trace, names, hours * HOUR, cap or 1e9, work, 2024.0), rel=1e-12)
    assert points == sorted(points) and points[0] == (trace.start, 0.0)


def test_a_bound_that_does_not_hold_the_work_has_no_curve(path):
    names = options(path).regions
    assert oracle_course(load_trace(path, "g/kWh", names), names, HOUR, 100.0, 9e9, 2024.0) == []


def test_a_curve_is_level_where_nothing_was_emitted():
    assert grown([(0.0, 1.0, 2.0), (5.0, 6.0, 1.0), (5.0, 6.0, 1.0)], 0.0, 9.0) == [
        (0.0, 0.0), (1.0, 2.0), (5.0, 2.0), (6.0, 4.0), (9.0, 4.0),
    ]  # fmt: skip


def test_a_gap_of_the_trace_is_a_gap_of_its_curve_and_no_window():
    trace = Trace("t", (0.0, 300.0, 600.0, 1500.0), {"A": (50.0, None, 40.0, 30.0)}, 300.0)
    assert held_curve(trace, "A", 1600.0) == [(0.0, 50.0), (300.0, None), (600.0, 40.0), (900.0, None), (1500.0, 30.0)]
    assert shown_windows(trace, "A", 100.0, 100.0, 1600.0) == [(100.0, 300.0), (600.0, 900.0), (1500.0, 1600.0)]


def test_many_stretches_are_drawn_as_few_and_keep_their_ends():
    course = Timeline(0.0, 300.0)
    course.phases["a"] = [(2.0 * n, 2.0 * n + 1, "train") for n in range(10_000)]
    found = course.lane("a")
    assert len(found) <= 2001 and (found[0][0], found[-1][1]) == (0.0, 19_999.0)


# -- the files -----------------------------------------------------------------


def test_a_page_has_every_picture_and_the_text_and_loads_nothing(path, tmp_path, capsys):
    assert run(path, "--plot", str(tmp_path / "p.html"), "--deadline-h", "3.9", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["complete"] and f"the plot is in {tmp_path / 'p.html'}" in shown.err
    html = (tmp_path / "p.html").read_text(encoding="utf-8")
    root = ET.fromstring(html.removeprefix("<!DOCTYPE html>\n"))
    assert [picture.attrib["aria-label"] for picture in root.iter("svg")] == [
        "MCI of region NORTH", "MCI of region A long name of a region", "cumulative kgCO2, attributed",
        "cumulative kgCO2, reserved", "energy by site and phase",
    ]  # fmt: skip
    words = "".join(root.itertext())
    assert "the deadline is met" in words and words.count("end of the run") == 2 and "threshold 100" in words
    assert not re.search(r"https?:|<script|src=|href=|url\(|@import|\b(nan|inf)\b", html)


def test_an_svg_and_a_png_hold_the_same_pictures(path, tmp_path, capsys):
    assert run(path, "--plot", str(tmp_path / "p.svg")) == 0
    root = ET.fromstring((tmp_path / "p.svg").read_text())
    assert len(root.findall(f"{SVG}svg")) == 5
    assert run(path, "--plot", str(tmp_path / "p.PNG")) == 0
    data = (tmp_path / "p.PNG").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert (width, height) == (2 * float(root.attrib["width"]), round(2 * float(root.attrib["height"])))
    assert len(data) > 20_000


def test_a_sweep_is_drawn_over_its_values_with_hollow_dots_where_it_did_not_finish(path, tmp_path, capsys):
    sweep = ("--sweep", "work-site-seconds=3000:15000:3000", "--json", "--plot", str(tmp_path / "s.html"))
    assert run(path, *sweep) == 0
    rows = json.loads(capsys.readouterr().out)
    left = sum(not row["complete"] for row in rows)
    html = (tmp_path / "s.html").read_text(encoding="utf-8")
    root = ET.fromstring(html.removeprefix("<!DOCTYPE html>\n"))
    assert len(list(root.iter("svg"))) == 4 and "hollow: not finished" in html
    assert 0 < left < len(rows) == 5
    dots = [one.attrib["class"] for one in root.iter("circle")]
    assert dots.count("open-dot") == 4 * left and dots.count("kg-dot") == 5


def test_a_plan_that_does_not_finish_says_that_the_trace_ended(path, tmp_path, capsys):
    assert run(path, "--work-site-seconds", "900000", "--plot", str(tmp_path / "p.svg")) == 0
    assert "end of the trace" in (tmp_path / "p.svg").read_text()


def test_a_name_that_tells_no_form_is_refused_before_anything_is_played(path, tmp_path, capsys):
    assert run(path, "--plot", str(tmp_path / "p.pdf")) == UsageError.exit_code
    shown = capsys.readouterr()
    assert "'p.pdf'" in shown.err and ".html, .svg, .png" in shown.err and shown.out == ""


def test_without_the_library_a_png_is_refused_before_anything_is_played(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert run(path, "--plot", str(tmp_path / "p.png")) == CurtailError.exit_code
    shown = capsys.readouterr()
    assert "pip install resvg-py" in shown.err and shown.out == ""


def test_a_folder_that_is_not_there_is_an_error(path, tmp_path, capsys):
    assert run(path, "--plot", str(tmp_path / "no" / "p.svg")) == DiskError.exit_code
    assert "does not exist" in capsys.readouterr().err
