"""The ledger's hash chain, in the store and in an exported file: one changed byte is found and named."""

from __future__ import annotations

import itertools
import json
import sqlite3

import pytest

from controller.store.rows import SettledRow
from curtail import wire
from curtail.carbon import ledger_file
from curtail.carbon.hash_chain import canonical, follow, following, genesis
from curtail.carbon.ledger_columns import COLUMNS, EDITIONS, TABLES, header
from curtail.commands.ledger.verify import export, look, verify
from curtail.errors import CurtailError, DataError, NotFound, UsageError


@pytest.fixture
def booked(world):
    """A store with rows of all kinds."""
    world.ready("a", "job")
    world.beat("a", "job", "train")
    for mci in (50.0, 60.0, 450.0, -3.0):
        world.source.mci["A"] = mci
        world.tick(300.0)
    world.tick(1.0)

    def settle(tx):
        for number, _ in tx.numbered_entries()[:2]:
            tx.add_settled(SettledRow(number, "marginal", 1, 55.5, 0.001, 'later, "quoted"', "2026-01", 1e6))

    world.store.call(settle)
    for action, seconds in (("pause", 60.0), ("train", 1.0), ("clear", 1.0)):
        request = wire.OverrideRequest("B", action, seconds, 'kim, "k"', "a trial")
        world.store.call(lambda tx, r=request: world.service.override(tx, r))
    return world


def damage(home, script):
    connection = sqlite3.connect(home / "state.db")
    connection.executescript(f"PRAGMA foreign_keys = OFF; {script}")
    connection.close()


def test_a_hash_goes_over_the_hash_before_and_the_canonical_record():
    text = canonical(1, "reading", {"region": "A", "point_s": 0.1})
    assert text == '{"point_s":0.1,"record":"reading","region":"A","seq":1}'
    first = following(genesis("run"), 1, "reading", {"region": "A", "point_s": 0.1})
    assert len(first) == 64 and first != following(genesis("other"), 1, "reading", {"region": "A", "point_s": 0.1})


def test_a_store_whose_table_lost_a_column_is_damaged_and_the_error_says_so(booked):
    damage(booked.home, "ALTER TABLE readings RENAME COLUMN mci TO mck")
    with pytest.raises(DataError, match="the table readings of the store has no column 'mci'; the store is damaged"):
        look(booked.home, None)


def test_a_chain_that_nobody_touched_holds_and_its_head_is_that_of_the_status(booked, capsys):
    assert verify(booked.home, None) == 0
    finding, energy = look(booked.home, None), booked.status().energy
    assert (finding.records, finding.head) == (energy.ledger_records, energy.ledger_head)
    assert finding.head in capsys.readouterr().out
    kinds = {link.kind for link in booked.store.call(lambda tx: list(tx.links()))}
    assert kinds == set(TABLES), "all kinds of records are in it"


@pytest.fixture
def copies(booked, tmp_path):
    """A function that damages a fresh copy of the booked store, and says what is found in it."""
    whole, home = tmp_path / "whole.db", tmp_path / "copy"
    connection = sqlite3.connect(booked.home / "state.db")
    connection.execute(f"VACUUM INTO '{whole}'")
    connection.close()
    home.mkdir()

    def damaged(script):
        (home / "state.db").write_bytes(whole.read_bytes())
        damage(home, script)
        return look(home, None).problem

    return damaged


def test_a_changed_value_in_any_column_of_the_store_is_found(copies):
    for kind, columns in COLUMNS.items():
        table = TABLES[kind]
        for column in (column.stored for column in columns if column.stored != "id"):
            of = next(c for c in columns if c.stored == column)
            value = f"COALESCE({column}, '') || 'x'" if of.kind is str else f"COALESCE({column}, 0) + 1"
            problem = copies(f"UPDATE {table} SET {column} = {value} WHERE id = 2")
            assert f"({kind} 2) does not match its hash" in problem, (kind, column)
        problem = copies(f"UPDATE {table} SET id = id + 1000 WHERE id = (SELECT MAX(id) FROM {table})")
        assert f"({kind} " in problem and "is missing" in problem


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("DELETE FROM energy WHERE id = 2", "(energy 2) is missing"),
        ("INSERT INTO energy SELECT NULL, site, region, phase, t0, t1, watts, method, pue, grid_share, kwh, mci, kg,"
         " curtailed, coverage, machine_kwh, gpu_kwh, host_kwh, mci_raw, source, point_time, threshold, tokens, steps,"
         " network_bytes, flags, reason FROM energy WHERE id = 1", "is not in the chain"),
        ("UPDATE energy SET id = -1 WHERE id = 2; UPDATE energy SET id = 2 WHERE id = 3;"
         " UPDATE energy SET id = 3 WHERE id = -1", "does not match its hash"),
        ("DELETE FROM chain WHERE seq = 2", "record 2 is missing"),
        ("UPDATE chain SET hash = '0' || substr(hash, 2) WHERE seq = 3 AND hash NOT LIKE '0%';"
         " UPDATE chain SET hash = '1' || substr(hash, 2) WHERE seq = 3", "record 3"),
        ("UPDATE chain SET kind = 'nothing' WHERE seq = 2", "is missing"),
        ("UPDATE run SET id = 'another'", "record 1"),
    ],
)  # fmt: skip
def test_a_removed_added_swapped_or_relinked_record_is_found(copies, script, sentence):
    assert sentence in copies(script)


