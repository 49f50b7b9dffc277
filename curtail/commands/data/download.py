"""One file over HTTP, resumable: cut connections go on where they stopped.

Decides when a half-loaded `.part` file may be continued (same ETag, same place,
same size; else it starts over), which answers are worth another try, and how one
that is not is explained. Nothing is published here: the caller checks the
complete `.part` and moves it. Units: bytes, seconds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from curtail.errors import AuthError, CurtailError, NotFound, Unreachable, UsageError
from curtail.system.disk import disk_error

if TYPE_CHECKING:
    import httpx

SILENCE_S = 10.0
"""Longest silence before a connection counts as cut; also how long Ctrl-C may wait for one."""

PATIENCE = 6
"""Failures in a row, without one byte between them, before a download gives up."""

LONGEST_PAUSE_S = 60.0
"""However long a host asks us to wait."""

_WORTH_ANOTHER_TRY = (408, 425, 429, 500, 502, 503, 504)
_ELSEWHERE = "choose another source with --mirror or --offline"
_SHA256 = re.compile("[0-9a-f]{64}")

At = Callable[[int, int | None], None]
"""Called with the bytes that are there and the size of the whole, if known."""


class Stopped(CurtailError):
    """The caller's `stop` ended the download; what is there is kept for the next one."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What the source says of a file before it arrives."""

    size: int | None = None
    sha256: str | None = None  # hex; the hub of the data sets tells it, other hosts do not


