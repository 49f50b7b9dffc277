"""The store: all of a use case or nothing, and clear words when the file is unusable."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from controller.store import MIGRATIONS, Store, migrate, store_error
from curtail.errors import CurtailError, DiskError


@pytest.fixture
def store(tmp_path: Path):
    made = Store(tmp_path / "state.db")
    made.open()
    yield made
    made.close()


def test_a_use_case_that_raises_changes_nothing(store):
    def half(tx):
        tx.add_event(1.0, 1.0, "a", "first")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.call(half)
    assert store.call(lambda tx: tx.last_events(5)) == []


def test_what_is_to_happen_afterwards_happens_only_after_success(store):
    seen = []
    store.call(lambda tx: tx.after_commit.append(lambda: seen.append("done")))

    def fails(tx):
        tx.after_commit.append(lambda: seen.append("never"))
        raise ValueError

    with pytest.raises(ValueError):
        store.call(fails)
    assert seen == ["done"]


def test_calls_from_many_threads_are_done_one_after_the_other(store):
    store.call(lambda tx: tx.add_join_token("t", "0", 0.0))
    futures = [store.submit(lambda tx, n=n: tx.add_event(n, n, "k", str(n))) for n in range(200)]
    for future in futures:
        future.result()
    assert [e.text for e in store.call(lambda tx: tx.last_events(200))] == [str(n) for n in range(200)]


def test_durability_settings_are_on(store, tmp_path):
    store.call(lambda tx: None)
    rows = store.call(
        lambda tx: [tx._all(f"PRAGMA {name}")[0] for name in ("journal_mode", "synchronous", "foreign_keys")]
    )
    assert [next(iter(row.values())) for row in rows] == ["wal", 2, 1]


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "state.db"
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(CurtailError, match="is damaged"):
        Store(path).open()


def test_a_folder_that_is_not_there_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError, match="cannot write the store"):
        Store(tmp_path / "none" / "state.db").open()


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(CurtailError, match="newer curtail"):
        Store(tmp_path / "state.db").open()


def test_a_migration_is_applied_once(tmp_path):
    connection = sqlite3.connect(tmp_path / "m.db", isolation_level=None)
    steps = ("CREATE TABLE a (x INTEGER)", "ALTER TABLE a ADD COLUMN y INTEGER")
    migrate(connection, tmp_path, steps[:1])
    migrate(connection, tmp_path, steps)
    migrate(connection, tmp_path, steps)
    assert [row[1] for row in connection.execute("PRAGMA table_info(a)")] == ["x", "y"]
    connection.close()


def test_a_full_disk_is_named():
    error = store_error(Path("s"), sqlite3.OperationalError("database or disk is full"))
    assert isinstance(error, DiskError) and "full" in str(error)
