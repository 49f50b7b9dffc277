"""The always-on comparison that is brought up to date, against the one that is computed from all readings."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from controller.ledger import always_on as alwayson
from controller.ledger.always_on import AlwaysOn
from controller.store import Transaction
from controller.store.schema import migrate
from curtail.carbon.accounting import always_on_kg
from curtail.grid.reading import JOULES_PER_KWH

STARTED = 1_768_000_000.0
WATTS = {"A": 2530.0, "B": 700.0}
MCI = st.one_of(st.none(), st.floats(-50.0, 900.0))
REGION = st.sampled_from(sorted(WATTS))
READING = st.tuples(st.just("reading"), REGION, st.floats(-2000.0, 20_000.0), MCI)
TRAINED = st.tuples(st.just("trained"), st.floats(0.0, 3000.0))
SITES = st.tuples(st.just("sites"), REGION, st.integers(0, 4))
UNDONE = st.just(("undone",))
STEPS = st.lists(st.one_of(READING, READING, READING, TRAINED, TRAINED, SITES, UNDONE), max_size=40)


@contextlib.contextmanager
def empty_store():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    with contextlib.closing(connection):
        migrate(connection, Path("memory"))
        yield Database(connection)


def anew(tx, train_seconds, counts):
    """The figure from all readings, and how large the terms are that it is the sum of."""
    rows, sizes = [], []
    for region, count in counts.items():
        known = [(point, mci) for point, mci in tx.readings(region) if mci is not None]
        rows += [(WATTS[region], known)] * count
        sizes += [(WATTS[region], [(point, abs(mci)) for point, mci in known])] * count
    return always_on_kg(train_seconds, STARTED, rows), always_on_kg(train_seconds, STARTED, sizes)


def same(tx, always_on, trained, counts):
    counts = {region: count for region, count in counts.items() if count}
    expected, size = anew(tx, trained, counts)
    found = always_on.kg(tx, trained, {region: (count, WATTS[region]) for region, count in counts.items()})
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-9, abs=1e-9 * size))


@pytest.mark.parametrize("marks", [2, alwayson.MARKS])
@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_it_is_the_figure_from_all_readings_whatever_comes_late_joins_or_goes_back(marks, steps):
    with empty_store() as db, patch.object(alwayson, "MARKS", marks):
        tx, always_on = Transaction(db), AlwaysOn(STARTED)
        trained, counts = 1000.0, dict.fromkeys(WATTS, 1)
        for kind, *values in steps:
            if kind == "reading":
                region, after, mci = values
                tx.add_reading(region, STARTED + after, mci, "test", "")
            elif kind == "trained":
                trained += values[0]
            elif kind == "sites":
                counts[values[0]] = values[1]
            else:
                for undo in reversed(tx.after_rollback):
                    undo()
            same(tx, always_on, trained, counts)


@settings(max_examples=15, deadline=None)
@given(joins=st.lists(st.integers(1, 30), min_size=1, max_size=6), late=st.lists(st.floats(0.0, 300_000.0), max_size=4))
def test_over_a_thousand_readings_it_goes_back_to_a_mark_and_stays_exact(joins, late):
    with empty_store() as db, patch.object(alwayson, "MARKS", 8):
        tx, always_on = Transaction(db), AlwaysOn(STARTED)
        rows = [("A", STARTED + 300.0 * i, 400.0 + i % 7) for i in range(1000)]
        db.conn.executemany(
            "INSERT INTO readings (region, point_time, mci, source, reason) VALUES (?, ?, ?, '', '')", rows
        )
        same(tx, always_on, 290_000.0, {"A": 1})
        for number, sites in enumerate(joins):
            same(tx, always_on, 290_000.0 + number, {"A": sites})
        for after in late:
            tx.add_reading("A", STARTED + after + 0.5, 100.0, "test", "")
            same(tx, always_on, 290_000.0, {"A": 1})
        assert len(always_on._courses["A"]._marks) <= 9


@settings(max_examples=20, deadline=None)
@given(counts=st.dictionaries(REGION, st.integers(1, 5), min_size=1))
def test_many_sites_with_the_same_readings_come_to_the_sum_over_each_of_them(counts):
    readings = {region: [(0.0, 100.0), (60.0, 300.0)] for region in counts}
    rows = [(WATTS[region], readings[region]) for region, count in counts.items() for _ in range(count)]
    copies = [(watts, list(known)) for watts, known in rows]
    by_hand = sum(watts * (60.0 * 100.0 + 40.0 * 300.0) for watts, _ in rows) / JOULES_PER_KWH / 1000.0
    assert always_on_kg(100.0 * len(rows), 0.0, rows) == pytest.approx(by_hand, rel=1e-12)
    assert always_on_kg(100.0 * len(rows), 0.0, copies) == pytest.approx(by_hand, rel=1e-12)
