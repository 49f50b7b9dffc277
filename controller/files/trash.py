"""Large files go from the disk beside the thread that decides it.

Freeing the blocks of a gigabyte takes a disk a good part of a second, and the
thread that decides what goes is the store's, on which every heartbeat waits. So
a file or folder is renamed away at once, which makes its name free, and its
blocks are freed by a thread, bit by bit. What a crash leaves is freed by the
next process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import threading
import time
from pathlib import Path

log = logging.getLogger("curtail.disk")

STEP = 64 * 1024 * 1024
"""Bytes freed at a time: all of a file at once would hold up everybody else's fsync on that disk."""

PAUSE_S = 0.02
"""Between two steps, for what else waits for the disk."""


class Removals:
    """The folder `folder`, which holds what is on its way out; same file system as what it takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: queue.Queue[Path] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self, path: Path) -> None:
        """Make `path` disappear; a path that is not there is no error.

        A failure costs space and nothing else, so it is logged, not raised.
        """
        taken = self._folder / f"{path.name}.{secrets.token_hex(4)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            os.rename(path, taken)
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("cannot delete %s: %s", path, error.strerror)
            return
        self._free(taken)

    def resume(self) -> None:
        """Free what an earlier process left here."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                self._free(path)

    def wait(self) -> None:
        """Until all that was taken is freed."""
        self._waiting.join()

    def _free(self, path: Path) -> None:
        self._waiting.put(path)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # A daemon: the end of the controller does not wait for it.
                self._thread = threading.Thread(target=self._run, name="removals", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            path = self._waiting.get()
            try:
                free(path)
            except OSError as error:
                log.error("cannot delete %s: %s", path, error.strerror)
            finally:
                self._waiting.task_done()


def free(path: Path) -> None:
    """Delete a file, or a folder of files, a `STEP` at a time. Raises: OSError."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            free(inner)
        path.rmdir()
        return
    with contextlib.suppress(FileNotFoundError):
        if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
            for left in range(path.stat().st_size - STEP, 0, -STEP):
                os.truncate(path, left)
                time.sleep(PAUSE_S)
        path.unlink()
