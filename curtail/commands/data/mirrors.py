"""Where the shards of a published data set come from: a host, or a folder on this machine.

Decides how a shard becomes a complete `.part` file in the data folder, and how
much room that will take. A folder's files are linked where that is possible and
copied elsewhere. What a shard must hold is checked in `curtail.commands.data.fetch`. Sizes in
bytes.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from curtail.commands.data.download import At, Promise, download, plain, size_of
from curtail.errors import NotFound
from curtail.system.disk import disk_error

if TYPE_CHECKING:
    import httpx

_ROOM = 1.05  # the shards are not all of one size


class Source(Protocol):
    """Where shards come from."""

    def expected(self, names: Sequence[str], out: Path) -> int:
        """About how many bytes of disk these files will take in `out`."""
        ...

    def bring(self, name: str, part: Path, at: At, say: Callable[[str], None]) -> Promise:
        """Make `part` the whole file `name`. Raises: CurtailError."""
        ...

    def place(self, name: str) -> str:
        """Where the file comes from, for messages."""
        ...


class Host:
    """Shards by HTTP, below one address."""

    def __init__(self, http: httpx.Client, address: str, stop: threading.Event, wait: Callable[[float], object]):
        self._http, self._address, self._stop, self._wait = http, address, stop, wait

    def expected(self, names: Sequence[str], out: Path) -> int:
        from nanochat.hub_datasets import SHARD_BYTES

        one = size_of(self._http, self.place(names[0])) or SHARD_BYTES
        return int(one * len(names) * _ROOM)

    def bring(self, name: str, part: Path, at: At, say: Callable[[str], None]) -> Promise:
        return download(
            self._http, self._url(name), part, sleep=self._wait, stopped=self._stop.is_set, at=at, say=say
        )  # fmt: skip

    def place(self, name: str) -> str:
        return plain(self._url(name))

    def _url(self, name: str) -> str:
        return f"{self._address}/{name}"


class Folder:
    """Shards out of a folder on this machine: linked if possible, else copied."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def expected(self, names: Sequence[str], out: Path) -> int:
        there = [self._folder / name for name in names]
        for number, path in enumerate(there):
            if not path.is_file():
                lacking = sum(not other.is_file() for other in there[number:])
                raise NotFound(
                    f"{path} is not there, and {lacking - 1} more shards are missing",
                    "bring them to that folder, or ask for fewer shards with -n",
                )
        return sum(path.stat().st_size for path in there if not _linkable(path, out))

    def bring(self, name: str, part: Path, at: At, say: Callable[[str], None]) -> Promise:
        source = (self._folder / name).resolve()
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
        return Promise(source.stat().st_size)

    def place(self, name: str) -> str:
        return str(self._folder / name)


def _linkable(path: Path, out: Path) -> bool:
    # A file that we may not write to may be another user's: it gets a copy of its own.
    return os.access(path, os.W_OK) and path.stat().st_dev == out.stat().st_dev
