"""`curtail controller backup`: a consistent snapshot of a run, also while its controller runs.

First the store is copied, then the files that the copy refers to. These never
change, but the controller may delete them meanwhile. So each file gets a hard link
before any is read. If one is gone already, the store is copied again. Secrets are
included only on request.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from controller.files.versions import Versions
from controller.home.archive import NAME, Contents, Entry, Sink, check_target, write
from controller.store import Transaction, reading
from controller.store.rows import RunRow, VersionRow
from controller.store.sqlite_file import copy_file
from curtail import __version__
from curtail.config import config_from_json
from curtail.errors import DataError, DiskError, NotFound, Refused, UsageError
from curtail.system.disk import disk_error
from curtail.system.home_files import JOIN_TOKEN, STORE, TLS, UPDATE_FILE, VERSIONS
from nanochat.checkpoint import META_FILE, MODEL_FILE

HOLDING = "backup"
"""Folder in the home for the hard links. A killed backup leaves it; the next one deletes it."""

TRIES = 10
"""Attempts, if a version is deleted between the copy of the store and the links to its files."""

MARGIN = 16 * 1024 * 1024
"""Bytes that a backup needs in addition to its files."""

SECRETS = (JOIN_TOKEN, f"{TLS}/*")
"""Files with secrets in a controller's home. Their owner can admit sites, or impersonate the controller."""

Files = dict[str, str | None]
"""Name below the home -> SHA-256 in the store, or None."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of the run in a copy of the store."""

    run: RunRow
    latest: VersionRow
    files: Files


def backup(home: Path, target: Path, secrets: bool) -> Contents:
    """Back up the run in `home` to `target`, a folder or a tar file. Returns: the backup's manifest.

    Raises: NotFound: there is no run. Refused: `target` exists. UsageError: it lies in `home`.
        DiskError: no space. DataError: a file of the run is damaged.
    """
    check_target(target)
    if target.absolute().parent.resolve().is_relative_to(home.resolve()):
        raise UsageError(f"{target} lies inside the folder to back up", "choose a place on another disk")
    with _holding(home) as held:
        moment = hold(home, held)
        names: dict[str, Path] = {name: held / name for name in moment.files}
        names[STORE] = held / STORE
        if secrets:
            names |= {f"secrets/{path.relative_to(home).as_posix()}": path for path in secret_files(home)}
        _check_room(target, names)

        def fill(sink: Sink) -> Contents:
            return _contents(moment, {name: _add(sink, name, path, moment) for name, path in names.items()}, secrets)

        return write(target, fill)


def wanted(tx: Transaction, home: Path) -> Moment:
    """The files below `home` that the rows refer to, and all files in the folders of kept versions.

    Raises: NotFound: the store has no run.
    """
    run = tx.run()
    if run is None:
        raise NotFound(f"the store in {home} has no run yet", "start its controller first")
    files: Files = {}
    for version in tx.kept_versions():
        folder = Versions(home / VERSIONS).path(version.version).relative_to(home)
        with contextlib.suppress(OSError):  # a file that was deleted meanwhile is detected below
            names = [(folder / name).as_posix() for name in os.listdir(home / folder)]
            files |= {name: None for name in names if NAME.fullmatch(name)}
        files |= {(folder / META_FILE).as_posix(): None, (folder / MODEL_FILE).as_posix(): version.weights}
        if version.updates:
            files[(folder / UPDATE_FILE).as_posix()] = version.updates
    files |= {f"blobs/{blob.sha256}": blob.sha256 for blob in tx.blobs_of_kind("contribution")}
    return Moment(run, tx.latest_version(), files)


def hold(home: Path, held: Path) -> Moment:
    """Copy the store, and link all files that it refers to, into the empty folder `held`.

    Raises: DataError: a file that the store refers to is missing in every attempt.
    """
    missing = ""
    for _ in range(TRIES):
        (held / STORE).unlink(missing_ok=True)
        copy_file(home / STORE, held / STORE)
        with reading(held / STORE) as tx:
            moment = wanted(tx, home)
        gone = [name for name in moment.files if not _second_name(home / name, held / name)]
        if not gone:
            return moment
        missing = gone[0]
    raise DataError(f"the file {home / missing} is missing", "run `curtail ledger check --weights`")


def _second_name(path: Path, held: Path) -> bool:
    """Create the hard link `held` to `path`. Returns: False if `path` is gone. Raises: DiskError."""
    try:
        held.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, held)
        except FileExistsError:
            return True  # linked in an earlier attempt: files never change
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EXDEV, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
                raise
            shutil.copyfile(path, held)  # a file system without hard links
    except FileNotFoundError:
        return False
    except OSError as error:
        raise disk_error("hold", path, error) from error
    return True


def secret_files(home: Path) -> list[Path]:
    """The files with secrets below `home`."""
    return [path for pattern in SECRETS for path in sorted(home.glob(pattern)) if path.is_file()]


@contextlib.contextmanager
def _holding(home: Path) -> Iterator[Path]:
    """The empty folder for hard links, while the block runs. Raises: NotFound, Refused, DiskError."""
    if not (home / STORE).is_file():
        raise NotFound(f"there is no store in {home}", "give the folder that was given to `curtail controller start`")
    folder = home / HOLDING
    try:
        lock = open(home / f"{HOLDING}.lock", "w")  # noqa: SIM115 (held while the block runs)
    except OSError as error:
        raise disk_error("use the folder", home, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"another backup of {home} is running", "wait for it") from None
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            yield folder
        except OSError as error:
            raise disk_error("use the folder", folder, error) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def clear_holding(home: Path) -> None:
    """Delete the hard links that a killed backup left, because they keep deleted files on the disk."""
    if (home / HOLDING).is_dir():
        with contextlib.suppress(Refused), _holding(home):  # refused: a backup is running
            pass


def _check_room(target: Path, names: dict[str, Path]) -> None:
    try:
        size = sum(path.stat().st_size for path in names.values())
        free = shutil.disk_usage(target.absolute().parent).free
    except OSError as error:
        raise disk_error("measure", target, error) from error
    if free < size + MARGIN:
        raise DiskError(
            f"the backup needs {size + MARGIN:,} bytes, but {target.absolute().parent} has only {free:,}",
            "free some space there or choose another folder",
        )


def _add(sink: Sink, name: str, path: Path, moment: Moment) -> Entry:
    with open(path, "rb") as file:
        entry = sink.add(name, os.fstat(file.fileno()).st_size, file)
    expected = moment.files.get(name)
    if expected is not None and entry.sha256 != expected:
        raise DataError(f"{name} is damaged: it does not match the store", "use an older backup of it")
    return entry


def _contents(moment: Moment, files: dict[str, Entry], secrets: bool) -> Contents:
    return Contents(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        curtail=__version__,
        run=moment.run.id,
        name=config_from_json(moment.run.config).run.name,
        version=moment.latest.version,
        tokens=moment.run.tokens,
        secrets=secrets,
        files=files,
    )


def run_backup(home: Path, target: Path, secrets: bool) -> int:
    """Make a backup and print what it contains. Returns: the exit code. Raises: CurtailError."""
    made = backup(home, target, secrets)
    size = sum(entry.size for entry in made.files.values())
    print(
        f"{target}: run {made.name} at version {made.version}, {made.tokens} tokens;"
        f" {len(made.files)} files, {size} bytes"
    )
    if secrets:
        print("the backup contains secrets: keep it where only you can read it")
    else:
        print("the backup has no secrets: a restored controller creates a new join token and certificate authority")
    return 0
