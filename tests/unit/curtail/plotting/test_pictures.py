"""Pictures alone: an SVG that needs nothing, a PNG with its words in the shipped font, names for files."""

from __future__ import annotations

import re
import struct
import sys
import xml.etree.ElementTree as ET
import zlib
from dataclasses import replace

import pytest

from curtail.errors import CurtailError
from curtail.plotting import png
from curtail.plotting.charts import Line, Mark, Signal, energy_chart, phase_keys, signal_chart, time_chart, value_chart
from curtail.plotting.figure import MARGIN, Picture, alone, file_names
from curtail.plotting.png import SCALE, to_png
from curtail.plotting.svg import WIDTH
from curtail.plotting.theme import DARK, LIGHT, SHAPES, plain, words_style

DAY = 1_767_225_600.0
SVG = "{http://www.w3.org/2000/svg}"


def pixels(data: bytes) -> tuple[int, int, set[bytes]]:
    """Width, height and the colours (RGB) of a PNG of 8 bits that is not interlaced."""
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    assert (depth, interlaced) == (8, 0) and kind in (2, 6)
    size, at, body = {2: 3, 6: 4}[kind], 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            body += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw, stride, found = zlib.decompress(body), width * size, set()
    above = bytearray(stride)
    for y in range(height):
        start = y * (stride + 1)
        line = _unfiltered(raw[start], bytearray(raw[start + 1 : start + 1 + stride]), above, size)
        found |= {bytes(line[x : x + 3]) for x in range(0, stride, size)}
        above = line
    return width, height, found


def _unfiltered(kind: int, line: bytearray, above: bytearray, size: int) -> bytearray:
    for x in range(len(line)):
        left = line[x - size] if x >= size else 0
        corner = above[x - size] if x >= size else 0
        up = above[x]
        guess = left + up - corner
        near = min((left, up, corner), key=lambda value: abs(guess - value))
        line[x] = (line[x] + (0, left, up, (left + up) // 2, near)[kind]) % 256
    return line


def chart(region: str = "NORTH") -> Picture:
    known = Signal(region, [(DAY, 450.0), (DAY + 600, 50.0)], False, [(DAY + 600, DAY + 3600)], 100.0, 50.0, 450.0)
    lanes = [("a", [(DAY + 700, DAY + 3000, "phase-train", "a train")])]
    keys = (("window", "curtailed"), ("line:threshold", "threshold"), *phase_keys())
    return signal_chart(known, DAY, DAY + 3600, lanes, keys, [Mark(DAY + 3500, "end of the run")])


def rgb(colour: str) -> bytes:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return bytes.fromhex(digits)


def test_a_png_has_the_size_of_its_picture_and_its_colours():
    picture = chart()
    twice = to_png(alone([picture]))
    assert struct.unpack(">I", twice[16:20])[0] == SCALE * (picture.width + 2 * MARGIN)
    width, height, colours = pixels(to_png(alone([picture]), 1.0))
    assert width == picture.width + 2 * MARGIN and height > picture.height
    assert {rgb("#ffffff"), rgb(LIGHT["window"]), rgb(LIGHT["train"])} <= colours and len(colours) > 20


def test_the_words_of_a_png_are_drawn_without_any_font_of_the_machine():
    def colours_of(words: str) -> set[bytes]:
        return pixels(to_png(alone([Picture("x", words, 10.0, (), width=200.0)])))[2]

    assert rgb(LIGHT["ink"]) in colours_of("Größe, Ž, Ω, Я …")
    assert colours_of("") == {rgb("#ffffff")}


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(CurtailError, match="resvg-py, which is not installed") as caught:
        to_png(alone([chart()]))
    assert "pip install resvg-py" in (caught.value.remedy or "")


def test_without_the_font_no_picture_without_words_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(png, "FONT", tmp_path / "gone.ttf")
    with pytest.raises(CurtailError, match=r"gone\.ttf is missing"):
        to_png(alone([chart()]))


def test_what_is_no_svg_is_refused():
    with pytest.raises(CurtailError, match="cannot render"):
        to_png("<svg")


def test_an_svg_alone_names_nothing_outside_and_knows_its_colours():
    svg = alone([chart()], "a <plan> & more")
    root = ET.fromstring(svg)
    assert root.find(f"{SVG}style") is not None and "var(" not in svg and "url(" not in svg and "href" not in svg
    assert set(re.findall(r"https?://[^\"]*", svg)) == {"http://www.w3.org/2000/svg"}
    words = "".join(root.itertext())
    assert "a <plan> & more" in words and "end of the run" in words and "gCO2/kWh" in words


def test_halves_stand_side_by_side_and_wholes_below_each_other():
    half = replace(chart(), width=WIDTH / 2)
    inner = ET.fromstring(alone([chart(), half, half, chart()])).findall(f"{SVG}svg")
    places = [(float(one.attrib["x"]), float(one.attrib["y"])) for one in inner]
    assert [x for x, _ in places] == [0.0, 0.0, WIDTH / 2, 0.0]
    assert places[0][1] < places[1][1] == places[2][1] < places[3][1]


def test_names_of_files_are_safe_and_never_twice_the_same():
    names = ["mci-A", "mci-a", "../../etc/passwd", "", "...", "x" * 300, "mci-A"]
    found = file_names([replace(chart(), name=name) for name in names], "png")
    assert found[:3] == ["mci-A.png", "mci-a-2.png", "etc_passwd.png"]
    assert len({name.lower() for name in found}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.png", name) and len(name) < 100 for name in found)


def test_every_colour_that_a_rule_names_exists_in_light_and_dark():
    named = set(re.findall(r"var\(--([a-z]+)\)", SHAPES + words_style("x")))
    assert named and named <= LIGHT.keys() == DARK.keys()
    assert "var(" not in plain(SHAPES)


def test_every_class_of_a_phase_has_a_colour():
    for name, _ in phase_keys():
        assert f".{name}{{fill:" in SHAPES, name


def test_charts_without_a_value_are_none():
    assert time_chart("x", "x", "kg", [Line("kg", "", [])], (DAY, DAY + 1)) is None
    assert value_chart("x", "x", "kg", "n", [Line("kg", "", [(1.0, None)])]) is None
    assert energy_chart([("a", {"train": 0.0})]) is None


def test_only_phases_that_drew_power_are_in_the_legend():
    picture = energy_chart([("a", {"train": 2.0, "hold": 0.0}), ("b", {"paused": 1.0})])
    assert picture is not None and [words for _, words in picture.keys] == ["train", "paused"]


def test_a_single_value_of_a_sweep_has_a_place():
    picture = value_chart("x", "x", "kg", "n", [Line("kg", "", [(5.0, 1.0)])])
    assert picture is not None
    places = re.findall(r'<circle cx="([\d.]+)"', "".join(picture.parts))
    assert len(places) == 1 and 0.2 * picture.width < float(places[0]) < 0.9 * picture.width
