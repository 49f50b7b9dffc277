"""The store: all of a use case or nothing, and clear words when the file is unusable."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from controller.home.backup import clear_holding
from controller.home.housekeeping import LOG_ALARM_BYTES, Upkeep, warn_of_sqlite, was_killed
from controller.store import MIGRATIONS, Store, migrate, store_error
from controller.store import database as stores
from controller.store import sqlite_file as files
from controller.store.rows import TokenRow
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


def test_what_is_remembered_is_taken_back_in_reverse_when_the_change_fails(store):
    seen = []

    def fails(tx):
        tx.after_rollback.append(lambda: seen.append("first"))
        tx.after_rollback.append(lambda: seen.append("second"))
        raise ValueError

    with pytest.raises(ValueError):
        store.call(fails)
    store.call(lambda tx: tx.after_rollback.append(lambda: seen.append("never")))
    assert seen == ["second", "first"]


def test_calls_from_many_threads_are_done_one_after_the_other(store):
    store.call(lambda tx: tx.add_token(TokenRow("t", "0", 0.0)))
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


@pytest.mark.parametrize(
    ("version", "level", "says"),
    [
        ((3, 36, 9), "fail", "too old"),
        ((3, 37, 0), "warn", "WAL-reset bug"),
        ((3, 40, 1), "warn", "WAL-reset bug"),
        ((3, 51, 2), "warn", "WAL-reset bug"),
        ((3, 51, 3), "ok", "SQLite 3.51.3"),
        ((3, 53, 4), "ok", "SQLite 3.53.4"),
    ],
)
def test_versions_of_sqlite_with_the_wal_reset_bug_are_warned_of_and_too_old_ones_refused(version, level, says):
    fit = files.fitness(version)
    assert fit.level == level and says in fit.text and bool(fit.remedy) == (level != "ok")


def test_a_too_old_sqlite_is_refused_before_the_file_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "sqlite_version", lambda: (3, 30, 0))
    with pytest.raises(CurtailError, match="too old"):
        Store(tmp_path / "state.db").open()
    assert not (tmp_path / "state.db").exists()


def test_an_index_that_disagrees_with_its_table_is_found_by_the_thorough_check_only(tmp_path):
    """As after a torn write of one page; `PRAGMA quick_check` does not compare the two."""
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE a (x INTEGER)")
        connection.executemany("INSERT INTO a VALUES (?)", [(n,) for n in range(10)])
        connection.execute("CREATE INDEX i ON a (x)")
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'i'").fetchone()[0]
        connection.execute("CREATE TABLE b (x INTEGER)")
        connection.execute("CREATE INDEX j ON b (x)")
        other = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'j'").fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    data = bytearray(path.read_bytes())
    data[(root - 1) * size : root * size] = data[(other - 1) * size : other * size]
    path.write_bytes(data)
    with closing(sqlite3.connect(path)) as connection:
        files.check_file(connection, path, thorough=False)
        with pytest.raises(CurtailError, match=r"is damaged: .*: keep the folder as it is, and restore a backup"):
            files.check_file(connection, path, thorough=True)


def test_a_row_that_names_a_missing_one_is_refused_at_the_start(tmp_path):
    made = Store(tmp_path / "state.db")
    made.open()
    made.close()
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as connection:
        values = ", ".join(
            "0" if column[2] in ("INTEGER", "REAL") else "''"
            for column in connection.execute("PRAGMA table_info(members)")
        )
        connection.execute(f"INSERT INTO members VALUES ({values})")  # of a round that is not there
    with pytest.raises(CurtailError, match="a row of members refers to a missing row of rounds"):
        Store(tmp_path / "state.db").open()


def test_the_log_is_pruned_in_small_steps_and_its_numbers_go_on(store):
    store.call(lambda tx: tx.add_event(0, 0, "version", "kept for reports"))
    for n in range(25):
        store.call(lambda tx, n=n: tx.add_event(n, n, "k", str(n)))
    assert [store.call(lambda tx: tx.prune_events(10, 6)) for _ in range(4)] == [6, 6, 3, 0]
    left = [event.text for event in store.call(lambda tx: tx.last_events(99))]
    assert left == ["kept for reports", *(str(n) for n in range(15, 25))]
    store.call(lambda tx: tx.add_event(0.0, 0.0, "k", "new"))
    assert store.call(lambda tx: tx.last_events(1))[0].id == 27


def test_the_write_ahead_log_is_cut_back_when_nothing_reads_the_store_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "WAL_BYTES", 100_000)
    store = Store(tmp_path / "state.db")
    store.open()
    try:
        reader = sqlite3.connect(f"{(tmp_path / 'state.db').as_uri()}?mode=ro", uri=True, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT COUNT(*) FROM events").fetchone()
        for _ in range(100):
            store.call(lambda tx: [tx.add_event(0.0, 0.0, "k", "x" * 100_000)])
        assert files.log_bytes(tmp_path / "state.db") > 9_000_000
        reader.close()
        for _ in range(3):
            store.call(lambda tx: tx.add_event(0.0, 0.0, "k", "x"))
        assert files.log_bytes(tmp_path / "state.db") <= 200_000
    finally:
        store.close()
    assert files.log_bytes(tmp_path / "state.db") == 0


def test_the_upkeep_prunes_and_tells_of_a_log_that_cannot_be_cut_back(store, tmp_path, monkeypatch):
    told, sizes = [], iter([0, LOG_ALARM_BYTES + 1, LOG_ALARM_BYTES + 9, 5])
    upkeep = Upkeep(store, tmp_path / "state.db", lambda kind, text: told.append((kind, text)))
    monkeypatch.setattr("controller.home.housekeeping.log_bytes", lambda path: next(sizes))
    monkeypatch.setattr("controller.home.housekeeping.EVENTS_KEPT", 5)
    monkeypatch.setattr("controller.home.housekeeping.EVENTS_STEP", 2)
    store.call(lambda tx: [tx.add_event(n, n, "k", str(n)) for n in range(12)])
    for _ in range(4):
        upkeep.look()
    assert len(store.call(lambda tx: tx.last_events(99))) == 5
    assert [kind for kind, _ in told] == ["store", "store"]
    assert "another program reads the store" in told[0][1] and "small again" in told[1][1]


def test_a_controller_that_was_killed_is_known_by_the_address_it_left(tmp_path):
    assert not was_killed(tmp_path)
    (tmp_path / "controller.json").write_text("{}")
    assert was_killed(tmp_path)


def test_what_a_killed_backup_holds_is_cleared_at_the_start(tmp_path):
    (tmp_path / "state.db").write_text("")
    (tmp_path / "backup" / "versions").mkdir(parents=True)
    clear_holding(tmp_path)
    assert not (tmp_path / "backup").exists()


def test_an_sqlite_with_the_bug_is_one_line_in_the_log(monkeypatch, caplog):
    for version, lines in (((3, 53, 0), 0), ((3, 40, 1), 1)):
        monkeypatch.setattr("controller.home.housekeeping.sqlite_version", lambda version=version: version)
        warn_of_sqlite()
        assert len(caplog.records) == lines


def test_what_follows_a_change_and_fails_does_not_end_the_store(store, caplog):
    def fails():
        raise RuntimeError("no more threads")

    def use_case(tx):
        tx.add_event(1.0, 1.0, "k", "durable")
        tx.after_commit.append(fails)

    store.call(use_case)
    assert store.call(lambda tx: tx.last_events(1))[0].text == "durable"
    assert "a callback after a transaction failed" in caplog.text


def test_damage_that_is_met_later_is_named_with_its_remedy():
    error = store_error(Path("s"), sqlite3.DatabaseError("database disk image is malformed"))
    assert "is damaged" in error.message and "curtail controller restore" in error.remedy
