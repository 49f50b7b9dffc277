"""Resumable uploads and downloads of weights and token files, checked by SHA-256, in bounded memory.

A file is uploaded in parts, each checked and repeated by itself; a repeated upload
sends only the parts that the controller lacks. A download continues a `.part` file
and gets its name only when it is complete and verified. The caller decides how long
to try: `patience` is the number of failures in a row that are retried, `stop` ends a
transfer between two pieces. `Control.link` limits the bandwidth. Units: bytes, seconds.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.http.backoff import spread
from agent.http.client import Control
from curtail import wire
from curtail.errors import CheckpointError, CurtailError, DataError, NotFound, Refused, Unreachable, WireError
from curtail.security.tls import REPLY_S
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import Disk, SystemDisk, disk_error, file_sha256

PARALLEL = 4
"""Parts sent at the same time; with PART_BYTES this bounds an upload's memory."""

PIECE = 1024 * 1024
"""Bytes read at a time."""

PART_BYTES_S = 140e3
"""The slowest connection on which a part arrives before its timeout, in bytes per second: 16 MiB in two minutes."""

SILENCE_S = 30.0
"""Longest pause within a download; after it the connection counts as lost, and the download goes on over a new one."""

PATIENCE = 6
"""Failures in a row that are retried; the pauses between them add up to 15 s."""

Stop = Callable[[], bool]


class Stopped(CurtailError):
    """The caller's `stop` ended the transfer; the next one continues it."""


def pause_s(failures: int, chance: float = 0.0, most: float = 5.0) -> float:
    """Seconds to wait after `failures` in a row: 0.5, 1, 2, 4, then `most`; `chance` shortens it."""
    return spread(min(0.5 * 2.0 ** (failures - 1), most), chance)


def upload(
    control: Control,
    path: Path,
    sha256: str,
    *,
    clock: Clock | None = None,
    patience: int = PATIENCE,
    stop: Stop | None = None,
) -> int:
    """Upload the file at `path` under the name `sha256`.

    Idempotent: parts that the controller has are not sent again.

    Returns: bytes sent.
    Raises: Unreachable: too many failures in a row. Refused, DiskError: the
        controller does not accept it. CheckpointError: the file has another hash.
    """
    clock = clock or SystemClock()
    size = _size(path)
    offer = wire.BlobOffer(sha256, size)
    sent = failures = mismatches = 0
    while True:
        _check(stop)
        try:
            status = control.offer_blob(offer)
            if status.complete:
                return sent
            missing = list(status.missing)
            for first in range(0, len(missing), PARALLEL):
                _check(stop)
                sent += _send_parts(control, path, status, missing[first : first + PARALLEL])
                failures = 0
            control.commit_blob(sha256, size)
            return sent
        except Unreachable:
            failures += 1
            if failures > patience:
                raise
        except (Refused, WireError, NotFound):
            # The controller refuses a part that was damaged on its way, and forgets an upload that made no progress:
            # the next offer says which parts are missing.
            mismatches += 1
            if mismatches > 2:
                if file_sha256(path) != sha256:
                    raise CheckpointError(f"{path} changed while it was uploaded", "start again") from None
                raise
        clock.sleep(pause_s(failures + mismatches, random.random()))


def _send_parts(control: Control, path: Path, status: wire.BlobStatus, numbers: list[int]) -> int:
    """Send these parts at the same time; returns the bytes sent."""
    with ThreadPoolExecutor(len(numbers), thread_name_prefix="part") as pool:
        futures = [pool.submit(_send_part, control, path, status, number) for number in numbers]
    # Leaving the pool waited for all of them, so no part is still being sent when an error is raised.
    return sum(future.result() for future in futures)


