"""Reads and writes backup archives: a folder or tar file of files, and a manifest with their hashes.

Only certain names are allowed in a backup, so that a malicious one cannot write
elsewhere. A backup is written under a temporary name and renamed when it is
complete and durable. Files read from it are used only after their hashes were
checked. `controller.home.backup` decides what a backup contains.
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
"""Largest manifest, in bytes."""

NAME = re.compile(
    r"state\.db|versions/v\d{6,}/[a-z_]{1,64}\.(safetensors|json)|blobs/[0-9a-f]{64}"
    r"|secrets/(tls/)?[a-z][\w.-]{0,63}"
)
"""The file names allowed in a backup. No component begins with a dot."""

PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One file of a backup."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Contents:
    """The manifest of a backup."""

    created: str  # ISO 8601, UTC
    curtail: str  # version that created it
    run: str
    name: str
    version: int  # the latest version of the weights
    tokens: int
    secrets: bool
    files: dict[str, ArchiveEntry]


class Sink(Protocol):
    """Writes the files of a backup."""

    def add(self, name: str, size: int, source: IO[bytes]) -> ArchiveEntry:
        """Write exactly `size` bytes of `source` as the file `name`. Raises: OSError. DataError: there are fewer."""
        ...


class _Hashing:
    """Hashes a file while it is read."""

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

    def add(self, name: str, size: int, source: IO[bytes]) -> ArchiveEntry:
        return write_file(self._path / name, size, source)

    def finish(self) -> None:
        for folder in sorted({self._path, *(p for p in self._path.rglob("*") if p.is_dir())}):
            fsync_folder(folder)

    def close(self) -> None:
        """Do nothing: no file is open between two calls."""


class _Tar:
    def __init__(self, path: Path) -> None:
        self._file = open(path, "xb", opener=_private)  # noqa: SIM115 (held until `close`)
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)

    def add(self, name: str, size: int, source: IO[bytes]) -> ArchiveEntry:
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        hashing = _Hashing(source)
        self._tar.addfile(info, hashing)
        return ArchiveEntry(hashing.hash.hexdigest(), size)

    def finish(self) -> None:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # an earlier error is the one to report
            self._file.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_file(path: Path, size: int, source: IO[bytes]) -> ArchiveEntry:
    """Write exactly `size` bytes of `source` to the new file `path`, durably and with mode 0600.

    Raises: OSError. DataError: `source` has fewer bytes.
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
    return ArchiveEntry(hashing.hash.hexdigest(), size)


def check_target(target: Path) -> None:
    """Raises: UsageError: the parent folder does not exist. Refused: `target` exists already."""
    if os.path.lexists(target):
        raise Refused(f"{target} exists already", "give a new name; a backup never overwrites another one")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"the folder {target.absolute().parent} does not exist", "create it first")


def write(target: Path, fill: Callable[[Sink], Contents]) -> Contents:
    """Write the backup `target` durably and atomically: a tar file if its name says so, else a folder.

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
    """Copy the backup `source` into the empty `folder`, and check every file against the manifest.

    Raises: NotFound: there is no backup. DataError: it is damaged, or not a backup of curtail. DiskError.
    """
    if not source.exists():
        raise NotFound(f"there is no backup {source}", "give the file or folder that `curtail controller backup` wrote")
    found: dict[str, ArchiveEntry] = {}
    manifest = b""
    try:
        for name, size, file in _files(source):
            if name == MANIFEST:
                if size > MANIFEST_LIMIT:
                    raise DataError(f"{source} has a manifest of {size} bytes", "use another backup")
                manifest = file.read(size)
            elif not NAME.fullmatch(name) or name in found:
                raise DataError(f"{source} contains {name!r}, which is not allowed in a backup", "use another backup")
            else:
                found[name] = write_file(folder / name, size, file)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{source} cannot be read: {error}", "use another backup") from error
    except OSError as error:
        raise disk_error("unpack the backup into", folder, error) from error
    contents = parse(source, manifest)
    _compare(source, contents.files, found)
    return contents


def _compare(source: Path, wanted: dict[str, ArchiveEntry], found: dict[str, ArchiveEntry]) -> None:
    for name in sorted({*wanted, *found}):
        if name not in found:
            raise DataError(f"{name} is missing in {source}", "use another backup")
        if wanted.get(name) != found[name]:
            raise DataError(f"{name} in {source} is damaged: it does not match the manifest", "use another backup")


def _files(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of every file; read the content before the next file."""
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
                raise DataError(f"{source} contains {info.name!r}, which is not a regular file", "use another backup")
            yield info.name, info.size, content


def parse(source: Path, text: bytes) -> Contents:
    """The manifest of the backup `source`. Raises: DataError."""
    try:
        value: Any = json.loads(text)
        if value.pop("format") != FORMAT:
            raise ValueError("another format")
        files = {str(name): ArchiveEntry(str(e["sha256"]), int(e["size"])) for name, e in value.pop("files").items()}
        return Contents(**value, files=files)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{source} has no valid manifest of a backup", "use what `curtail controller backup` wrote"
        ) from error
