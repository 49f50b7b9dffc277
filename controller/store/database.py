"""The thread that owns the store's file, its transactions, and read-only access from other processes."""

from __future__ import annotations

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from sqlite_utils import Database

from controller.store.access import AccessTables
from controller.store.dataledger import DataLedger
from controller.store.energy import EnergyTables
from controller.store.fleet import FleetTables
from controller.store.orders import OrderTables
from controller.store.provision import ProvisionTables
from controller.store.run import RunTables
from controller.store.schema import MIGRATIONS, migrate
from controller.store.sqlite_file import RESTORE, WAL_BYTES, check_file, fitness, sqlite_version
from curtail.errors import CurtailError, DiskError, NotFound

log = logging.getLogger("curtail.store")

Result = TypeVar("Result")


class Transaction(RunTables, FleetTables, AccessTables, DataLedger, EnergyTables, OrderTables, ProvisionTables):
    """All operations on the store; valid only inside the function that it was passed to."""

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self.after_commit: list[Callable[[], None]] = []
        self.after_rollback: list[Callable[[], None]] = []  # called last first, to undo changes in memory


PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 30000")


class Store:
    """The thread that owns the database.

    Args: thorough: check the whole file when it is opened; used after an unclean shutdown.
    Raises (from `open`): DiskError: the folder is full or read-only; CurtailError: the file is damaged or newer.
    """

    def __init__(self, path: Path, thorough: bool = False) -> None:
        self._path = path
        self._thorough = thorough
        self._queue: queue.SimpleQueue[tuple[Callable[[Transaction], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="store", daemon=True)
        self._ready: Future[None] = Future()

    def open(self) -> None:
        """Open or create the file and migrate its tables."""
        self._thread.start()
        self._ready.result()

    def submit(self, use_case: Callable[[Transaction], Result]) -> Future[Result]:
        """Run `use_case` in one transaction on the store's thread; the future holds its result or error."""
        future: Future[Result] = Future()
        self._queue.put((use_case, future))
        return future

    def call(self, use_case: Callable[[Transaction], Result]) -> Result:
        """Like `submit`, but wait for the result."""
        return self.submit(use_case).result()

    def close(self) -> None:
        """Run all submitted use cases, then close the file."""
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
        fit = fitness(sqlite_version())
        if fit.level == "fail":
            raise CurtailError(fit.text, fit.remedy)
        try:
            connection = sqlite3.connect(self._path, isolation_level=None)
        except sqlite3.DatabaseError as error:
            raise store_error(self._path, error) from error
        try:
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
            check_file(connection, self._path, self._thorough)
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
            for undo in reversed(transaction.after_rollback):
                undo()
            # A wrong statement or value is our own bug, so it keeps its traceback.
            ours = isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError))
            stores = isinstance(error, sqlite3.DatabaseError) and not ours
            future.set_exception(store_error(self._path, error) if stores else error)
            return
        for action in transaction.after_commit:
            try:
                action()
            except Exception:
                # The transaction is committed. The thread must go on, because everything waits for it.
                log.exception("a callback after a transaction failed")
        future.set_result(result)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Transaction]:
    """A read-only snapshot of the store at `path`; works while a controller writes to it.

    Raises: NotFound: there is no store. CurtailError: it is damaged, empty, or has another schema.
    """
    if not path.is_file():
        raise NotFound(
            f"there is no store {path}", "give the folder that was given to `curtail controller start --home`"
        )
    if path.stat().st_size == 0:
        raise CurtailError(f"the store {path} is empty", RESTORE)
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        with contextlib.closing(connection):
            schema = connection.execute("PRAGMA user_version").fetchone()[0]
            if schema != len(MIGRATIONS):
                raise CurtailError(
                    f"the store {path} has schema {schema}, but this curtail has schema {len(MIGRATIONS)}",
                    "use the controller's version of curtail, or start the controller with this version",
                )
            connection.execute("BEGIN")
            yield Transaction(Database(connection))
    except sqlite3.DatabaseError as error:
        raise store_error(path, error) from error


def store_error(path: Path, error: BaseException) -> CurtailError:
    """The error to report for an SQLite error."""
    text = str(error)
    # Without space for its shared memory file SQLite reports an I/O error.
    if "full" in text or getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHMSIZE":
        return DiskError(f"cannot write the store {path}: the disk is full", "free some space; then the run continues")
    if "readonly" in text or "unable to open" in text:
        return DiskError(f"cannot write the store {path}: {text}", "fix the folder's permissions")
    if "not a database" in text or "malformed" in text:
        return CurtailError(f"the store {path} is damaged: {text}", RESTORE)
    return CurtailError(f"the store {path} failed: {text}")
