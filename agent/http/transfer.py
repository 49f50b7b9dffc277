"""Resumable uploads and downloads of weights and token files, checked by SHA-256, in bounded memory.

An upload is split into parts that are sent, checked and retried one by one; a
repeated upload sends only the missing parts. A download resumes a `.part` file
and renames it only when it is complete and verified. The caller decides how long
to try: `patience` is the number of failures in a row, and `stop` ends a transfer
between two pieces. If Control has a link, it limits the bandwidth both ways.
Units: bytes, seconds.
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
"""Parts sent in parallel; with PART_BYTES this bounds an upload's memory."""

PIECE = 1024 * 1024
"""Bytes read at a time."""

PART_BYTES_S = 140e3
"""Slowest bandwidth at which a part arrives before its timeout, in bytes per second: 16 MiB in two minutes."""

SILENCE_S = 30.0
"""Read timeout of a download; after it the connection counts as lost, and the download resumes over a new one."""

PATIENCE = 6
"""Failures in a row before a transfer gives up; the pauses between them add up to 15 s."""

Stop = Callable[[], bool]


class Stopped(CurtailError):
    """The caller's `stop` ended the transfer; the next one resumes it."""


def pause_s(failures: int, chance: float = 0.0, most: float = 5.0) -> float:
    """Seconds to wait after this many failures in a row: 0.5, 1, 2, 4, then `most`, with jitter from `chance`."""
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
    """Upload the file at `path` to the controller under the name `sha256`.

    Idempotent: parts that the controller already has are not sent again.

    Returns: bytes sent.
    Raises: Unreachable: too many failures in a row. Refused, DiskError: the controller
        refuses the file. CheckpointError: the file changed, so its hash is not `sha256`.
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
            # The controller refuses a corrupted part and may have deleted an upload that stalled. The next offer
            # says which parts are missing.
            mismatches += 1
            if mismatches > 2:
                if file_sha256(path) != sha256:
                    raise CheckpointError(f"{path} changed while it was uploaded", "start again") from None
                raise
        clock.sleep(pause_s(failures + mismatches, random.random()))


def _send_parts(control: Control, path: Path, status: wire.BlobStatus, numbers: list[int]) -> int:
    """Send these parts in parallel. Returns: bytes sent."""
    with ThreadPoolExecutor(len(numbers), thread_name_prefix="part") as pool:
        futures = [pool.submit(_send_part, control, path, status, number) for number in numbers]
    # The `with` block has waited for all parts, so none is still being sent if one failed.
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
        headers["Content-Length"] = str(len(data))  # otherwise httpx would send an iterator in chunked encoding
    control.send(
        "PUT",
        wire.PART.format(sha256=status.sha256, number=number),
        content=data if control.link is None else control.link.pieces(data),
        headers=headers,
        timeout_s=REPLY_S + len(data) / PART_BYTES_S,  # data may still be in this machine's send buffers
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

    An interrupted download resumes where it stopped, also in another process.

    Args: size: the most bytes to accept. kind: raised if the hash is wrong three times
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
                    f"blob {sha256[:12]} arrived with a wrong hash three times",
                    "the controller's copy is damaged, or something on the network changes the data",
                )
        except _Cut as cut:
            received += cut.got
            failures = 1 if cut.got else failures + 1
            if failures > patience:
                raise cut.error from None
        clock.sleep(pause_s(failures + wrong, random.random()))


class _Cut(Exception):
    """The connection was lost after this attempt received `got` bytes."""

    def __init__(self, got: int, error: Unreachable) -> None:
        super().__init__(str(error))
        self.got, self.error = got, error


def _receive(control: Control, sha256: str, part: Path, size: int | None, stop: Stop | None) -> tuple[int, str]:
    """Download the rest of `part`. Returns: (bytes received, hash of the whole file)."""
    digest = hashlib.sha256()
    have = _feed(digest.update, part) if part.exists() else 0
    got = 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'} if have else {})
    try:
        with control.stream("GET", wire.BLOB.format(sha256=sha256), headers=headers, timeout_s=SILENCE_S) as response:
            if response.status_code != 206 and have:  # the controller sends the whole file again
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
        # 416: the range starts at the end of the file. Nothing is left to send, and the hash decides.
    except OSError as error:
        raise disk_error("write", part, error) from error
    return got, digest.hexdigest()


def _feed(update: Callable[[bytes], object], path: Path) -> int:
    """Pass the file's bytes to `update`. Returns: their number."""
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
