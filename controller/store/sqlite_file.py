"""Checks SQLite's version and the store's file, copies the file, and limits its size.

Decides which versions of SQLite are refused or cause a warning, and what the check
at the start covers. `controller.store.dataledger` checks the meaning of the rows.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from curtail.errors import CurtailError, DiskError
from curtail.system.disk import disk_error

OLDEST = (3, 37, 0)
"""First version with STRICT tables, sqlite.org/stricttables.html."""

RESET_BUG = ((3, 7, 0), (3, 51, 2))
"""First and last version with the WAL-reset bug, sqlite.org/wal.html#walresetbug: two connections that write or
checkpoint at the same moment can damage the file. Here only one connection of one process does so."""

WAL_BYTES = 64 * 1024 * 1024
"""Size to which the write-ahead log is truncated after a checkpoint."""

EVENTS_KEPT = 100_000
EVENTS_STEP = 1_000
"""How many events are kept, and how many are deleted at a time: more at once would delay heartbeats."""

RESTORE = "keep the folder as it is, and restore a backup into a new one: curtail controller restore BACKUP --home NEW"


@dataclass(frozen=True, slots=True)
class Fitness:
    """Whether a version of SQLite can be used, with a message."""

    level: str  # ok, warn, fail
    text: str
    remedy: str = ""


def sqlite_version() -> tuple[int, int, int]:
    """The version of the SQLite library that this Python uses."""
    return sqlite3.sqlite_version_info


def fitness(version: tuple[int, int, int]) -> Fitness:
    """Can the store be used with this version?"""
    name = ".".join(map(str, version))
    if version < OLDEST:
        needed = ".".join(map(str, OLDEST))
        return Fitness("fail", f"SQLite {name} is too old, {needed} is needed", "use a Python with a newer SQLite")
    first, last = RESET_BUG
    if first <= version <= last:
        return Fitness(
            "warn",
            f"SQLite {name} has the WAL-reset bug, unless its distributor has patched it: if two programs write the"
            " store at once, it can be damaged",
            "the controller writes with one connection only, so let no other program write state.db while it runs;"
            " a Python with SQLite 3.51.3 or later does not have the bug",
        )
    return Fitness("ok", f"SQLite {name}")


def check_file(connection: sqlite3.Connection, path: Path, thorough: bool) -> None:
    """Check the file's structure and its foreign keys.

    Args: thorough: compare indices with their tables, too; the time grows with the file.
    Raises: CurtailError: the file is damaged.
    """
    look = "integrity_check" if thorough else "quick_check"
    found = connection.execute(f"PRAGMA {look}(1)").fetchone()[0]
    if found != "ok":
        raise CurtailError(f"the store {path} is damaged: {found}", RESTORE)
    orphan = connection.execute("PRAGMA foreign_key_check").fetchone()
    if orphan is not None:
        what = f"a row of {orphan[0]} refers to a missing row of {orphan[2]}"
        raise CurtailError(f"the store {path} is damaged: {what}", RESTORE)


def copy_file(source: Path, target: Path) -> None:
    """Copy a consistent snapshot of the store at `source` to `target`, also while its controller writes to it.

    All pages are copied in one step, so that concurrent writes do not restart the copy. Writers do not wait for it.
    The copy is one file without a write-ahead log.
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
    """The error to report for a failed copy."""
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
    """Check the whole store at `path` without changing it; works while its controller runs.

    Raises: CurtailError: it is damaged, or cannot be read.
    """
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(connection):
            check_file(connection, path, thorough=True)
    except sqlite3.DatabaseError as error:
        raise CurtailError(f"the store {path} cannot be read: {error}", RESTORE) from error
