"""`curtail controller restore`: restores a backup to a new controller folder.

First everything is checked: each file's hash, the SQLite file, the data ledger, and
that every version matches the store. This happens in a temporary folder, which is
renamed at the end. What happened after the backup is not in the restored ledger:
samples that were merged later are trained again, and contributions that sites made
after the backup are refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from datetime import datetime
from pathlib import Path

from controller.home.archive import Contents, unpack
from controller.home.backup import wanted
from controller.home.data_ledger import look
from controller.store import Store, reading
from curtail.errors import DataError, Refused
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import SystemDisk, disk_error, fsync_folder
from curtail.system.home_files import STORE

EVENT = "restore"
"""Kind of the event for a restore."""


def restore(source: Path, home: Path, clock: Clock) -> Contents:
    """Restore the backup `source` to the new folder `home`. Returns: the backup's manifest.

    Raises: Refused: `home` is not empty. NotFound: no backup. DataError, CurtailError: it is damaged. DiskError.
    """
    if home.is_symlink() or (home.exists() and (not home.is_dir() or any(home.iterdir()))):
        raise Refused(f"{home} is not empty", "give a new folder, or move the old one away to reuse its name")
    beside = home.absolute().with_name(f".{home.absolute().name}.{os.getpid()}.restoring")
    SystemDisk().folder("RESTORED_BESIDE", beside.parent, 0o700)
    try:
        beside.mkdir(mode=0o700)
        contents = unpack(source, beside)
        _place_secrets(beside)
        check(source, beside)
        _tell(beside, contents, clock)
        _publish(beside, home)
    except OSError as error:
        raise disk_error("restore into", home, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return contents


def check(source: Path, folder: Path) -> None:
    """Check the run that was unpacked from `source` to `folder`.

    Raises: DataError: a file is missing, or the ledger is broken. CurtailError: the store is damaged.
    """
    store = Store(folder / STORE, thorough=True)
    store.open()
    store.close()
    with reading(folder / STORE) as tx:
        missing = [name for name in wanted(tx, folder).files if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{missing[0]} is missing in {source}, but its store refers to it", "use another backup")
    for what, problem in look(folder, weights=True):
        if problem is not None:
            raise DataError(f"the ledger in {source} is broken: {what}: {problem}", "use another backup")


def _place_secrets(folder: Path) -> None:
    secrets = folder / "secrets"
    if secrets.is_dir():
        for path in secrets.iterdir():
            os.rename(path, folder / path.name)
        secrets.rmdir()


def _tell(folder: Path, contents: Contents, clock: Clock) -> None:
    """Add an event at the run's own time, so that the restore is visible later."""
    store = Store(folder / STORE)
    store.open()
    text = (
        f"restored from the backup of {_when(contents.created)} at version {contents.version}, {contents.tokens}"
        " tokens; what came later is not in this ledger and is trained again"
    )
    try:
        run = store.call(lambda tx: tx.run())
        assert run is not None
        store.call(lambda tx: tx.add_event(run.clock, clock.wall(), EVENT, text))
    finally:
        store.close()


def _when(created: str) -> str:
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(created).strftime("%Y-%m-%d %H:%M:%S UTC")
    return created


def _publish(beside: Path, home: Path) -> None:
    for path in [*(p for p in beside.rglob("*") if p.is_dir()), beside]:
        fsync_folder(path)
    os.rename(beside, home)  # over an empty folder, too
    fsync_folder(home.absolute().parent)


def run_restore(source: Path, home: Path) -> int:
    """Restore a backup and print the next steps. Returns: the exit code. Raises: CurtailError."""
    contents = restore(source, home, SystemClock())
    print(
        f"{home}: run {contents.name} at version {contents.version}, {contents.tokens} tokens, as of {contents.created}"
    )
    print("checked: all hashes, the store and the data ledger are sound")
    if not contents.secrets:
        print("the backup had no secrets: give the agents the new join token of this folder")
    print(f"next: curtail controller start RUN_FILE --home {home}")
    return 0
