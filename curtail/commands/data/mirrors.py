"""Sources of the shards of a published data set: the hub, an HTTP mirror, or a local folder.

Decides how a shard becomes a complete `.part` file in the data folder, explains
HTTP errors, and estimates the disk space. huggingface_hub transfers the bytes and
resumes after a cut connection. The partial file of a killed command is resumed only
if the host reports the same ETag. `curtail.commands.data.fetch` checks the content. Sizes in bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from curtail import __version__
from curtail.commands.data.progress import FetchStopped, TransferProgress
from curtail.errors import AuthError, CurtailError, NotFound, Unreachable, UsageError
from curtail.system.disk import disk_error

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

PATIENCE = 6
"""Consecutive failed transfers without progress before a download gives up."""

PIECE = 1024 * 1024
"""Bytes per write of the library, lost at most by a cut. Its default is ten times as much."""

_ROOM = 1.05  # an estimate: shards differ in size
_ELSEWHERE = "choose another source with --mirror or --offline"
_SHA256 = re.compile("[0-9a-f]{64}")


class ShardSource(Protocol):
    """A source of shards."""

    def expected(self, names: Sequence[str], out: Path) -> int:
        """Estimated bytes of disk that these files take in `out`. Raises: CurtailError."""
        ...

    def bring(self, name: str, part: Path, show: TransferProgress) -> str | None:
        """Transfer the file `name` to `part`.

        Returns: the SHA-256 that its host reports, or None. Raises: CurtailError.
        """
        ...

    def place(self, name: str) -> str:
        """The file's location, for messages."""
        ...


