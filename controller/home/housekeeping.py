"""What keeps a controller's folder in order while it runs for months.

Deletes the oldest lines of the log, a few at a time, and says so when the
store's write-ahead log cannot be cut back because something else reads the
store for too long. Also: was the controller before this one ended in order?
Readings and the energy ledger are accounts and are never deleted.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from controller.store import Store
from controller.store.sqlite_file import EVENTS_KEPT, EVENTS_STEP, fitness, log_bytes, sqlite_version
from curtail.errors import CurtailError
from curtail.system.home_files import ADDRESS

log = logging.getLogger("curtail.controller")

EVERY_S = 30.0
LOG_ALARM_BYTES = 1024 * 1024 * 1024
"""A write-ahead log that large is not the work of a few seconds."""

"""There while a controller runs; an orderly end removes it."""

CHECKED = "the controller before did not end in order; the store was checked as a whole and is sound"


def was_killed(home: Path) -> bool:
    """Did the controller that ran in `home` last end without putting things in order? Only while none runs there."""
    return (home / ADDRESS).exists()


def warn_of_sqlite() -> None:
    """One line in the log if this SQLite has a known bug; when all else has started, since it is no error."""
    fit = fitness(sqlite_version())
    if fit.level == "warn":
        log.warning("%s; %s", fit.text, fit.remedy)


class Upkeep:
    """A thread that looks after the store from time to time.

    Args: path: of the store. tell: notes one line in the event log: (kind, text).
    """

    def __init__(self, store: Store, path: Path, tell: Callable[[str, str], None]) -> None:
        self._store, self._path, self._tell = store, path, tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._complaint = ""
        self._large = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it."""
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """One round of it. Raises: CurtailError: the disk is full, say; the next one tries again."""
        while self._store.call(lambda tx: tx.prune_events(EVENTS_KEPT, EVENTS_STEP)) == EVENTS_STEP:
            if self._stop.is_set():
                return
        size = log_bytes(self._path)
        if (size > LOG_ALARM_BYTES) != self._large:
            self._large = not self._large
            self._tell("store", _words(size) if self._large else "the store's write-ahead log is small again")

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            try:
                self.look()
                self._complaint = ""
            except CurtailError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.error("the upkeep of the store failed: %s; it is tried again", error)


def _words(size: int) -> str:
    return (
        f"the store's write-ahead log has {size // 1_000_000:,} MB: another program reads the store for too long;"
        " end it, and the log is cut back"
    )
