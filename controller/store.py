"""The durable state of a run: one SQLite file, and the only module with SQL.

One thread owns the connection; what others want done they hand over as a
function, which runs there inside one `BEGIN IMMEDIATE` transaction: either all
of it becomes true or nothing. Journal WAL, synchronous FULL: what was
acknowledged survives kill -9 and power loss. Weights and deltas are files,
never rows. Times named *_wall are Unix seconds, the others the controller's clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database

from controller.accounts import Entry, Interval
from controller.leases import Pool, Range
from controller.rows import BlobRow, EventRow, KeptRow, MachineRow, MemberRow, RoundRow, RunRow, SiteRow, VersionRow
from curtail.errors import CurtailError, DiskError, NotFound

log = logging.getLogger("curtail.store")

Result = TypeVar("Result")

MIGRATIONS = (
    """
    CREATE TABLE run (
        only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
        id TEXT NOT NULL, config TEXT NOT NULL, model TEXT NOT NULL, manifest TEXT NOT NULL,
        tokenizer TEXT NOT NULL, sequence_len INTEGER NOT NULL, state TEXT NOT NULL,
        created_wall REAL NOT NULL, started REAL NOT NULL, clock REAL NOT NULL,
        tokens INTEGER NOT NULL, cursor INTEGER NOT NULL, sample_limit INTEGER NOT NULL,
        regime TEXT NOT NULL, regime_since REAL NOT NULL, regime_seconds TEXT NOT NULL,
        loss_first REAL, loss_last REAL
    ) STRICT;
    CREATE TABLE returned (start INTEGER PRIMARY KEY, stop INTEGER NOT NULL) STRICT;
    CREATE TABLE join_tokens (id TEXT PRIMARY KEY, secret TEXT NOT NULL, created_wall REAL NOT NULL) STRICT;
    CREATE TABLE sites (
        site TEXT PRIMARY KEY, region TEXT NOT NULL, agent TEXT NOT NULL, machine TEXT NOT NULL,
        devices INTEGER NOT NULL, fence INTEGER NOT NULL, credential TEXT NOT NULL,
        left_run INTEGER NOT NULL, tokens INTEGER NOT NULL, joined_wall REAL NOT NULL
    ) STRICT;
    CREATE TABLE versions (
        version INTEGER PRIMARY KEY, round INTEGER, tokens INTEGER NOT NULL, digest TEXT NOT NULL,
        weights TEXT NOT NULL, updates TEXT NOT NULL, created_wall REAL NOT NULL, kept INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE rounds (
        round INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL, base_version INTEGER NOT NULL,
        opened_wall REAL NOT NULL, deadline_wall REAL NOT NULL, cut INTEGER NOT NULL, version INTEGER
    ) STRICT;
    CREATE TABLE members (
        round INTEGER NOT NULL REFERENCES rounds (round), site TEXT NOT NULL, job TEXT NOT NULL,
        fence INTEGER NOT NULL, state TEXT NOT NULL, lease_start INTEGER NOT NULL, lease_stop INTEGER NOT NULL,
        codec TEXT NOT NULL, samples INTEGER NOT NULL, tokens INTEGER NOT NULL, steps INTEGER NOT NULL,
        blob TEXT NOT NULL, digest TEXT NOT NULL, receipt TEXT NOT NULL, seconds REAL NOT NULL,
        loss_first REAL, loss_mean REAL, loss_last REAL, reason TEXT NOT NULL,
        PRIMARY KEY (round, site)
    ) STRICT;
    CREATE TABLE blobs (
        sha256 TEXT PRIMARY KEY, path TEXT NOT NULL, size INTEGER NOT NULL, kind TEXT NOT NULL
    ) STRICT;
    CREATE TABLE readings (
        region TEXT NOT NULL, point_time REAL NOT NULL, mci REAL, source TEXT NOT NULL, reason TEXT NOT NULL,
        PRIMARY KEY (region, point_time)
    ) STRICT;
    CREATE TABLE energy (
        id INTEGER PRIMARY KEY, site TEXT NOT NULL, region TEXT NOT NULL, phase TEXT NOT NULL,
        t0 REAL NOT NULL, t1 REAL NOT NULL, watts REAL NOT NULL, method TEXT NOT NULL, pue REAL NOT NULL,
        grid_share REAL NOT NULL, kwh REAL NOT NULL, mci REAL, kg REAL, curtailed INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE energy_open (
        site TEXT PRIMARY KEY, region TEXT NOT NULL, phase TEXT NOT NULL, t0 REAL NOT NULL, seen REAL NOT NULL,
        watts REAL NOT NULL, method TEXT NOT NULL, pue REAL NOT NULL, grid_share REAL NOT NULL,
        mci REAL, curtailed INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE events (
        id INTEGER PRIMARY KEY, at REAL NOT NULL, at_wall REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE members ADD COLUMN arrived_wall REAL;
    ALTER TABLE members ADD COLUMN version INTEGER;
    ALTER TABLE members ADD COLUMN norm REAL;
    UPDATE members SET version = (SELECT rounds.version FROM rounds WHERE rounds.round = members.round)
        WHERE state = 'MERGED';
    CREATE INDEX members_waiting ON members (state) WHERE state IN ('LATE', 'COMMITTED');
    CREATE TABLE kept (
        site TEXT PRIMARY KEY, fence INTEGER NOT NULL, job TEXT NOT NULL,
        start INTEGER NOT NULL, stop INTEGER NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE machines (
        site TEXT NOT NULL, agent TEXT NOT NULL, machine TEXT NOT NULL, devices INTEGER NOT NULL,
        address TEXT NOT NULL, port INTEGER NOT NULL, place INTEGER NOT NULL, fence INTEGER NOT NULL,
        credential TEXT NOT NULL, left_run INTEGER NOT NULL, joined_wall REAL NOT NULL,
        PRIMARY KEY (site, agent)
    ) STRICT;
    INSERT INTO machines SELECT site, agent, machine, devices, '', 0, 0, fence, credential, left_run, joined_wall
        FROM sites;
    CREATE UNIQUE INDEX machines_credential ON machines (credential);
    ALTER TABLE sites ADD COLUMN machines INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE sites DROP COLUMN agent;
    ALTER TABLE sites DROP COLUMN machine;
    ALTER TABLE sites DROP COLUMN devices;
    ALTER TABLE sites DROP COLUMN credential;
    """,
)
"""One script per schema version; never changed once released, only added to."""


class Transaction:
    """What one use case may ask of the store; valid only inside the function it was handed to."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.after_commit: list[Callable[[], None]] = []

    # -- the run -----------------------------------------------------------

    def run(self) -> RunRow | None:
        row = self._one("SELECT * FROM run")
        if row is None:
            return None
        values = {key: row[key] for key in row if key not in ("only_row", "regime_seconds")}
        return RunRow(regime_seconds=json.loads(row["regime_seconds"]), **values)

    def create_run(self, run: RunRow) -> None:
        values = {name: getattr(run, name) for name in RunRow.__slots__}
        values["regime_seconds"] = json.dumps(run.regime_seconds)
        self._insert("run", {"only_row": 1, **values})

    def set_run(self, **values: Any) -> None:
        if "regime_seconds" in values:
            values["regime_seconds"] = json.dumps(values["regime_seconds"])
        self._update("run", values, {"only_row": 1})

    def pool(self) -> Pool:
        row = self._one("SELECT cursor, sample_limit FROM run")
        assert row is not None
        parts = self._all("SELECT start, stop FROM returned ORDER BY start")
        return Pool(row["cursor"], row["sample_limit"], tuple(Range(p["start"], p["stop"]) for p in parts))

    def set_pool(self, pool: Pool) -> None:
        self._db.execute("UPDATE run SET cursor = ?", (pool.cursor,))
        self._db.execute("DELETE FROM returned")
        for part in pool.returned:
            self._insert("returned", {"start": part.start, "stop": part.stop})

    # -- who is here -------------------------------------------------------

    def add_join_token(self, token_id: str, secret_hash: str, now_wall: float) -> None:
        self._insert("join_tokens", {"id": token_id, "secret": secret_hash, "created_wall": now_wall})

    def join_token(self, token_id: str) -> str | None:
        row = self._one("SELECT secret FROM join_tokens WHERE id = ?", token_id)
        return None if row is None else str(row["secret"])

    def site(self, name: str) -> SiteRow | None:
        row = self._one("SELECT * FROM sites WHERE site = ?", name)
        return None if row is None else SiteRow(**row)

    def sites(self) -> list[SiteRow]:
        return [SiteRow(**row) for row in self._all("SELECT * FROM sites ORDER BY site")]

    def put_site(self, site: SiteRow) -> None:
        self._insert("sites", {name: getattr(site, name) for name in SiteRow.__slots__}, replace=True)

    def set_site(self, name: str, **values: Any) -> None:
        self._update("sites", values, {"site": name})

    def machines(self, site: str) -> list[MachineRow]:
        """The machines of a site, in the order of joining."""
        rows = self._all("SELECT * FROM machines WHERE site = ? ORDER BY place", site)
        return [MachineRow(**row) for row in rows]

    def machine_by_credential(self, credential_hash: str) -> MachineRow | None:
        row = self._one("SELECT * FROM machines WHERE credential = ?", credential_hash)
        return None if row is None else MachineRow(**row)

    def put_machine(self, row: MachineRow) -> None:
        self._insert("machines", {name: getattr(row, name) for name in MachineRow.__slots__}, replace=True)

    def set_machine(self, site: str, agent: str, **values: Any) -> None:
        self._update("machines", values, {"site": site, "agent": agent})

    def drop_machine(self, site: str, agent: str) -> None:
        self._db.execute("DELETE FROM machines WHERE site = ? AND agent = ?", (site, agent))

    # -- versions and rounds -------------------------------------------------

    def add_version(self, version: VersionRow) -> None:
        self._insert("versions", {name: getattr(version, name) for name in VersionRow.__slots__})

    def version(self, number: int) -> VersionRow | None:
        row = self._one("SELECT * FROM versions WHERE version = ?", number)
        return None if row is None else VersionRow(**row)

    def latest_version(self) -> VersionRow:
        row = self._one("SELECT * FROM versions ORDER BY version DESC LIMIT 1")
        assert row is not None, "a run has version 0 from its first moment"
        return VersionRow(**row)

    def kept_versions(self) -> list[VersionRow]:
        return [VersionRow(**row) for row in self._all("SELECT * FROM versions WHERE kept = 1 ORDER BY version")]

    def set_version(self, number: int, **values: Any) -> None:
        self._update("versions", values, {"version": number})

    def add_round(self, row: RoundRow) -> None:
        self._insert("rounds", {name: getattr(row, name) for name in RoundRow.__slots__})

    def live_round(self) -> RoundRow | None:
        """The round that is open or being merged; there is at most one."""
        row = self._one("SELECT * FROM rounds WHERE state IN ('OPEN', 'MERGING') ORDER BY round DESC LIMIT 1")
        return None if row is None else RoundRow(**row)

    def round(self, number: int) -> RoundRow | None:
        row = self._one("SELECT * FROM rounds WHERE round = ?", number)
        return None if row is None else RoundRow(**row)

    def next_round(self) -> int:
        row = self._one("SELECT COALESCE(MAX(round), 0) + 1 AS next FROM rounds")
        assert row is not None
        return int(row["next"])

    def merged_rounds(self) -> int:
        row = self._one("SELECT COUNT(*) AS n FROM rounds WHERE state = 'MERGED'")
        assert row is not None
        return int(row["n"])

    def set_round(self, number: int, **values: Any) -> None:
        self._update("rounds", values, {"round": number})

    def add_member(self, row: MemberRow) -> None:
        self._insert("members", {name: getattr(row, name) for name in MemberRow.__slots__})

    def members(self, round_number: int) -> list[MemberRow]:
        rows = self._all("SELECT * FROM members WHERE round = ? ORDER BY site", round_number)
        return [MemberRow(**row) for row in rows]

    def member(self, round_number: int, site: str) -> MemberRow | None:
        row = self._one("SELECT * FROM members WHERE round = ? AND site = ?", round_number, site)
        return None if row is None else MemberRow(**row)

    def set_member(self, round_number: int, site: str, **values: Any) -> None:
        self._update("members", values, {"round": round_number, "site": site})

    def waiting(self, state: str) -> list[MemberRow]:
        """Parts of any round that are LATE, or COMMITTED and not merged; oldest first."""
        assert state in ("LATE", "COMMITTED")
        # The state as text in the statement: only then the partial index is used.
        return [MemberRow(**row) for row in self._all(f"SELECT * FROM members WHERE state = '{state}' ORDER BY round")]

    def last_part(self, site: str, before: int) -> MemberRow | None:
        """The site's part in the newest round before round `before`."""
        row = self._one("SELECT * FROM members WHERE site = ? AND round < ? ORDER BY round DESC LIMIT 1", site, before)
        return None if row is None else MemberRow(**row)

    def newest_part(self, site: str) -> MemberRow | None:
        """The site's part in the newest round it took part in."""
        row = self._one("SELECT * FROM members WHERE site = ? ORDER BY round DESC LIMIT 1", site)
        return None if row is None else MemberRow(**row)

    def lateness(self, kind: str, count: int) -> list[float]:
        """Seconds after the deadline at which the latest `count` contributions to rounds of `kind` arrived."""
        rows = self._all(
            "SELECT MAX(0.0, m.arrived_wall - r.deadline_wall) AS late FROM rounds AS r JOIN members AS m"
            " ON m.round = r.round WHERE r.kind = ? AND m.arrived_wall IS NOT NULL ORDER BY r.round DESC LIMIT ?",
            kind,
            count,
        )
        return [row["late"] for row in rows]

    def recent_norms(self, count: int) -> list[tuple[float, int]]:
        """Norm per root of tokens, and tokens, of the latest `count` merged contributions, oldest first."""
        rows = self._all("SELECT norm, tokens FROM members WHERE norm IS NOT NULL ORDER BY round DESC LIMIT ?", count)
        return [(row["norm"], row["tokens"]) for row in reversed(rows)]

    def refused_in_a_row(self) -> int:
        """Contributions that were refused since the latest that was merged."""
        row = self._one(
            "SELECT COUNT(*) AS n FROM members WHERE state = 'REFUSED' AND round >"
            " (SELECT COALESCE(MAX(round), 0) FROM rounds WHERE state = 'MERGED')"
        )
        assert row is not None
        return int(row["n"])

    def kept(self, site: str) -> KeptRow | None:
        """The samples that the site's job keeps beyond what it committed."""
        row = self._one("SELECT * FROM kept WHERE site = ?", site)
        return None if row is None else KeptRow(**row)

    def all_kept(self) -> list[KeptRow]:
        return [KeptRow(**row) for row in self._all("SELECT * FROM kept ORDER BY site")]

    def put_kept(self, row: KeptRow) -> None:
        self._insert("kept", {name: getattr(row, name) for name in KeptRow.__slots__})

    def drop_kept(self, site: str) -> None:
        self._db.execute("DELETE FROM kept WHERE site = ?", (site,))

    # -- files ---------------------------------------------------------------

    def put_blob(self, blob: BlobRow) -> None:
        self._insert("blobs", {name: getattr(blob, name) for name in BlobRow.__slots__}, replace=True)

    def blob(self, sha256: str) -> BlobRow | None:
        row = self._one("SELECT * FROM blobs WHERE sha256 = ?", sha256)
        return None if row is None else BlobRow(**row)

    def blobs_of_kind(self, kind: str) -> list[BlobRow]:
        return [BlobRow(**row) for row in self._all("SELECT * FROM blobs WHERE kind = ?", kind)]

    def drop_blob(self, sha256: str) -> None:
        self._db.execute("DELETE FROM blobs WHERE sha256 = ?", (sha256,))

    # -- energy --------------------------------------------------------------

    def add_reading(self, region: str, point_time: float, mci: float | None, source: str, reason: str) -> None:
        row = {"region": region, "point_time": point_time, "mci": mci, "source": source, "reason": reason}
        self._insert("readings", row, ignore=True)

    def readings(self, region: str) -> list[tuple[float, float | None]]:
        rows = self._all("SELECT point_time, mci FROM readings WHERE region = ? ORDER BY point_time", region)
        return [(row["point_time"], row["mci"]) for row in rows]

    def add_entries(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            values = {name: getattr(entry, name) for name in Entry.__slots__}
            self._insert("energy", {**values, "curtailed": int(entry.curtailed)})

    def entries(self) -> list[Entry]:
        return [_entry(row) for row in self._all("SELECT * FROM energy ORDER BY id")]

    def open_intervals(self) -> list[tuple[Interval, float]]:
        """Intervals still growing at the last step, each with the time up to which it is certain."""
        rows = self._all("SELECT * FROM energy_open ORDER BY site")
        return [(_interval(row), row["seen"]) for row in rows]

    def put_open(self, interval: Interval, seen: float) -> None:
        values = {name: getattr(interval, name) for name in Interval.__slots__}
        self._insert("energy_open", {**values, "curtailed": int(interval.curtailed), "seen": seen}, replace=True)

    def drop_open(self, site: str) -> None:
        self._db.execute("DELETE FROM energy_open WHERE site = ?", (site,))

    # -- events --------------------------------------------------------------

    def add_event(self, at: float, at_wall: float, kind: str, text: str) -> None:
        self._insert("events", {"at": at, "at_wall": at_wall, "kind": kind, "text": text})

    def last_events(self, count: int) -> list[EventRow]:
        rows = self._all("SELECT id, at, kind, text FROM events ORDER BY id DESC LIMIT ?", count)
        return [EventRow(**row) for row in reversed(rows)]

    # -- checks --------------------------------------------------------------

    def ledger(self) -> list[tuple[str, str | None]]:
        """Every invariant of the data ledger, each with its first violation or None."""
        run = self._one("SELECT tokens, cursor, sample_limit, sequence_len FROM run")
        return [] if run is None else [(name, check(self, run)) for name, check in _INVARIANTS]

    def ledger_problems(self) -> list[str]:
        """Violations of the data ledger's invariants; empty when it is sound."""
        return [problem for _, problem in self.ledger() if problem is not None]

    def _every_sample_has_one_fate(self, run: dict[str, Any]) -> str | None:
        """Merged, waiting for a merge, leased, kept or free again: together exactly all below the cursor."""
        at, before = 0, "nobody"
        for row in self._all(_FATES):
            if row["a"] < at:
                return f"samples {row['a']}..{min(at, row['b'])} are {row['what']} and {before} at once"
            if row["a"] > at:
                return f"samples {at}..{row['a']} were handed out and are nowhere"
            at, before = row["b"], row["what"]
        if at != run["cursor"]:
            return f"the samples of all sites end at {at}, the {run['cursor']} handed out do not"
        return None

    def _merged_samples_make_the_tokens(self, run: dict[str, Any]) -> str | None:
        row = self._one(
            "SELECT COALESCE(SUM(tokens), 0) AS t, COALESCE(SUM(samples), 0) AS s FROM members WHERE state = 'MERGED'"
        )
        assert row is not None
        if row["t"] != run["tokens"]:
            return f"merged contributions hold {row['t']} tokens, the run says {run['tokens']}"
        if row["s"] * run["sequence_len"] != row["t"]:
            return f"{row['s']} samples of {run['sequence_len']} tokens are not {row['t']} tokens"
        if row["s"] > run["sample_limit"] or run["cursor"] > run["sample_limit"]:
            return f"the run's budget is {run['sample_limit']} samples, more were given out"
        return None

    def _versions_hold_what_was_merged(self, run: dict[str, Any]) -> str | None:
        row = self._one(
            "SELECT v.version, v.tokens, v.tokens - LAG(v.tokens, 1, 0) OVER (ORDER BY v.version) AS grown,"
            " v.version - LAG(v.version, 1, -1) OVER (ORDER BY v.version) AS gap, COALESCE(m.tokens, 0) AS merged"
            " FROM versions AS v LEFT JOIN (SELECT version, SUM(tokens) AS tokens FROM members"
            " WHERE state = 'MERGED' GROUP BY version) AS m ON m.version = v.version"
            " ORDER BY grown = merged AND gap = 1, v.version LIMIT 1"
        )
        if row is None:
            return "there is no version"
        if row["gap"] != 1:
            return f"version {row['version'] - 1} is missing"
        if row["grown"] != row["merged"]:
            return f"version {row['version']} grew by {row['grown']} tokens, {row['merged']} were merged into it"
        latest = self.latest_version()
        if latest.tokens != run["tokens"]:
            return f"the latest version says {latest.tokens} tokens, the run {run['tokens']}"
        return None

    def _sites_hold_what_they_merged(self, run: dict[str, Any]) -> str | None:
        row = self._one(
            "SELECT s.site, s.tokens, COALESCE(m.tokens, 0) AS merged FROM sites AS s LEFT JOIN"
            " (SELECT site, SUM(tokens) AS tokens FROM members WHERE state = 'MERGED' GROUP BY site) AS m"
            " ON m.site = s.site WHERE s.tokens != COALESCE(m.tokens, 0) LIMIT 1"
        )
        return None if row is None else f"site {row['site']} has {row['tokens']} tokens, {row['merged']} were merged"

    def _contributions_are_there(self, run: dict[str, Any]) -> str | None:
        row = self._one(
            "SELECT m.round, m.site FROM members AS m LEFT JOIN blobs AS b ON b.sha256 = m.blob"
            " WHERE m.state = 'COMMITTED' AND b.sha256 IS NULL LIMIT 1"
        )
        return None if row is None else f"the contribution of {row['site']} to round {row['round']} has no file"

    def _states_belong_together(self, run: dict[str, Any]) -> str | None:
        row = self._one("SELECT COUNT(*) AS n FROM rounds WHERE state IN ('OPEN', 'MERGING')")
        assert row is not None
        if row["n"] > 1:
            return f"{row['n']} rounds are open or being merged at once"
        row = self._one(
            "SELECT m.round, m.site, m.state, r.state AS of FROM members AS m JOIN rounds AS r ON r.round = m.round"
            " WHERE m.state = 'TRAINING' AND r.state != 'OPEN' OR m.state = 'LATE' AND r.state = 'OPEN' LIMIT 1"
        )
        return None if row is None else f"{row['site']} is {row['state']} in round {row['round']}, which is {row['of']}"

    # -- plumbing ------------------------------------------------------------

    def _one(self, sql: str, *values: Any) -> dict[str, Any] | None:
        return next(iter(self._all(sql, *values)), None)

    def _all(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        found = self._db.execute(sql, values)
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found]

    def _insert(self, table: str, values: dict[str, Any], replace: bool = False, ignore: bool = False) -> None:
        verb = "INSERT OR REPLACE" if replace else "INSERT OR IGNORE" if ignore else "INSERT"
        marks = ", ".join("?" * len(values))
        self._db.execute(f"{verb} INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))

    def _update(self, table: str, values: dict[str, Any], where: dict[str, Any]) -> None:
        sets = ", ".join(f"{name} = ?" for name in values)
        keys = " AND ".join(f"{name} = ?" for name in where)
        self._db.execute(f"UPDATE {table} SET {sets} WHERE {keys}", (*values.values(), *where.values()))


_FATES = """
    SELECT lease_start AS a, lease_start + samples AS b, 'merged' AS what FROM members WHERE state = 'MERGED'
    UNION ALL SELECT lease_start, lease_start + samples, 'committed' FROM members WHERE state = 'COMMITTED'
    UNION ALL SELECT lease_start, lease_stop, 'leased' FROM members WHERE state IN ('TRAINING', 'LATE')
    UNION ALL SELECT start, stop, 'kept' FROM kept
    UNION ALL SELECT start, stop, 'free again' FROM returned
    ORDER BY a, b
"""

_INVARIANTS: tuple[tuple[str, Callable[[Transaction, dict[str, Any]], str | None]], ...] = (
    ("every sample that was handed out has one fate", Transaction._every_sample_has_one_fate),
    ("merged samples make the run's tokens", Transaction._merged_samples_make_the_tokens),
    ("every version holds what was merged into it", Transaction._versions_hold_what_was_merged),
    ("every site holds what it merged", Transaction._sites_hold_what_they_merged),
    ("every contribution that waits has its file", Transaction._contributions_are_there),
    ("states of rounds and members belong together", Transaction._states_belong_together),
)
"""The data ledger's invariants, by name."""


class Store:
    """The thread that owns the database.

    Raises (from `open`): DiskError: the folder is full or read-only; CurtailError: the file is damaged or newer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.SimpleQueue[tuple[Callable[[Transaction], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._ready: Future[None] = Future()

    def open(self) -> None:
        """Open or create the file and bring its tables up to date."""
        self._thread.start()
        self._ready.result()

    def submit(self, use_case: Callable[[Transaction], Result]) -> Future[Result]:
        """Run `use_case` in one transaction on the store's thread; the future holds its result or error."""
        future: Future[Result] = Future()
        self._queue.put((use_case, future))
        return future

    def call(self, use_case: Callable[[Transaction], Result]) -> Result:
        """Like `submit`, and wait."""
        return self.submit(use_case).result()

    def close(self) -> None:
        """Finish what was handed over, then close the file."""
        self._queue.put(None)
        self._thread.join()

    def _serve(self) -> None:
        try:
            connection = self._connect()
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        while (entry := self._queue.get()) is not None:
            self._execute(connection, *entry)
        connection.close()

    def _connect(self) -> Database:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None)
        except sqlite3.DatabaseError as error:
            raise store_error(self._path, error) from error
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 30000"):
                connection.execute(f"PRAGMA {pragma}")
            check = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if check != "ok":
                raise CurtailError(f"the store {self._path} is damaged: {check}", "restore it from a backup")
            migrate(connection, self._path)
        except sqlite3.DatabaseError as error:
            connection.close()
            raise store_error(self._path, error) from error
        except CurtailError:
            connection.close()
            raise
        return Database(connection)

    def _execute(self, db: Database, use_case: Callable[[Transaction], Any], future: Future[Any]) -> None:
        transaction = Transaction(db)
        connection = db.conn
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = use_case(transaction)
            connection.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):  # the first error is the one to report
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            reported = store_error(self._path, error) if isinstance(error, sqlite3.OperationalError) else error
            future.set_exception(reported)
            return
        for action in transaction.after_commit:
            action()
        future.set_result(result)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Transaction]:
    """One moment of the store at `path`, to be read only; also while a controller writes to it.

    Raises: NotFound: there is none. CurtailError: it is damaged, or of another schema.
    """
    if not path.is_file():
        raise NotFound(
            f"there is no store {path}", "name the folder that was given to `curtail controller start --home`"
        )
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(connection):
            schema = connection.execute("PRAGMA user_version").fetchone()[0]
            if schema != len(MIGRATIONS):
                raise CurtailError(
                    f"the store {path} has schema {schema}, this curtail knows {len(MIGRATIONS)}",
                    "use the curtail of its controller, or start that controller with this one",
                )
            connection.execute("BEGIN")
            yield Transaction(Database(connection))
    except sqlite3.DatabaseError as error:
        raise store_error(path, error) from error


def migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring the tables up to the newest schema, each step in its own transaction."""
    have = connection.execute("PRAGMA user_version").fetchone()[0]
    if have > len(migrations):
        raise CurtailError(
            f"the store {path} was written by a newer curtail (schema {have}, known {len(migrations)})",
            "install the newer curtail",
        )
    for number in range(have, len(migrations)):
        connection.execute("BEGIN IMMEDIATE")
        for statement in migrations[number].split(";"):
            if statement.strip():
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number + 1}")
        connection.execute("COMMIT")


def store_error(path: Path, error: BaseException) -> CurtailError:
    """The one sentence for an SQLite error."""
    text = str(error)
    # Without space for its shared memory file SQLite speaks of an I/O error.
    if "full" in text or getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHMSIZE":
        return DiskError(f"cannot write the store {path}: the disk is full", "free some space; the run goes on then")
    if "readonly" in text or "unable to open" in text:
        return DiskError(f"cannot write the store {path}: {text}", "fix the folder's permissions")
    if "not a database" in text or "malformed" in text:
        return CurtailError(f"the store {path} is damaged: {text}", "restore it from a backup or use another --home")
    return CurtailError(f"the store {path} failed: {text}")


def _interval(row: dict[str, Any]) -> Interval:
    return Interval(
        **{name: row[name] for name in Interval.__slots__ if name != "curtailed"}, curtailed=bool(row["curtailed"])
    )


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(
        **{name: row[name] for name in Entry.__slots__ if name != "curtailed"}, curtailed=bool(row["curtailed"])
    )
