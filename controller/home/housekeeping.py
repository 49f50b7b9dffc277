"""Maintains a controller's folder: deletes old events, watches the write-ahead log, detects a crash.

Deletes the oldest events, a few at a time. Reports when the store's write-ahead
log cannot be truncated because another program reads the store for too long.
Detects that the previous controller did not shut down cleanly. Readings and the
energy ledger are records for accounting, so they are never deleted.
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
"""A write-ahead log of this size is reported; a few seconds of writing do not reach it."""

CHECKED = "the previous controller did not shut down cleanly; the whole store was checked and is sound"


def was_killed(home: Path) -> bool:
    """Did the last controller in `home` end without a clean shutdown? Call only while none runs there."""
    return (home / ADDRESS).exists()


def warn_of_sqlite() -> None:
    """Log a warning if this SQLite has a known bug; call it after the start, because it is not an error."""
    fit = fitness(sqlite_version())
    if fit.level == "warn":
        log.warning("%s; %s", fit.text, fit.remedy)


class Upkeep:
    """A thread that maintains the store at intervals.

    Args: path: of the store. tell: adds a line to the event log: (kind, text).
    """

    def __init__(self, store: Store, path: Path, tell: Callable[[str, str], None]) -> None:
        self._store, self._path, self._tell = store, path, tell
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._complaint = ""
        self._large = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it."""
        self._stop.set()
        self._thread.join()

    def run_once(self) -> None:
        """Maintain the store once. Raises: CurtailError: for example a full disk; the next call retries."""
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
                self.run_once()
                self._complaint = ""
            except CurtailError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    log.error("maintenance of the store failed: %s; retrying", error)


def _words(size: int) -> str:
    return (
        f"the store's write-ahead log has {size // 1_000_000:,} MB, because another program reads the store for too"
        " long; when that program ends, the log is truncated"
    )
