"""The form of a backup: a folder, or one tar file, of named files and a manifest with their hashes.

Decides which names a backup can hold, so that a hostile one cannot write
elsewhere; that it is written beside its place and renamed when it is whole and
durable; and that nothing which is read from it counts before its hash was
compared. What belongs into a backup is decided by `controller.home.backup`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from curtail.errors import DataError, NotFound, Refused, UsageError
from curtail.system.disk import disk_error, fsync_folder

FORMAT = "curtail-backup-1"
MANIFEST = "manifest.json"
MANIFEST_LIMIT = 16 * 1024 * 1024
"""Bytes; a manifest that is longer is none of ours."""

NAME = re.compile(
    r"state\.db|versions/v\d{6,}/[a-z_]{1,64}\.(safetensors|json)|blobs/[0-9a-f]{64}"
    r"|secrets/(tls/)?[a-z][\w.-]{0,63}"
)
"""The files of a backup. No part begins with a dot."""

PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a backup."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup says of itself."""

    created: str  # ISO 8601, UTC
    curtail: str  # version that made it
    run: str
    name: str
    version: int  # the latest
    tokens: int
    secrets: bool
    files: dict[str, Entry]


class Sink(Protocol):
    """Where a backup is written."""

    def add(self, name: str, size: int, source: IO[bytes]) -> Entry:
        """Take exactly `size` bytes from `source` as the file `name`. Raises: OSError; DataError: there are fewer."""
        ...


class _Hashing:
    """A file that is read, and hashed on the way."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self.hash = source, hashlib.sha256()

    def read(self, count: int = -1) -> bytes:
        piece = self._source.read(count)
        self.hash.update(piece)
        return piece


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(mode=0o700)

    def add(self, name: str, size: int, source: IO[bytes]) -> Entry:
        return write_file(self._path / name, size, source)

    def finish(self) -> None:
        for folder in sorted({self._path, *(p for p in self._path.rglob("*") if p.is_dir())}):
            fsync_folder(folder)

    def close(self) -> None:
        """Nothing is open between two files."""


class _Tar:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", opener=_private)  # noqa: SIM115 (held until `close`)
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, size: int, source: IO[bytes]) -> Entry:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        hashing = _Hashing(source)
        self._tar.addfile(info, hashing)
        return Entry(hashing.hash.hexdigest(), size)

    def finish(self) -> None:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # the error that came before is the one to report
            self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_file(path: Path, size: int, source: IO[bytes]) -> Entry:
    """Write exactly `size` bytes of `source` to the new file `path`, durably, mode 0600.

    Raises: OSError. DataError: there are fewer.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    hashing, left = _Hashing(source), size
    with open(path, "xb", opener=_private) as file:
        while left > 0:
            piece = hashing.read(min(PIECE, left))
            if not piece:
                raise DataError(f"{path.name} is shorter than it should be", "use another backup")
            file.write(piece)
            left -= len(piece)
        file.flush()
        os.fsync(file.fileno())
    return Entry(hashing.hash.hexdigest(), size)


def check_target(target: Path) -> None:
    """Raises: UsageError, Refused: nothing can be written there, or something is there already."""
    if os.path.lexists(target):
        raise Refused(f"{target} is there already", "give a new name; a backup never overwrites another one")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"the folder {target.absolute().parent} does not exist", "create it first")


def write(target: Path, fill: Callable[[Sink], Contents]) -> Contents:
    """Make the backup `target`, a tar file if it is called so, else a folder: whole, durable, or not at all.

    Raises: DiskError; what `fill` raises.
    """
    temp = target.absolute().with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with contextlib.closing(_Tar(temp) if target.suffix == ".tar" else _Folder(temp)) as sink:
            contents = fill(sink)
            text = json.dumps({"format": FORMAT, **asdict(contents)}, indent=1).encode()
            sink.add(MANIFEST, len(text), io.BytesIO(text))
            sink.finish()
        os.rename(temp, target)
        fsync_folder(temp.parent)
    except OSError as error:
        raise disk_error("write the backup", target, error) from error
    finally:
        _discard(temp)
    return contents


def _discard(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def unpack(source: Path, folder: Path) -> Contents:
    """Copy the backup `source` into the empty `folder`; every file is what the manifest says.

    Raises: NotFound: there is no backup. DataError: it is damaged, or none of ours. DiskError.
    """
    if not source.exists():
        raise NotFound(f"there is no backup {source}", "name the file or folder that `curtail controller backup` made")
    found: dict[str, Entry] = {}
    manifest = b""
    try:
        for name, size, file in _files(source):
            if name == MANIFEST:
                if size > MANIFEST_LIMIT:
                    raise DataError(f"{source} has a manifest of {size} bytes", "use another backup")
                manifest = file.read(size)
            elif not NAME.fullmatch(name) or name in found:
                raise DataError(f"{source} holds {name!r}, which no backup has", "use another backup")
            else:
                found[name] = write_file(folder / name, size, file)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{source} cannot be read: {error}", "use another backup") from error
    except OSError as error:
        raise disk_error("unpack the backup into", folder, error) from error
    contents = parse(source, manifest)
    _compare(source, contents.files, found)
    return contents


def _compare(source: Path, wanted: dict[str, Entry], found: dict[str, Entry]) -> None:
    for name in sorted({*wanted, *found}):
        if name not in found:
            raise DataError(f"{source} lacks {name}", "use another backup")
        if wanted.get(name) != found[name]:
            raise DataError(f"{name} in {source} is damaged: it is not what the manifest says", "use another backup")


def _files(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and bytes of every file; the bytes are to be read at once."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise DataError(f"{path} is neither a file nor a folder", "use another backup")
            if path.is_file():
                with open(path, "rb") as file:
                    yield path.relative_to(source).as_posix(), path.stat().st_size, file
        return
    with tarfile.open(source, "r|") as tar:
        for info in tar:
            content = tar.extractfile(info) if info.isreg() else None
            if content is None:
                raise DataError(f"{source} holds {info.name!r}, which is no plain file", "use another backup")
            yield info.name, info.size, content


def parse(source: Path, text: bytes) -> Contents:
    """The manifest of the backup `source`. Raises: DataError."""
    try:
        value: Any = json.loads(text)
        if value.pop("format") != FORMAT:
            raise ValueError("another format")
        files = {str(name): Entry(str(e["sha256"]), int(e["size"])) for name, e in value.pop("files").items()}
        return Contents(**value, files=files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{source} has no manifest of a backup", "use what `curtail controller backup` made") from error
