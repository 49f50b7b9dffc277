"""Deletes large files in a background thread, in small steps.

Freeing a gigabyte can take a large part of a second, and the store's thread, on
which every heartbeat waits, decides what is deleted. So it only renames the file
or folder, which frees the name, and a background thread frees the blocks step by
step. The next process deletes what a crash left.
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
"""Bytes freed in one step: freeing a whole file at once would delay every other fsync on that disk."""

PAUSE_S = 0.02
"""Pause between two steps, so that other processes can use the disk."""


class Trash:
    """The trash folder `folder`; it must be on the same file system as the files it takes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._waiting: queue.Queue[Path] = queue.Queue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def take(self, path: Path) -> None:
        """Move `path` to the trash; a missing path is not an error.

        A failure only costs disk space, so it is logged and not raised.
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
        """Delete what an earlier process left in the trash."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                self._free(path)

    def wait(self) -> None:
        """Block until the trash is empty."""
        self._waiting.join()

    def _free(self, path: Path) -> None:
        self._waiting.put(path)
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                # A daemon thread, so that the controller can exit without waiting for it.
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
    """Delete a file or a folder of files, `STEP` bytes at a time. Raises: OSError."""
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
