"""`curtail controller restore`: a backup becomes the folder of a run.

Nothing counts before everything was checked: each file's hash, the store as
SQLite sees it, the data ledger, and that every version is what the store says.
All of it happens beside the new folder, which appears as a whole. What happened
after the backup is not in the restored ledger: samples that were merged later
are trained anew, and what the sites hand in from that time is refused.
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
"""Kind of the event that says so."""


def restore(source: Path, home: Path, clock: Clock) -> Contents:
    """Make the backup `source` the new folder `home` of a run; returns what it holds.

    Raises: Refused: `home` is not empty. NotFound: no backup. DataError, CurtailError: it is damaged. DiskError.
    """
    if home.is_symlink() or (home.exists() and (not home.is_dir() or any(home.iterdir()))):
        raise Refused(f"{home} is not empty", "give a new folder; move the old one away if the run is to have its name")
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
    """Is what was unpacked from `source` into `folder` a sound run?

    Raises: DataError: a file is missing, or the ledger is broken. CurtailError: the store is damaged.
    """
    store = Store(folder / STORE, thorough=True)
    store.open()
    store.close()
    with reading(folder / STORE) as tx:
        missing = [name for name in wanted(tx, folder).files if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{source} lacks {missing[0]}, which its store names", "use another backup")
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
    """An event for everybody who looks at the run later, at the run's own time."""
    store = Store(folder / STORE)
    store.open()
    text = (
        f"restored from the backup of {_when(contents.created)} at version {contents.version}, {contents.tokens}"
        " tokens; what came after it is not in this ledger and is trained anew"
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
    """Restore a backup and say how to go on; returns the exit code. Raises: CurtailError."""
    contents = restore(source, home, SystemClock())
    print(
        f"{home}: run {contents.name} at version {contents.version}, {contents.tokens} tokens, as of {contents.created}"
    )
    print("all hashes, the store and the data ledger are as they should be")
    if not contents.secrets:
        print("the backup held no secrets: give the agents the new join token of this folder")
    print(f"go on with: curtail controller start RUN_FILE --home {home}")
    return 0