def _send_part(control: Control, path: Path, status: wire.BlobStatus, number: int) -> int:
    if number < 0 or number * status.part_bytes >= status.size:
        raise WireError(f"the controller asks for part {number}, which a file of {status.size} bytes does not have")
    try:
        with open(path, "rb") as file:
            file.seek(number * status.part_bytes)
            data = file.read(status.part_bytes)
    except OSError as error:
        raise disk_error("read", path, error) from error
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    headers = {"Content-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream"}
    if control.link is not None:
        headers["Content-Length"] = str(len(data))  # otherwise the pieces would be sent chunked, without a length
    control.send(
        "PUT",
        wire.PART.format(sha256=status.sha256, number=number),
        content=data if control.link is None else control.link.pieces(data),
        headers=headers,
        timeout_s=REPLY_S + len(data) / PART_BYTES_S,  # includes what is still in this machine's buffers
    )
    return len(data)


def download(
    control: Control,
    sha256: str,
    path: Path,
    disk: Disk | None = None,
    *,
    size: int | None = None,
    clock: Clock | None = None,
    patience: int = PATIENCE,
    stop: Stop | None = None,
    kind: type[CurtailError] = CheckpointError,
) -> int:
    """Download the blob `sha256` to `path`, durably and only if its hash is right.

    An interrupted download continues where it stopped, also in another process.

    Args: size: the most bytes accepted. kind: raised when the hash is wrong three times
        (CheckpointError for weights, DataError for token files).
    Returns: bytes received.
    Raises: Unreachable: too many failures in a row. NotFound: the controller has no such blob. DiskError.
    """
    clock = clock or SystemClock()
    disk = disk or SystemDisk()
    part = path.with_name(f"{path.name}.part")
    received = failures = wrong = 0
    while True:
        _check(stop)
        try:
            got, whole = _receive(control, sha256, part, size, stop)
            received += got
            if whole == sha256:
                disk.publish("BLOB", part, path)
                return received
            wrong += 1
            part.unlink(missing_ok=True)
            if wrong > 2:
                raise kind(
                    f"blob {sha256[:12]} arrived with another hash three times",
                    "its copy at the controller is damaged, or something changes the traffic",
                )
        except _Cut as cut:
            received += cut.got
            failures = 1 if cut.got else failures + 1
            if failures > patience:
                raise cut.error from None
        clock.sleep(pause_s(failures + wrong, random.random()))


class _Cut(Exception):
    """The connection was lost after `got` bytes of this attempt."""

    def __init__(self, got: int, error: Unreachable) -> None:
        super().__init__(str(error))
        self.got, self.error = got, error


def _receive(control: Control, sha256: str, part: Path, size: int | None, stop: Stop | None) -> tuple[int, str]:
    """Continue the file `part` to the end; returns the bytes received and the hash of the whole file."""
    digest = hashlib.sha256()
    have = _feed(digest.update, part) if part.exists() else 0
    got = 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'} if have else {})
    try:
        with control.stream("GET", wire.BLOB.format(sha256=sha256), headers=headers, timeout_s=SILENCE_S) as response:
            if response.status_code != 206 and have:  # the whole file is sent again
                digest, have = hashlib.sha256(), 0
            with open(part, "r+b" if have else "wb") as file:
                file.seek(have)
                for chunk in response.iter_bytes():
                    _check(stop)
                    if control.link is not None:
                        control.link.wait(len(chunk))
                    got += len(chunk)
                    if size is not None and have + got > size:
                        raise DataError(f"blob {sha256[:12]} is longer than the {size} bytes it should have")
                    digest.update(chunk)
                    file.write(chunk)
    except Unreachable as error:
        raise _Cut(got, error) from error
    except WireError:
        if not have or got:
            raise
        # The range starts at the end of the file: it is complete, and the hash decides.
    except OSError as error:
        raise disk_error("write", part, error) from error
    return got, digest.hexdigest()


def _feed(update: Callable[[bytes], object], path: Path) -> int:
    """Pass the file's bytes to `update`; returns their number."""
    count = 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(PIECE):
                update(piece)
                count += len(piece)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except OSError as error:
        raise disk_error("read", path, error) from error
    return count


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path} to upload") from error


def _check(stop: Stop | None) -> None:
    if stop is not None and stop():
        raise Stopped("the transfer was stopped")
