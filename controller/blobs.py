"""Uploads and downloads of files that are named by their SHA-256.

An upload is reserved first (size and free space are checked before a byte is
sent), then arrives in parts that are written to their place in one file, each
with its own checksum; the whole is hashed before it counts. Parts are written
as they arrive, so that many at a time take little memory. Parts that arrived
survive a restart, so a broken upload resumes. Which file a name stands for is
in the store; this module only handles bytes.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from controller.removals import Removals
from curtail.disk import Disk, disk_error
from curtail.errors import DiskError, NotFound, Refused, WireError
from curtail.wire import PART_BYTES, BlobStatus

SHA256 = re.compile(r"[0-9a-f]{64}")

RESERVE = 64 * 1024 * 1024
"""Bytes that must stay free after an upload, for the store and the next version's small files."""

ABANDONED_S = 86400.0
"""An upload that is a day old belongs to a round that is long over."""

PIECE = 1024 * 1024
"""Bytes read and sent, or received and written, at a time."""


def check_name(sha256: str) -> str:
    """`sha256` if it is one. Raises: WireError."""
    if not SHA256.fullmatch(sha256):
        raise WireError("a blob is named by 64 lower-case hex digits, its SHA-256")
    return sha256


class Uploads:
    """The folder `HOME/blobs`: finished contributions, and `incoming` ones."""

    def __init__(self, folder: Path, disk: Disk, largest: int) -> None:
        self.folder = folder
        self._incoming = folder / "incoming"
        self._removals = Removals(folder.parent / "removed")
        self._disk = disk
        self._largest = largest

    def path(self, sha256: str) -> Path:
        """Where a finished upload lies."""
        return self.folder / check_name(sha256)

    def reserve(self, sha256: str, size: int) -> BlobStatus:
        """Begin or resume an upload of `size` bytes.

        Raises: Refused: too large, or begun with another size. DiskError: no room.
        """
        check_name(sha256)
        if not 0 < size <= self._largest:
            raise Refused(
                f"an upload of {size} bytes is refused", f"at most {self._largest} bytes fit this run's model"
            )
        folder = self._incoming / sha256
        data = folder / "data"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not data.exists():
                self._check_room(folder, size)
                with open(data, "wb") as file:
                    file.truncate(size)
            elif data.stat().st_size != size:
                raise Refused("the same blob was offered with another size")
        except OSError as error:
            raise disk_error("reserve", data, error) from error
        return self._status(sha256, size)

    def begin_part(self, sha256: str, number: int, digest: str) -> PartFile:
        """Part `number` on its way to its place; `digest` is the Content-Digest header of RFC 9530, sha-256.

        Raises: NotFound: never reserved. WireError: there is no such part.
        """
        data = self._reserved(sha256)
        size = data.stat().st_size
        count = -(-size // PART_BYTES)
        if not 0 <= number < count:
            raise WireError(f"part {number} does not exist; there are {count}")
        return PartFile(data, number, min(PART_BYTES, size - number * PART_BYTES), digest)

    def write_part(self, sha256: str, number: int, body: bytes, digest: str) -> None:
        """Store a part that is here as a whole.

        Raises: NotFound: never reserved. WireError: wrong length or checksum. DiskError.
        """
        with self.begin_part(sha256, number, digest) as part:
            part.write(body)
            part.finish()

    def finish(self, sha256: str) -> tuple[Path, int]:
        """Check the whole and move it to its place; returns path and size. A repeat is no error.

        Raises: NotFound: never reserved. Refused: parts are missing. WireError: the hash is wrong.
        """
        final = self.path(sha256)
        if final.exists():
            return final, final.stat().st_size
        data = self._reserved(sha256)
        size = data.stat().st_size
        missing = self._status(sha256, size).missing
        if missing:
            raise Refused(f"{len(missing)} parts of the upload are missing", "send them, then commit again")
        hasher = hashlib.sha256()
        for piece in read_pieces(data, 0, size):
            hasher.update(piece)
        if hasher.hexdigest() != sha256:
            shutil.rmtree(data.parent, ignore_errors=True)
            raise WireError("the uploaded file is not what its name says", "send it again")
        self._disk.publish("BLOB", data, final)
        shutil.rmtree(data.parent, ignore_errors=True)
        return final, size

    def remove(self, sha256: str) -> None:
        """Forget a finished upload; its room is free some time later."""
        self._removals.take(self.path(sha256))

    def purge(self, now: float) -> None:
        """Drop uploads that nobody went on with for `ABANDONED_S` seconds before `now` (Unix time)."""
        self._removals.resume()
        for data in self._incoming.glob("*/data"):
            if now - data.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(data.parent, ignore_errors=True)

    def _check_room(self, folder: Path, size: int) -> None:
        """Raises: DiskError: the disk has no room for `size` bytes, not even when all that was removed is freed."""
        if shutil.disk_usage(folder).free < size + RESERVE:
            self._removals.wait()
        free = shutil.disk_usage(folder).free
        if free < size + RESERVE:
            raise DiskError(
                f"the controller's disk has {free} bytes left, the upload needs {size}",
                "free some space in the controller's folder",
            )

    def _reserved(self, sha256: str) -> Path:
        data = self._incoming / check_name(sha256) / "data"
        if not data.exists():
            raise NotFound("this upload was never begun", "offer the blob first")
        return data

    def _status(self, sha256: str, size: int) -> BlobStatus:
        folder = self._incoming / sha256
        count = -(-size // PART_BYTES)
        missing = tuple(n for n in range(count) if not (folder / f"{n}.done").exists())
        return BlobStatus(sha256, size, PART_BYTES, missing, complete=False)


class PartFile:
    """One part of an upload while it arrives; it counts from `finish` on, and never if its checksum is wrong.

    Args: data: the file of the whole upload. size: bytes that the part must have.
    """

    def __init__(self, data: Path, number: int, size: int, digest: str) -> None:
        self._data, self._number, self._size, self._digest = data, number, size, digest
        self._done = data.parent / f"{number}.done"
        self._known = self._done.exists()  # sent again: what is there is not overwritten with what may be damaged
        self._hash, self._count = hashlib.sha256(), 0
        try:
            self._file = os.open(data, os.O_WRONLY)
        except OSError as error:
            raise disk_error("write", data, error) from error

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, piece: bytes | bytearray) -> None:
        """The next bytes. Raises: WireError: more than the part has. DiskError."""
        if self._count + len(piece) > self._size:
            raise WireError(f"part {self._number} is longer than the {self._size} bytes that are needed")
        self._hash.update(piece)
        at, view = self._number * PART_BYTES + self._count, memoryview(piece)
        self._count += len(piece)
        try:
            while view and not self._known:
                written = os.pwrite(self._file, view, at)
                at, view = at + written, view[written:]
        except OSError as error:
            raise disk_error("write", self._data, error) from error

    def finish(self) -> None:
        """All bytes are here: check them and make them durable. Raises: WireError: length or checksum. DiskError."""
        if self._count != self._size:
            raise WireError(f"part {self._number} has {self._count} bytes, {self._size} are needed")
        actual = base64.b64encode(self._hash.digest()).decode()
        if self._digest != f"sha-256=:{actual}:":
            raise WireError(f"part {self._number} arrived damaged: its Content-Digest does not match")
        try:
            os.fsync(self._file)
            self._done.touch()
        except OSError as error:
            raise disk_error("write", self._data, error) from error

    def close(self) -> None:
        """Let go of the file; a part that is not finished arrives anew."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def parse_range(header: str | None, size: int) -> tuple[int, int]:
    """(first, one past last) byte of a Range header; all of the file without one.

    Raises: WireError: a form or position that cannot be served.
    """
    if header is None:
        return 0, size
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header.strip())
    if match is None:
        raise WireError("only one range of the form bytes=FIRST- or bytes=FIRST-LAST is served")
    first = int(match[1])
    stop = min(size, int(match[2]) + 1) if match[2] else size
    if first >= stop:
        raise WireError(f"the range starts at byte {first}, the file has {size}")
    return first, stop


def read_pieces(path: Path, first: int, stop: int) -> Iterator[bytes]:
    """Bytes [first, stop) of a file, a megabyte at a time."""
    with open(path, "rb") as file:
        file.seek(first)
        left = stop - first
        while left > 0:
            piece = file.read(min(PIECE, left))
            if not piece:
                return
            left -= len(piece)
            yield piece
