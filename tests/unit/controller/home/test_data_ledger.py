"""`curtail ledger check`: read-only, also beside a running controller, and it names what is broken."""

from __future__ import annotations

import sqlite3

import pytest

from controller.home.data_ledger import check_data_ledger, inspect_store
from controller.store import MIGRATIONS, Store, migrate
from curtail.errors import CurtailError, NotFound


@pytest.fixture
def trained(world):
    """A running controller with one version made by a site that keeps samples."""
    world.ready("a", "job")
    world.commit("a", "job", world.checkout("a", "job").assignment, steps=3, keep=True)
    return world


def test_a_sound_ledger_is_printed_line_by_line(trained, capsys):
    assert check_data_ledger(trained.home, weights=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 + 2 and all(line.startswith("holds ") for line in lines)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("UPDATE kept SET start = start - 4", "kept and merged at once"),
        ("DELETE FROM kept", "samples of all sites end at 12"),
        ("UPDATE kept SET start = start + 4", "are unaccounted for"),
        ("UPDATE members SET tokens = tokens + 1", "but the run has"),
        ("UPDATE run SET tokens = 1", "but the run has 1"),
        ("UPDATE versions SET tokens = 5 WHERE version = 1", "version 1 grew by 5"),
        ("DELETE FROM versions WHERE version = 0", "version 0 is missing"),
        ("UPDATE sites SET tokens = 7", "site a has 7 tokens"),
        ("UPDATE members SET state = 'COMMITTED'; DELETE FROM blobs", "has no file"),
        ("UPDATE rounds SET state = 'OPEN'; UPDATE members SET state = 'LATE'", "is LATE in round 1, which is OPEN"),
    ],
)
def test_a_broken_ledger_is_named(trained, damage, sentence):
    connection = sqlite3.connect(trained.home / "state.db")
    connection.executescript(damage)
    connection.close()
    assert any(sentence in problem for _, problem in inspect_store(trained.home, weights=False) if problem)
    with pytest.raises(CurtailError, match="is broken"):
        check_data_ledger(trained.home, weights=False)


def test_damaged_weights_are_found_only_when_asked_for(trained):
    path = trained.versions.path(1) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert check_data_ledger(trained.home, weights=False) == 0
    with pytest.raises(CurtailError, match=r"model\.safetensors is damaged"):
        check_data_ledger(trained.home, weights=True)


def test_nothing_is_written_and_nothing_is_made(trained, tmp_path):
    before = (trained.home / "state.db").read_bytes()
    inspect_store(trained.home, weights=True)
    assert (trained.home / "state.db").read_bytes() == before
    with pytest.raises(NotFound, match="there is no store"):
        inspect_store(tmp_path / "nowhere", weights=False)
    assert not (tmp_path / "nowhere").exists()


def test_a_store_of_another_schema_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    migrate(connection, tmp_path, MIGRATIONS[:1])
    connection.close()
    with pytest.raises(CurtailError, match="schema 1"):
        inspect_store(tmp_path, weights=False)


def test_a_store_of_the_first_schema_is_brought_up_to_date_with_its_versions(tmp_path):
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    migrate(connection, tmp_path, MIGRATIONS[:1])
    connection.execute("INSERT INTO rounds VALUES (1, 'LOCAL', 'MERGED', 0, 0.0, 0.0, 0, 1)")
    connection.execute(
        "INSERT INTO members VALUES (1, 'a', 'j', 1, 'MERGED', 0, 8, 'weights',"
        " 8, 64, 2, '', '', '', 1.0, 1.0, 1.0, 1.0, '')"
    )
    connection.close()
    store = Store(tmp_path / "state.db")
    store.open()
    try:
        (member,) = store.call(lambda tx: tx.members(1))
        assert (member.version, member.norm, member.arrived_wall) == (1, None, None)
        assert store.call(lambda tx: tx.all_kept()) == []
    finally:
        store.close()