def test_records_cut_off_at_the_end_are_found_against_a_head_that_was_noted(booked):
    head = look(booked.home, None).head
    damage(
        booked.home,
        "DELETE FROM orders WHERE id = 4; DELETE FROM chain WHERE seq = (SELECT MAX(seq) FROM chain)",
    )
    assert look(booked.home, None).problem == "", "a chain alone cannot show that"
    with pytest.raises(CurtailError, match="does not contain the head"):
        verify(booked.home, head)


def test_a_head_noted_earlier_is_passed_by_a_ledger_that_grew(booked, capsys):
    head = look(booked.home, None).head
    booked.tick(300.0)
    booked.source.mci["A"] = 99.0
    booked.tick(300.0)
    assert look(booked.home, None).head != head
    assert verify(booked.home, head) == 0 and f"passes  {head}" in capsys.readouterr().out
    with pytest.raises(UsageError, match="is not a ledger head"):
        verify(booked.home, "abc")


def test_a_store_from_before_the_chain_is_chained_as_it_is_and_once(booked):
    before = len(booked.store.call(lambda tx: tx.entries()))
    booked.store.call(lambda tx: tx._db.execute("DELETE FROM chain") and None)
    assert "is not in the chain" in look(booked.home, None).problem
    assert booked.store.call(lambda tx: tx.begin_chain()) > before
    assert look(booked.home, None).problem == ""
    damage(booked.home, "INSERT INTO readings (region, point_time, mci, source, reason) VALUES ('A', 1, 2, 's', '')")
    assert booked.store.call(lambda tx: tx.begin_chain()) == 0, "a record smuggled in later is not adopted"
    assert "is not in the chain" in look(booked.home, None).problem


# -- files -------------------------------------------------------------------


@pytest.fixture
def files(booked, tmp_path):
    """The booked ledger as CSV and as JSON."""
    out = {form: tmp_path / f"ledger.{form}" for form in ledger_file.FORMS}
    for form, path in out.items():
        assert export(booked.home, path, form) == 0
    return out


@pytest.mark.parametrize("form", ledger_file.FORMS)
def test_an_exported_file_holds_and_has_the_head_of_the_store(booked, files, form):
    finding = look(files[form], None)
    assert finding == look(booked.home, None)
    assert finding.head in files[form].read_text().splitlines()[-1]


@pytest.mark.parametrize("form", ledger_file.FORMS)
def test_every_changed_byte_of_an_exported_file_is_found(files, form):
    data = files[form].read_bytes()
    # every byte of the first and last record of each kind, of the first and last line, and a sample of the rest
    step = 37
    places = {*range(0, len(data), step), *range(0, 700), *range(len(data) - 700, len(data))}
    missed = []
    for place in sorted(p for p in places if p < len(data)):
        for other in {data[place] ^ 1, data[place] ^ 0x20, 0x30, 0xFF} - {data[place]}:
            changed = data[:place] + bytes([other]) + data[place + 1 :]
            try:
                if not ledger_file.check(changed, "file").problem:
                    missed.append((place, other))
            except DataError:
                pass
    assert not missed


@pytest.mark.parametrize("form", ledger_file.FORMS)
def test_a_line_removed_added_or_swapped_is_found(files, form):
    lines = files[form].read_text().splitlines(keepends=True)
    for changed in (
        lines[:3] + lines[4:],
        [*lines[:3], lines[3], *lines[3:]],
        [*lines[:3], lines[4], lines[3], *lines[5:]],
        lines[:-1],
        lines[:-2] + lines[-1:],
    ):
        try:
            problem = ledger_file.check("".join(changed).encode(), "file").problem
        except DataError:
            problem = "unreadable"
        assert problem


def test_a_changed_row_of_a_file_is_named(files):
    text = files["csv"].read_text()
    number, line = next((n, x) for n, x in enumerate(text.splitlines()) if ",energy," in x and ",train," in x)
    changed = text.replace(line, line.replace(",train,", ",pause,"))
    assert "does not match its hash (site a" in ledger_file.check(changed.encode(), "file").problem
    date = line.replace("+00:00", "+01:00", 1)
    assert f"line {number + 1} of file" in ledger_file.check(text.replace(line, date).encode(), "file").problem


