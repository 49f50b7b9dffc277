"""Uploads of files that are named by their SHA-256.

An upload is reserved first: size and free space are checked before a byte is sent.
Its parts are then written to their place in one file, each with its own checksum; the
whole file is hashed before it counts. Parts are written as they arrive, so that many at
a time take little memory. Complete parts survive a restart, so a broken upload resumes.
Which site a file belongs to is in the store; this module only handles bytes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from controller.files.trash import Trash
from curtail.errors import DiskError, NotFound, Refused, WireError
from curtail.system.disk import Disk, disk_error, file_sha256
from curtail.wire import PART_BYTES, BlobStatus

SHA256 = re.compile(r"[0-9a-f]{64}")

RESERVE = 64 * 1024 * 1024
"""Bytes that must stay free after an upload, for the store and the small files of the next version."""

ABANDONED_S = 86400.0
"""Seconds without a new byte after which an upload is abandoned: its round is long over."""

TIDY_S = 3600.0
"""Least seconds between two searches for abandoned uploads."""

LEFT_S = 120.0
"""Seconds without a new byte after which an upload may be dropped to make room for another one of the same site: its
job is most likely gone. If it is not, it sends the file again."""

MOST_UPLOADS = 64
"""Files of one site that are being uploaded or wait for their merge. A job has one; killed jobs may leave more."""

QUOTA_FILES = 4
"""Quota of one site, in contributions of the largest size."""

DIGEST = re.compile(r"sha-256=:[A-Za-z0-9+/]{43}=:")


def check_name(sha256: str) -> str:
    """`sha256` if it is one. Raises: WireError."""
    if not SHA256.fullmatch(sha256):
        raise WireError("a blob is named by 64 lower-case hex digits, its SHA-256")
    return sha256


class Uploads:
    """The folder `HOME/blobs`: finished contributions, and `incoming` ones.

    Args:
        largest: bytes of the largest contribution of this run.
        quota: bytes that all files of one site may have; None: `QUOTA_FILES` of the largest.
        part_bytes: size of all parts of an upload but the last.
    """

    def __init__(
        self, folder: Path, disk: Disk, largest: int, quota: int | None = None, part_bytes: int = PART_BYTES
    ) -> None:
        self.folder = folder
        self.part_bytes = part_bytes
        self._incoming = folder / "incoming"
        self._removals = Trash(folder.parent / "removed")
        self._disk = disk
        self._largest = largest
        self._quota = QUOTA_FILES * largest if quota is None else quota
        self._tidied = float("-inf")
        self._lock = threading.Lock()
        self._writing: dict[tuple[str, int], PartFile] = {}  # the newest that writes each part
        self._finishing: dict[str, threading.Lock] = {}

    def path(self, sha256: str) -> Path:
        """Path of a finished upload."""
        return self.folder / check_name(sha256)

    def check(self, sha256: str, size: int, others: Collection[str] = ()) -> None:
        """Check that an upload would be accepted; changes nothing.

        Args: others: the same site's other files, under way and finished.
        Raises: Refused: too large, or too much for one site. DiskError: no room.
        """
        check_name(sha256)
        if not 0 < size <= self._largest:
            raise Refused(
                f"an upload of {size} bytes is refused", f"at most {self._largest} bytes fit this run's model"
            )
        if len(others) >= MOST_UPLOADS:
            raise Refused(f"the site has {len(others)} files here already, no more are taken", "commit them first")
        held = sum(self._size_of(name) for name in others)
        if held + size > self._quota:
            raise Refused(
                f"the site's files have {held} bytes here, {size} more exceed its quota of {self._quota}",
                "commit what was uploaded and wait for its merge",
            )
        data = self._incoming / sha256 / "data"
        if not data.exists() and not self.path(sha256).exists():
            self._check_room(size)

    def make_way(self, size: int, others: Collection[str], now: float) -> list[str]:
        """Drop stalled uploads, the oldest first, until `size` bytes more are within the site's quota.

        Args: others: the site's other files, under way and finished. now: Unix time.
        Returns: the names of the dropped uploads.
        """
        left, gone = set(others), []
        for idle, name in sorted(self._standing(others, now), reverse=True):
            held = sum(self._size_of(other) for other in left)
            if idle < LEFT_S or (len(left) < MOST_UPLOADS and held + size <= self._quota):
                break
            shutil.rmtree(self._incoming / name, ignore_errors=True)
            left.discard(name)
            gone.append(name)
        return gone

    def _standing(self, names: Collection[str], now: float) -> Iterator[tuple[float, str]]:
        """(seconds since its last byte, name) of unfinished uploads; infinite for a name without a file."""
        for name in names:
            if self.path(name).exists():
                continue
            try:
                yield now - (self._incoming / name / "data").stat().st_mtime, name
            except FileNotFoundError:
                yield float("inf"), name

    def reserve(self, sha256: str, size: int) -> BlobStatus:
        """Begin or resume an upload of `size` bytes.

        Raises: Refused: too large. DiskError: no room.
        """
        self.check(sha256, size)
        folder = self._incoming / sha256
        data = folder / "data"
        try:
            if self.path(sha256).exists():  # complete and checked, but a crash came before it was booked
                return BlobStatus(sha256, size, self.part_bytes, (), complete=False)
            with self._lock:  # the same room must not be promised twice
                if data.exists() and data.stat().st_size != size:
                    # A name is a hash, so it has one size: a power loss left this, and nothing in it can be trusted.
                    shutil.rmtree(folder)
                if not data.exists():
                    self._check_room(size)
                    folder.mkdir(exist_ok=True)
                    with open(data, "wb") as file:
                        file.truncate(size)
        except OSError as error:
            raise disk_error("reserve", data, error) from error
        return self._status(sha256, size)

    def begin_part(self, sha256: str, number: int, digest: str) -> PartFile:
        """Begin to write part `number`; `digest` is the Content-Digest header of RFC 9530, sha-256.

        An earlier sender of the same part is refused from now on: its connection is most likely dead.
        Raises: NotFound: never reserved. WireError: there is no such part, or no digest.
        """
        data = self._reserved(sha256)
        size = data.stat().st_size
        count = self._parts(size)
        if not 0 <= number < count:
            raise WireError(f"part {number} does not exist; there are {count}")
        if not DIGEST.fullmatch(digest):
            raise WireError("a part needs the header Content-Digest: sha-256=:BASE64:")
        key, start = (sha256, number), number * self.part_bytes
        part = PartFile(data, number, start, min(self.part_bytes, size - start), digest, lambda: self._ended(key))
        with self._lock:
            before, self._writing[key] = self._writing.get(key), part
        if before is not None:
            before.supersede()
        return part

    def _ended(self, key: tuple[str, int]) -> None:
        with self._lock:
            part = self._writing.get(key)
            if part is not None and part.closed:
                del self._writing[key]

    def finish(self, sha256: str) -> tuple[Path, int]:
        """Check the whole and move it to its place; returns path and size. A repeat is no error.

        Raises: NotFound: never reserved. Refused: parts are missing. WireError: the hash is wrong.
        """
        check_name(sha256)
        with self._lock:
            turn = self._finishing.setdefault(sha256, threading.Lock())
        try:
            with turn:  # a second request for the same file waits, and finds it finished
                return self._finish(sha256)
        finally:
            with self._lock:
                self._finishing.pop(sha256, None)

    def _finish(self, sha256: str) -> tuple[Path, int]:
        final = self.path(sha256)
        if final.exists():
            return final, final.stat().st_size
        data = self._reserved(sha256)
        size = data.stat().st_size
        missing = self._status(sha256, size).missing
        if missing:
            raise Refused(f"{len(missing)} parts of the upload are missing", "send them, then commit again")
        if file_sha256(data) != sha256:
            shutil.rmtree(data.parent, ignore_errors=True)
            raise WireError("the uploaded file is not what its name says", "send it again")
        self._disk.publish("BLOB", data, final)
        shutil.rmtree(data.parent, ignore_errors=True)
        return final, size

    def remove(self, sha256: str) -> None:
        """Remove a finished upload; its space is freed some time later."""
        self._removals.take(self.path(sha256))

    def purge(self, now: float) -> None:
        """At the start: resume removals and drop abandoned uploads; `now` is Unix time."""
        self._removals.resume()
        self._drop_abandoned(now)

    def tidy(self, now: float) -> None:
        """Drop abandoned uploads if the last search is `TIDY_S` seconds ago."""
        if abs(now - self._tidied) >= TIDY_S:
            self._tidied = now
            self._drop_abandoned(now)

    def _drop_abandoned(self, now: float) -> None:
        """Drop uploads that got no byte for `ABANDONED_S` seconds."""
        for data in self._incoming.glob("*/data"):
            with contextlib.suppress(FileNotFoundError):  # finished a moment ago
                if now - data.stat().st_mtime > ABANDONED_S:
                    shutil.rmtree(data.parent, ignore_errors=True)

    def _size_of(self, sha256: str) -> int:
        """Bytes of an upload, finished or not; 0: there is none."""
        for path in (self.path(sha256), self._incoming / sha256 / "data"):
            with contextlib.suppress(FileNotFoundError):
                return path.stat().st_size
        return 0

    def _check_room(self, size: int) -> None:
        """Raises: DiskError: there is no room for `size` bytes, even after pending removals."""
        promised = self._promised()
        if self._free() - promised < size + RESERVE:
            self._removals.wait()
        free = self._free()
        if free - promised < size + RESERVE:
            raise DiskError(
                f"the controller's disk has {free} bytes left, of which {promised} are promised to other uploads and"
                f" {RESERVE} are kept free; the upload needs {size}",
                "free some space in the controller's folder",
            )

    def _free(self) -> int:
        self._disk.folder("BLOBS", self._incoming)  # finished files are moved to its parent, which must be durable
        try:
            return shutil.disk_usage(self.folder).free
        except OSError as error:
            raise disk_error("measure", self.folder, error) from error

    def _promised(self) -> int:
        """Bytes of unfinished uploads that are reserved and not written yet."""
        total = 0
        for data in self._incoming.glob("*/data"):
            with contextlib.suppress(FileNotFoundError):
                status = data.stat()
                total += max(0, status.st_size - status.st_blocks * 512)
        return total

    def _reserved(self, sha256: str) -> Path:
        data = self._incoming / check_name(sha256) / "data"
        if not data.exists():
            raise NotFound("this upload was never begun", "offer the blob first")
        return data

    def _status(self, sha256: str, size: int) -> BlobStatus:
        folder = self._incoming / sha256
        missing = tuple(n for n in range(self._parts(size)) if not (folder / f"{n}.done").exists())
        return BlobStatus(sha256, size, self.part_bytes, missing, complete=False)

    def _parts(self, size: int) -> int:
        """How many parts an upload of `size` bytes has."""
        return -(-size // self.part_bytes)


class PartFile:
    """One part of an upload while it arrives; it counts only after `finish`, which checks its checksum.

    Args: data: the file of the whole upload. start: where the part begins in it. size: bytes that the part must have.
        ended: called after `close`.
    """

    def __init__(
        self, data: Path, number: int, start: int, size: int, digest: str, ended: Callable[[], None] = lambda: None
    ) -> None:
        self.size, self._start = size, start
        self._data, self._number, self._digest, self._ended = data, number, digest, ended
        self._done = data.parent / f"{number}.done"
        self._known = self._done.exists()  # sent again: a good part is not overwritten by one that may be damaged
        self._hash, self._count = hashlib.sha256(), 0
        self._lock, self._superseded = threading.Lock(), False
        try:
            self._file = os.open(data, os.O_WRONLY)
        except OSError as error:
            raise disk_error("write", data, error) from error

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Is the file closed?"""
        return self._file < 0

    def supersede(self) -> None:
        """Another connection sends the same part: this one writes no more."""
        with self._lock:
            self._superseded = True

    def write(self, piece: bytes | bytearray) -> None:
        """Write the next bytes. Raises: WireError: too many, or another connection sends the part. DiskError."""
        if self._count + len(piece) > self.size:
            raise WireError(f"part {self._number} is longer than the {self.size} bytes that are needed")
        self._hash.update(piece)
        at, view = self._start + self._count, memoryview(piece)
        self._count += len(piece)
        try:
            with self._lock:
                self._check_turn()
                while view and not self._known:
                    written = os.pwrite(self._file, view, at)
                    at, view = at + written, view[written:]
        except OSError as error:
            raise disk_error("write", self._data, error) from error

    def finish(self) -> None:
        """Check length and checksum and make the part durable. Raises: WireError: one is wrong. DiskError."""
        if self._count != self.size:
            raise WireError(f"part {self._number} has {self._count} bytes, {self.size} are needed")
        actual = base64.b64encode(self._hash.digest()).decode()
        if self._digest != f"sha-256=:{actual}:":
            raise WireError(f"part {self._number} arrived damaged: its Content-Digest does not match")
        try:
            with self._lock:
                self._check_turn()
                os.fsync(self._file)
                self._done.touch()
        except OSError as error:
            raise disk_error("write", self._data, error) from error

    def _check_turn(self) -> None:
        if self._superseded:
            raise WireError(f"part {self._number} is being sent again over another connection")

    def close(self) -> None:
        """Close the file; an unfinished part must be sent again."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._ended()
