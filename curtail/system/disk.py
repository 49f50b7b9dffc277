"""Durable, atomic file writes, each labelled with its purpose.

A file is written to a temporary file in the same folder, fsynced and renamed, and
the folder is fsynced: a crash leaves either the old file or the new one. The
purpose name (`op`) lets a test make exactly one write fail. Reads need no wrapper,
because readers validate what they read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path
from typing import Protocol

from curtail.errors import DiskError, NotFound


class Disk(Protocol):
    """The durable writes that curtail uses; tests pass an implementation that fails by name."""

    def replace(self, op: str, path: Path, data: bytes, mode: int = 0o644) -> None:
        """Make `path` hold exactly `data`, or leave it as it was.

        Raises: DiskError: the folder is full, read-only or missing.
        """
        ...

    def publish(self, op: str, temp: Path, path: Path) -> None:
        """Make the finished file `temp` durable and move it to `path` (same file system).

        Raises: DiskError: the folder is full, read-only or missing.
        """
        ...

    def remove(self, op: str, path: Path) -> None:
        """Delete `path`, durably; a missing file is not an error. Raises: DiskError."""
        ...

    def folder(self, op: str, path: Path, mode: int = 0o777) -> None:
        """Create the folder `path` and its missing parents, durably; an existing folder is not an error.

        Without this a power loss can lose a folder together with every durable file in it.
        Args: mode: permissions of the folders that are created; existing ones keep theirs.
        Raises: DiskError.
        """
        ...


def disk_error(doing: str, path: Path, error: OSError) -> DiskError:
    """The error to report for an `OSError` raised while `doing` something (a verb, such as "write") with `path`."""
    remedies = {
        errno.ENOSPC: "free some space there or choose another folder",
        errno.EDQUOT: "the quota is used up; free some space or choose another folder",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.EACCES: "the folder's permissions forbid it; fix them or choose another folder",
        errno.EPERM: "the folder's permissions forbid it; fix them or choose another folder",
        errno.ENOENT: "the folder does not exist; create it first",
    }
    return DiskError(f"cannot {doing} {path}: {error.strerror or error}", remedies.get(error.errno or 0))


class SystemDisk:
    """Writes with fsync of the file and of its folder."""

    def replace(self, op: str, path: Path, data: bytes, mode: int = 0o644) -> None:
        temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
            fsync_folder(path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):  # the first error is the one to report
                temp.unlink()
            raise disk_error("write", path, error) from error

    def publish(self, op: str, temp: Path, path: Path) -> None:
        try:
            with open(temp, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temp, path)
            fsync_folder(path.parent)
        except OSError as error:
            raise disk_error("write", path, error) from error

    def remove(self, op: str, path: Path) -> None:
        try:
            path.unlink()
            fsync_folder(path.parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error("delete", path, error) from error

    def folder(self, op: str, path: Path, mode: int = 0o777) -> None:
        missing = []
        try:
            for above in (path, *path.parents):
                if above.is_dir():
                    break
                missing.append(above)
            for made in reversed(missing):
                made.mkdir(mode=mode, exist_ok=True)
                with contextlib.suppress(PermissionError):  # a folder may be writable but not readable
                    fsync_folder(made.parent)
        except OSError as error:
            raise disk_error("create", path, error) from error


def clear_leftovers(folder: Path) -> None:
    """Delete temporary files that interrupted writes left in `folder`; errors are ignored.

    Call it only while no other process writes to the folder.
    """
    for left in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            left.unlink()


def fsync_folder(folder: Path) -> None:
    """Make the directory entries of `folder` durable. Raises: OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of the bytes of the file at `path`, 64 hex digits.

    Raises: NotFound: no such file. DiskError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFound(f"the file {path} does not exist", "check the path") from None
    except OSError as error:
        raise disk_error("read", path, error) from error


def last_line(path: Path, limit: int = 300) -> str:
    """The last non-empty line of a text file, cut to `limit` characters; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:limit] for line in reversed(lines) if line.strip()), "")
