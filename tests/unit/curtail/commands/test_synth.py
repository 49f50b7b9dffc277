"""The invented trace: its levels, its course and its file."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

import pytest

from curtail.commands.trace.synth import Segment, course, to_csv
from curtail.errors import UsageError

REGIONS = ("NORTH", "SOUTH")
START = datetime(2026, 3, 1, 10, tzinfo=UTC)
SEGMENTS: list[Segment] = [(600, set()), (900, {"NORTH"}), (300, {"NORTH", "SOUTH"})]


def test_a_region_is_low_exactly_while_its_segment_says_so() -> None:
    rows = course(REGIONS, SEGMENTS, 300, START)
    assert [[value < 100 for value in row.mci] for row in rows] == [
        [False, False],
        [False, False],
        [True, False],
        [True, False],
        [True, False],
        [True, True],
    ]


def test_values_stay_in_their_band_whatever_the_seed() -> None:
    for seed in range(20):
        for row in course(REGIONS, [(86_400, {"NORTH"})], 300, START, seed):
            assert 20 <= row.mci[0] <= 80
            assert 350 <= row.mci[1] <= 650


def test_a_seed_gives_one_course_and_another_seed_another() -> None:
    first = course(REGIONS, SEGMENTS, 300, START, seed=3)
    assert first == course(REGIONS, SEGMENTS, 300, START, seed=3)
    assert first != course(REGIONS, SEGMENTS, 300, START, seed=4)


def test_the_ripple_moves() -> None:
    values = [row.mci[1] for row in course(REGIONS, [(3000, set())], 300, START)]
    assert len(set(values)) > 5


def test_the_file_is_wide_and_in_utc() -> None:
    rows = course(REGIONS, SEGMENTS, 300, START)
    table = list(csv.DictReader(io.StringIO(to_csv(REGIONS, rows))))
    assert list(table[0]) == ["point_time", "NORTH", "SOUTH"]
    assert [line["point_time"] for line in table[:2]] == ["2026-03-01T10:00:00Z", "2026-03-01T10:05:00Z"]
    assert [float(line["SOUTH"]) for line in table] == [row.mci[1] for row in rows]


@pytest.mark.parametrize(
    ("regions", "segments", "period", "start"),
    [
        ((), SEGMENTS, 300, START),
        (("A", "A"), [(60, set())], 300, START),
        (REGIONS, [], 300, START),
        (REGIONS, [(0, set())], 300, START),
        (REGIONS, [(60, {"WEST"})], 300, START),
        (REGIONS, SEGMENTS, 0, START),
        (REGIONS, [(1e30, set())], 300, START),
        (REGIONS, [(float("nan"), set())], 300, START),
        (REGIONS, SEGMENTS, 300, datetime(2026, 3, 1, 10)),
    ],
)
def test_senseless_courses_are_refused(
    regions: tuple[str, ...], segments: list[Segment], period: float, start: datetime
) -> None:
    with pytest.raises(UsageError):
        course(regions, segments, period, start)