def pause_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0.5, 1, 2, 4, then 8."""
    return min(0.5 * 2.0 ** (failures - 1), 8.0)


def connect() -> httpx.Client:
    """Connections for downloads; several threads may share them. Proxies come from the environment."""
    import httpx

    return httpx.Client(
        follow_redirects=True,
        timeout=httpx.Timeout(SILENCE_S, pool=None),
        headers={"Accept-Encoding": "identity"},  # sizes and ranges are those of the file
    )


def check_address(address: str) -> str:
    """`address` without a slash at its end.

    Raises: UsageError: it is no http or https address.
    """
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(f"{plain(address)!r} is not the address of a mirror", "write it as https://HOST/FOLDER")
    return address.rstrip("/")


def plain(address: str) -> str:
    """`address` without name and password, for messages."""
    return re.sub(r"//[^/@]*@", "//", address)


def size_of(http: httpx.Client, url: str) -> int | None:
    """The size of the file at `url`, or None if the host does not say; never an error."""
    import httpx

    try:
        response = http.head(url)
    except httpx.HTTPError:
        return None
    return _promise(response).size if response.is_success else None


def download(
    http: httpx.Client,
    url: str,
    part: Path,
    *,
    sleep: Callable[[float], object],
    stopped: Callable[[], bool],
    at: At,
    say: Callable[[str], None],
) -> Promise:
    """Make `part` hold the whole file at `url`, continuing what it holds already.

    Args:
        sleep: waits between two tries.
        stopped: asked between two pieces; true ends the download.
        at: told how far it is. say: told of each try that failed.
    Returns: what the source said of the file; its size has been checked, its hash has not.
    Raises: NotFound, AuthError: the host says so. Unreachable: too many failures in a
        row. DiskError. Stopped.
    """
    failures, furthest = 0, _length(part)
    while True:
        if stopped():
            raise Stopped("the download was stopped")
        try:
            return _receive(http, url, part, stopped, at)
        except _TryAgain as again:
            # Further than ever, not only than last time: a host that starts over and cuts ends here too.
            failures = 1 if _length(part) > furthest else failures + 1
            furthest = max(furthest, _length(part))
            if failures > PATIENCE:
                raise Unreachable(f"{plain(url)}: {again.why}", f"check the network, or {_ELSEWHERE}") from again
            wait = min(max(pause_s(failures), again.after), LONGEST_PAUSE_S)
            say(f"{part.stem}: {again.why}; again in {wait:g} s")
            sleep(wait)


def forget(part: Path) -> None:
    """Delete a `.part` and the ETag beside it. Raises: DiskError."""
    for path in (part, _tag_file(part)):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error("delete", path, error) from error


class _TryAgain(Exception):
    """This try failed; the next one may not."""

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.after = why, after  # after: seconds that the host asks for


def _receive(http: httpx.Client, url: str, part: Path, stopped: Callable[[], bool], at: At) -> Promise:
    import httpx

    have, tag = _length(part), _stored_tag(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and tag and not tag.startswith("W/"):
        headers["If-Range"] = tag  # a file that changed comes whole
    try:
        with http.stream("GET", url, headers=headers) as response:
            promise = _promise(response)
            if response.status_code == 416 and have:
                if promise.size == have:
                    return promise
                forget(part)
                raise _TryAgain("what was loaded does not fit the file")
            _refuse(response, url)
            if response.status_code == 206 and not _continues(response, have, tag):
                forget(part)
                raise _TryAgain("the file changed meanwhile")
            if response.status_code != 206:
                have = 0
            _write(response, part, have, promise.size, stopped, at)
    except httpx.TransportError as error:
        raise _TryAgain(str(error) or type(error).__name__) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unreachable(f"{plain(url)}: {error}", _ELSEWHERE) from error
    length = _length(part)
    if promise.size is not None and length != promise.size:
        if length > promise.size:
            forget(part)
        raise _TryAgain(f"{length} of {promise.size} bytes came")
    return promise


def _write(
    response: httpx.Response, part: Path, have: int, size: int | None, stopped: Callable[[], bool], at: At
) -> None:
    try:
        with open(part, "r+b" if have else "wb") as file:
            if not have:
                _tag_file(part).write_text(response.headers.get("ETag", ""), encoding="utf-8")
            file.seek(have)
            at(have, size)
            for piece in response.iter_raw():  # as it comes: a size would hold back, and lose, what is incomplete
                if stopped():
                    raise Stopped("the download was stopped")
                file.write(piece)
                have += len(piece)
                at(have, size)
    except OSError as error:
        raise disk_error("write", part, error) from error


def _promise(response: httpx.Response) -> Promise:
    """Size and hash from the headers; those named X-Linked are the hub's, on the answer that redirects."""
    size = sha256 = None
    if response.status_code in (206, 416):
        _, size = _range(response)
    elif "Content-Length" in response.headers and "Content-Encoding" not in response.headers:
        size = _number(response.headers["Content-Length"])
    for answer in (*response.history, response):
        linked = answer.headers.get("X-Linked-ETag", "").strip('"')
        sha256 = linked if _SHA256.fullmatch(linked) else sha256
        size = _number(answer.headers.get("X-Linked-Size", "")) or size
    return Promise(size, sha256)


def _continues(response: httpx.Response, have: int, tag: str) -> bool:
    """Whether a partial answer goes on at `have` in the same file."""
    now = response.headers.get("ETag", "")
    return _range(response)[0] == have and (not tag or not now or now == tag)


def _range(response: httpx.Response) -> tuple[int | None, int | None]:
    """First byte and size of the whole, from `Content-Range`."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    return (_number(found[1] or ""), _number(found[2])) if found else (None, None)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _refuse(response: httpx.Response, url: str) -> None:
    """Raise what an answer other than the file means."""
    status = response.status_code
    if response.is_success:
        return
    if status in _WORTH_ANOTHER_TRY:
        raise _TryAgain(f"the host answers {status}", float(_number(response.headers.get("Retry-After", "")) or 0))
    if status in (404, 410):
        raise NotFound(f"{plain(url)} is not there ({status})", f"check the address, or {_ELSEWHERE}")
    if status in (401, 403):
        raise AuthError(f"{plain(url)} may not be read ({status})", _ELSEWHERE)
    raise Unreachable(f"{plain(url)} answers {status}", _ELSEWHERE)


def _length(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise disk_error("read", path, error) from error


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _stored_tag(part: Path) -> str:
    try:
        return _tag_file(part).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
