"""The store's file as a file: is SQLite fit for it, is it sound, how is it copied and kept small.

Decides which versions of SQLite are refused or warned of, and what a check at
the start covers. Nothing here knows what the rows mean: that is
`controller.store.dataledger`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from curtail.errors import CurtailError, DiskError
from curtail.system.disk import disk_error

OLDEST = (3, 37, 0)
"""STRICT tables, sqlite.org/stricttables.html."""

RESET_BUG = ((3, 7, 0), (3, 51, 2))
"""First and last version with the WAL-reset bug, sqlite.org/wal.html#walresetbug: two connections that write or
checkpoint at the same moment can damage the file. Here only one connection of one process ever does."""

WAL_BYTES = 64 * 1024 * 1024
"""What the write-ahead log is cut back to, once it is written back into the file."""

EVENTS_KEPT = 100_000
EVENTS_STEP = 1_000
"""Lines of the log that stay, and how many are deleted at a time: all at once would hold up heartbeats."""

RESTORE = "keep the folder as it is, and restore a backup into a new one: curtail controller restore BACKUP --home NEW"


@dataclass(frozen=True, slots=True)
class Fitness:
    """What is to be said about a version of SQLite."""

    level: str  # ok, warn, fail
    text: str
    remedy: str = ""


def sqlite_version() -> tuple[int, int, int]:
    """The version of the SQLite library that this Python uses."""
    return sqlite3.sqlite_version_info


def fitness(version: tuple[int, int, int]) -> Fitness:
    """Can the store be kept with this version?"""
    name = ".".join(map(str, version))
    if version < OLDEST:
        needed = ".".join(map(str, OLDEST))
        return Fitness("fail", f"SQLite {name} is too old, {needed} is needed", "use a Python with a newer SQLite")
    first, last = RESET_BUG
    if first <= version <= last:
        return Fitness(
            "warn",
            f"SQLite {name} has the WAL-reset bug, unless its distributor has patched it: with two programs that write"
            " the store at once it could be damaged",
            "the controller writes with one connection only, so let no other program write state.db while it runs;"
            " to be rid of the bug use a Python with SQLite 3.51.3 or later",
        )
    return Fitness("ok", f"SQLite {name}")


def check_file(connection: sqlite3.Connection, path: Path, thorough: bool) -> None:
    """Is the file sound, and does every row that names another one find it?

    Args: thorough: compare indices with their tables too; takes time in proportion to the file.
    Raises: CurtailError: it is damaged.
    """
    look = "integrity_check" if thorough else "quick_check"
    found = connection.execute(f"PRAGMA {look}(1)").fetchone()[0]
    if found != "ok":
        raise CurtailError(f"the store {path} is damaged: {found}", RESTORE)
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        raise CurtailError(f"the store {path} is damaged: a row of {orphan[0]} names a missing {orphan[2]}", RESTORE)


def copy_file(source: Path, target: Path) -> None:
    """Make `target` the store at `source` as it is at one moment, also while its controller writes to it.

    All pages in one step, so that nothing which is written meanwhile begins it anew; writers do not wait for it.
    The copy is one file, without a log beside it.
    Raises: DiskError. CurtailError: the source is damaged.
    """
    try:
        reading = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(reading), contextlib.closing(sqlite3.connect(target, isolation_level=None)) as writing:
            reading.backup(writing)
            writing.execute("PRAGMA journal_mode = DELETE")
            check_file(writing, source, thorough=True)
    except sqlite3.DatabaseError as error:
        raise copy_error(source, target, error) from error


def copy_error(source: Path, target: Path, error: sqlite3.DatabaseError) -> CurtailError:
    """The one sentence for a copy that failed."""
    text = str(error)
    if "full" in text:
        return DiskError(f"cannot write {target}: the disk is full", "free some space there or choose another folder")
    if "malformed" in text or "not a database" in text:
        return CurtailError(f"the store {source} is damaged: {text}", RESTORE)
    return CurtailError(f"the store {source} cannot be copied: {text}")


def log_bytes(path: Path) -> int:
    """Size of the write-ahead log beside the store at `path`; 0 if there is none. Raises: DiskError."""
    log = path.with_name(f"{path.name}-wal")
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise disk_error("read", log, error) from error


def examine_file(path: Path) -> None:
    """Check all of the store at `path` without changing it, also while its controller runs.

    Raises: CurtailError: it is damaged, or cannot be read.
    """
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(connection):
            check_file(connection, path, thorough=True)
    except sqlite3.DatabaseError as error:
        raise CurtailError(f"the store {path} cannot be read: {error}", RESTORE) from error