class Hub:
    """Shards by HTTP.

    Args:
        repository: of a data set on the hub; HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the hub's cache apply.
        mirror: base address of the files on another host; it never gets the hub's token.
        stop: ends the wait between two transfers.
    Raises: UsageError: the address is no http or https address.
    """

    def __init__(self, repository: str, mirror: str | None, stop: threading.Event) -> None:
        _prepare_library()
        self._repository, self._mirror, self._stop = repository, mirror, stop
        self._token = None if mirror is None else False  # None: the user's stored token, if there is one
        check_address(mirror if mirror is not None else self._url("x"))

    def expected(self, names: Sequence[str], out: Path) -> int:
        from nanochat.hub_datasets import SHARD_BYTES

        lacking = [name for name in names if self._cached(name) is None]
        one = (self._metadata(lacking[0]).size or SHARD_BYTES) if lacking else SHARD_BYTES
        return int(one * len(names) * _ROOM)

    def bring(self, name: str, part: Path, show: TransferProgress) -> str | None:
        import httpx

        if cached := self._cached(name):
            link_or_copy(cached, part)
            return None
        failures, furthest = 0, _length(part)
        while True:
            metadata = self._metadata(name)
            try:
                self._transfer(name, metadata, part, show)
            except (httpx.HTTPError, OSError) as error:
                problem = self._explained(error, name, part)
                # Progress beyond the largest length so far: a host that always restarts at zero fails here, too.
                failures = 1 if _length(part) > furthest else failures + 1
                furthest = max(furthest, _length(part))
                if not isinstance(problem, Unreachable) or failures > PATIENCE:
                    raise problem from error
                show.say(f"{problem.message}; again in {failures} s")
                if self._stop.wait(failures):
                    raise FetchStopped("the download was stopped") from error
            else:
                return metadata.etag if metadata.etag and _SHA256.fullmatch(metadata.etag) else None

    def place(self, name: str) -> str:
        return plain(self._url(name))

    def _url(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        if self._mirror is not None:
            return f"{self._mirror.rstrip('/')}/{name}"
        return hf_hub_url(self._repository, name, repo_type="dataset")

    def _cached(self, name: str) -> Path | None:
        """The shard in the hub's local cache, if another program fetched it."""
        from huggingface_hub import try_to_load_from_cache

        found = None if self._mirror else try_to_load_from_cache(self._repository, name, repo_type="dataset")
        return Path(found).resolve() if isinstance(found, str) else None

    def _metadata(self, name: str) -> HfFileMetadata:
        """Size and ETag. The library retries for about 20 s if the host is busy or unreachable."""
        import httpx
        from huggingface_hub import get_hf_file_metadata

        try:
            return get_hf_file_metadata(
                self._url(name), headers=self._headers(), token=self._token, retry_on_errors=True
            )
        except (httpx.HTTPError, OSError) as error:
            raise self._explained(error, name) from error

    def _transfer(self, name: str, metadata: HfFileMetadata, part: Path, show: TransferProgress) -> None:
        from huggingface_hub.file_download import http_get

        tag = metadata.etag or ""
        if not tag or tag != _stored_tag(part) or metadata.size is None or _length(part) > metadata.size:
            forget(part)
            _tag_file(part).write_text(tag, encoding="utf-8")
        with open(part, "ab") as file:
            http_get(
                self._url(name), file, resume_size=_length(part), headers=self._headers(), expected_size=metadata.size,
                displayed_filename=name, tqdm_class=show.bar_class(name),
            )  # fmt: skip

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers

        return build_hf_headers(
            token=self._token, library_name="curtail", library_version=__version__,
            headers={"Accept-Encoding": "identity"},  # so that sizes and ranges are those of the file
        )  # fmt: skip

    def _explained(self, error: Exception, name: str, part: Path | None = None) -> CurtailError:
        """Convert the library's error to a CurtailError; Unreachable if a retry may succeed."""
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        place = self.place(name)
        if isinstance(error, OfflineModeIsEnabled):
            return NotFound(
                f"HF_HUB_OFFLINE is set, and the hub's cache does not hold {name}",
                "unset it, or give a folder that holds the shards with --offline",
            )
        if isinstance(error, HfHubHTTPError):
            status = error.response.status_code
            if status in (404, 410):
                return NotFound(f"{place} is not there ({status})", f"check the address, or {_ELSEWHERE}")
            if status in (401, 403):
                return AuthError(f"{place} may not be read ({status})", _ELSEWHERE)
            return Unreachable(f"{place} answers {status}", _ELSEWHERE)
        if isinstance(error, OSError) and error.errno is not None and part is not None:
            return disk_error("write", part, error)
        why = str(error).partition("\n")[0] or type(error).__name__
        return Unreachable(f"{place}: {why}", f"check the network, or {_ELSEWHERE}")


class Folder:
    """Shards of a local folder: linked if possible, else copied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def expected(self, names: Sequence[str], out: Path) -> int:
        there = [self._folder / name for name in names]
        for number, path in enumerate(there):
            if not path.is_file():
                lacking = sum(not other.is_file() for other in there[number:])
                raise NotFound(
                    f"{path} is not there, and {lacking - 1} more shards are missing",
                    "copy them to that folder, or use fewer shards with -n",
                )
        return sum(path.stat().st_size for path in there if not _linkable(path, out))

    def bring(self, name: str, part: Path, show: TransferProgress) -> None:
        link_or_copy((self._folder / name).resolve(), part)

    def place(self, name: str) -> str:
        return str(self._folder / name)


def link_or_copy(source: Path, part: Path) -> None:
    """Link or copy `source` to `part`. Raises: DiskError."""
    try:
        part.unlink(missing_ok=True)
        if _linkable(source, part.parent):
            try:
                os.link(source, part)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, part)
        else:
            shutil.copyfile(source, part)
    except OSError as error:
        raise disk_error("copy", source, error) from error


def check_address(address: str) -> None:
    """Raises: UsageError: `address` is no http or https address."""
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise UsageError(f"{plain(address)!r} is not the address of a mirror", "write it as https://HOST/FOLDER")


def plain(address: str) -> str:
    """`address` without name and password, for messages."""
    return re.sub(r"//[^/@]*@", "//", address)


def forget(part: Path) -> None:
    """Delete a `.part` and the ETag beside it. Raises: DiskError."""
    for path in (part, _tag_file(part)):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_error("delete", path, error) from error


def _prepare_library() -> None:
    """Disable telemetry before huggingface_hub is imported; then set small chunks and silence its log."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    constants.DOWNLOAD_CHUNK_SIZE = PIECE
    logging.set_verbosity_error()  # its warnings show URLs with passwords


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _stored_tag(part: Path) -> str:
    try:
        return _tag_file(part).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _linkable(path: Path, out: Path) -> bool:
    # A file without write permission may belong to another user, so it is copied.
    return os.access(path, os.W_OK) and path.stat().st_dev == out.stat().st_dev