def test_an_auditor_needs_nothing_of_ours_to_follow_a_json_file(files):
    import hashlib

    found = json.loads(files["json"].read_text())
    before = hashlib.sha256(f"{found['format']} {found['run']}".encode()).hexdigest()
    for row in found["records"]:
        record = {name: value for name, value in row.items() if name != "hash" and f"{name}_s" not in row}
        text = json.dumps(record, sort_keys=True, separators=(",", ":"))
        before = hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()
        assert row["hash"] == before
    assert found["head"] == before


def test_the_columns_of_an_export_are_stable():
    assert header() == [
        "seq", "record", "entry", "site", "region", "state", "start", "start_s", "end", "end_s", "method",
        "coverage_share", "machine_mean_w", "machine_kwh", "gpu_kwh", "host_kwh", "pue", "grid_share", "grid_kwh",
        "mci_g_per_kwh", "mci_raw_g_per_kwh", "source", "point", "point_s", "threshold_g_per_kwh", "in_window",
        "consequential_kg", "tokens", "steps", "network_bytes", "flags", "reason", "reading", "settlement", "basis",
        "revision", "settled_kg", "model", "asked", "asked_s", "order", "ends_order", "action", "at", "at_s", "until",
        "until_s", "by", "ordered", "ordered_s", "hash",
    ]  # fmt: skip
    before = header(("energy", "reading", "settlement"))
    assert before == [name for name in header() if name in before], "files of an older curtail can be verified"


def test_a_csv_file_from_before_orders_were_chained_still_holds(booked):
    def links(tx):
        # as an older curtail wrote it: the records before the first order
        return list(itertools.takewhile(lambda link: link.kind != "order", tx.links()))

    older = booked.store.call(links)
    run = booked.store.call(lambda tx: tx.run()).id
    text = "".join(ledger_file.write(run, older, older[-1].hash, "csv", EDITIONS[1]))
    assert "ends_order" not in text
    assert ledger_file.check(text.encode(), "file").head == older[-1].hash
    assert ledger_file.check(text.replace(",train,", ",pause,", 1).encode(), "file").problem


def test_an_order_and_its_end_are_records_and_none_is_hidden_or_made_up_later(booked, copies):
    found = [link.record for link in booked.store.call(lambda tx: list(tx.links())) if link.kind == "order"]
    assert [(r["order"], r.get("ends_order"), r["action"]) for r in found] == [
        (1, None, "pause"), (2, 1, "replaced"), (3, None, "train"), (4, 3, "cleared"),
    ]  # fmt: skip
    assert found[0]["by"] == 'kim, "k"' and found[0]["until_s"] == found[0]["at_s"] + 60.0
    assert "(order 3) is missing" in copies("DELETE FROM orders WHERE id = 3")
    assert "(order 3) does not match its hash" in copies("UPDATE orders SET until = until + 3600 WHERE id = 3")
    added = "INSERT INTO orders SELECT NULL, NULL, 'train', 'A', at, at + 9, 'kim', 'x', wall FROM orders WHERE id = 1"
    assert copies(added) == "order 5 is not in the chain"


def test_a_ledger_that_was_changed_is_not_exported(booked, tmp_path):
    damage(booked.home, "UPDATE energy SET kg = 0 WHERE id = 2")
    with pytest.raises(CurtailError, match=r"was changed: record \d+ \(energy 2\)"):
        verify(booked.home, None)
    with pytest.raises(CurtailError, match="was changed"):
        export(booked.home, tmp_path / "out.csv", "csv")
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(NotFound):
        look(tmp_path / "nothing.csv", None)
    with pytest.raises(UsageError, match=r"state\.db"):
        export(booked.home, tmp_path / "state.db", "csv")


def test_an_empty_chain_is_its_beginning():
    finding = follow("run", [])
    assert (finding.records, finding.head, finding.problem) == (0, genesis("run"), "")


def test_a_store_from_before_the_chain_keeps_its_rows_and_readings(tmp_path):
    from controller.store import MIGRATIONS, Store, migrate

    before = next(number for number, script in enumerate(MIGRATIONS) if "CREATE TABLE chain" in script)
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    migrate(connection, tmp_path, MIGRATIONS[:before])
    connection.execute("INSERT INTO readings VALUES ('B', 300.0, 50.0, 't', ''), ('A', 0.0, NULL, 't', 'why')")
    connection.execute(
        "INSERT INTO energy VALUES (1, 's', 'A', 'train', 0.0, 3600.0, 1000.0, 'modelled', 1.5, 1.0, 1.5, 40.0, 0.06,"
        " 1)"
    )
    connection.execute(
        "INSERT INTO energy_open VALUES ('s', 'A', 'paused', 3600.0, 3700.0, 500.0, 'modelled', 1.5, 1.0, 40.0, 1)"
    )
    connection.close()
    store = Store(tmp_path / "state.db")
    store.open()
    try:
        (entry,) = store.call(lambda tx: tx.entries())
        assert (entry.kwh, entry.kg, entry.detail.machine_kwh, entry.detail.basis.mci_raw) == (1.5, 0.06, 1.0, 40.0)
        ((interval, seen),) = store.call(lambda tx: tx.open_intervals())
        assert (interval.phase, interval.t0, seen, interval.grown) == ("paused", 3600.0, 3700.0, None)
        assert store.call(lambda tx: tx.readings("B")) == [(300.0, 50.0)]
        assert store.call(lambda tx: tx.begin_chain()) == 3
        links = store.call(lambda tx: list(tx.links()))
        assert [link.kind for link in links] == ["energy", "reading", "reading"] and not follow("", links).problem
        assert "coverage_share" not in links[0].record, "columns that old rows lack are not in their hash"
    finally:
        store.close()


def test_orders_of_a_store_from_before_they_were_chained_are_chained_once_with_their_ends(tmp_path):
    from controller.store import MIGRATIONS, Store, migrate

    before = next(number for number, script in enumerate(MIGRATIONS) if "CREATE TABLE orders" in script)
    connection = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    migrate(connection, tmp_path, MIGRATIONS[:before])
    connection.execute("INSERT INTO run VALUES (1, 'r', '', '', '', '', 8, 'RUNNING', 0, 0, 500.0, 0, 0, 9, 'PAUSED',"
                       " 0, '{}', NULL, NULL)")  # fmt: skip
    reading = {"reading": 1, "region": "A", "point_s": 0.0, "source": "t", "reason": "why"}
    connection.execute("INSERT INTO readings VALUES (1, 'A', 0.0, NULL, 't', 'why')")
    first = following(genesis("r"), 1, "reading", reading)
    connection.execute("INSERT INTO chain VALUES (1, 'reading', 1, ?)", (first,))
    connection.executemany(
        "INSERT INTO overrides VALUES (NULL, 'A', ?, ?, ?, 'kim', 'why', 7.0, ?)",
        [(0, 100.0, 200.0, 150.0), (1, 150.0, 300.0, None), (1, 400.0, 600.0, None)],
    )
    connection.close()
    store = Store(tmp_path / "state.db")
    store.open()
    try:
        assert look(tmp_path, None).problem == "", "not yet chained is not the same as smuggled in"
        assert store.call(lambda tx: tx.begin_chain()) == 5
        rows = [(row.act, row.of_order, row.at, row.until) for _, row in store.call(lambda tx: tx.orders())]
        assert rows == [
            ("pause", None, 100.0, 200.0), ("train", None, 150.0, 300.0), ("train", None, 400.0, 600.0),
            ("ended", 1, 150.0, None), ("expired", 2, 300.0, None),
        ]  # fmt: skip
        assert [number for number, _ in store.call(lambda tx: tx.open_orders())] == [3]
        assert (found := look(tmp_path, first)).problem == "" and (found.records, found.passed) == (6, "yes")
    finally:
        store.close()
    damage(tmp_path, "INSERT INTO orders SELECT NULL, NULL, 'train', 'A', 1, 2, 'x', 'x', 1")
    assert look(tmp_path, None).problem == "order 6 is not in the chain"


def test_a_changed_byte_of_the_stores_file_is_found_or_touches_no_record(booked, tmp_path):
    whole = tmp_path / "whole.db"
    connection = sqlite3.connect(booked.home / "state.db")
    connection.execute(f"VACUUM INTO '{whole}'")
    connection.close()
    data = whole.read_bytes()
    (home := tmp_path / "copy").mkdir()

    def records():
        connection = sqlite3.connect(f"file:{home / 'state.db'}?mode=ro", uri=True)
        try:
            return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in (*TABLES.values(), "chain")]
        finally:
            connection.close()

    def broken():
        try:
            return bool(look(home, None).problem)
        except CurtailError:
            return True  # SQLite cannot read it

    (home / "state.db").write_bytes(data)
    before, found = records(), 0
    text = data.find(b"is below 100")
    places = [*range(0, len(data), 499), *range(text - 60, text + 12)]
    for place in places:
        (home / "state.db").write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        if broken():
            found += 1
        else:
            assert records() == before, f"byte {place}"
    assert text > 0 and found > 50
