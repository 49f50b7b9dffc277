"""`curtail data fetch`: a published data set as a folder of shards, checked and resumable.

Decides which shards are missing, checks each before it gets its final name, and
marks the folder as complete (`shards.json` is written last). `fetch.json` records
the hash of every shard at its first fetch; a later download with another hash is
refused. `curtail.commands.data.mirrors` transfers the bytes; `nanochat.hub_datasets`
lists the shards. Sizes in bytes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curtail.commands.data.mirrors import Folder, Hub, ShardSource, forget
from curtail.commands.data.progress import TransferProgress
from curtail.errors import DataError, DiskError, NotFound, Refused, UsageError
from curtail.system.disk import Disk, SystemDisk, disk_error

if TYPE_CHECKING:
    from nanochat.dataset import Shard, Shards
    from nanochat.hub_datasets import PublishedSet

RECORD_NAME = "fetch.json"
FORMAT = "curtail-fetch"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Options of `curtail data fetch`."""

    dataset: str
    shards: int  # for training; the one for validation is added
    out: Path
    mirror: str | None  # base address instead of the published one
    offline: Path | None  # folder to take the shards from instead
    parallel: int  # parallel downloads


def run(options: FetchOptions) -> int:
    """Carry out `curtail data fetch`; returns the exit code. Raises: CurtailError."""
    from nanochat.hub_datasets import published_set

    published = published_set(options.dataset)
    if options.mirror is not None and options.offline is not None:
        raise UsageError("--mirror and --offline are two sources", "give one of them")
    if options.offline is not None and not options.offline.is_dir():
        raise NotFound(f"there is no folder {options.offline}", "give the folder that holds the shards")
    stop = threading.Event()
    names = (published.validation_name, *published.names(options.shards))
    source = Folder(options.offline) if options.offline else Hub(published.repository, options.mirror, stop)
    shards = fetch(
        published, options.shards, options.out, source, parallel=options.parallel,
        show=TransferProgress(len(names), stop), stop=stop, disk=SystemDisk(),
    )  # fmt: skip
    listed = (*shards.training, shards.validation)
    print(
        f"{len(listed)} shards of {published.name}, {sum(shard.documents for shard in listed):,} documents,"
        f" {sum(shard.bytes for shard in listed) / 1e6:,.1f} MB of text in {options.out};"
        f" {shards.validation.name} is for validation"
    )
    return 0


def fetch(
    published: PublishedSet,
    count: int,
    out: Path,
    source: ShardSource,
    *,
    disk: Disk,
    show: TransferProgress,
    stop: threading.Event,
    parallel: int = 4,
) -> Shards:
    """Fetch the first `count` training shards and the validation shard into `out`, and list them.

    Shards with the recorded hash are not fetched again. When one fails, `stop` is
    set and the others end.

    Raises:
        UsageError: the data set has fewer shards, or `parallel` is below 1.
        NotFound, AuthError, Unreachable: the source does not deliver a shard.
        DataError: a shard is no text, or differs from its first fetch; `out`
            holds another data set.
        Refused: another fetch runs in `out`.
        DiskError: `out` is full (checked before the download if sizes are known) or not writable.
    """
    if parallel < 1:
        raise UsageError(f"cannot fetch {parallel} shards at once", "give at least 1")
    names = (published.validation_name, *published.names(count))
    with _alone(out):
        return _complete(names, published, out, source, disk, show, stop, parallel)


def _complete(
    names: tuple[str, ...],
    published: PublishedSet,
    out: Path,
    source: ShardSource,
    disk: Disk,
    show: TransferProgress,
    stop: threading.Event,
    parallel: int,
) -> Shards:
    """`fetch` for these names, the validation shard first, in a locked folder."""
    from nanochat.dataset import Shards, write_shards

    record = _Record(out, published, disk)
    if missing := [name for name in names if not (out / name).is_file()]:
        _check_room(out, source.expected(missing, out) - sum(_size(_part(out, name)) for name in missing))
    record.write()
    # Fetch one shard first, so that a fault of the source is reported once.
    record.add(_one(names[0], out, source, record.known.get(names[0]), disk, show))
    with ThreadPoolExecutor(parallel, thread_name_prefix="fetch") as pool:
        waiting = [pool.submit(_one, name, out, source, record.known.get(name), disk, show) for name in names[1:]]
        try:
            for future in as_completed(waiting):
                record.add(future.result())
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise
    shards = Shards(tuple(record.known[name] for name in names[1:]), record.known[names[0]])
    write_shards(out, shards, disk)
    return shards


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Create and lock the folder: two fetches would write the same `.part`."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise disk_error("create", out, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Refused(f"another fetch runs in {out}", "wait for it, or choose another folder") from error
    try:
        yield
    finally:
        os.close(descriptor)


def _one(name: str, out: Path, source: ShardSource, known: Shard | None, disk: Disk, show: TransferProgress) -> Shard:
    """Make the shard `name` present and verified; `known` is its record from the first fetch."""
    from nanochat.sources import sha256_of

    path, part = out / name, _part(out, name)
    if path.is_file():
        if known is None or sha256_of(path) == known.sha256:
            try:
                shard = known or _examine(path, name)
                show.done(name, _size(path))
                return shard
            except DataError as error:
                show.say(f"{error.message}; it is fetched again")
        else:
            show.say(f"{path} does not match its hash in {RECORD_NAME}; it is fetched again")
    tries = 0
    while True:
        named = source.bring(name, part, show)
        try:
            shard = _examine(part, name)
            if named not in (None, shard.sha256):
                raise DataError(f"{source.place(name)} arrived with a hash that differs from its host's", "try again")
            if known is not None and shard != known:
                raise DataError(
                    f"{source.place(name)} differs from its first fetch",
                    f"use another source, or fetch the changed data set into another folder than {out}",
                )
            break
        except DataError as error:
            # It cannot be continued; a second download shows whether the transfer or the source is at fault.
            forget(part)
            tries += 1
            if tries == 2:
                raise DataError(error.message.replace(str(part), source.place(name)), error.remedy) from None
            show.say(f"{name}: {error.message}; once more")
    disk.remove("SHARD_DROP", path)  # if both are links to one file, a rename does nothing
    disk.publish("SHARD", part, path)
    forget(part)
    show.done(name, _size(path))
    return shard


def _examine(path: Path, name: str) -> Shard:
    from nanochat.dataset import Shard
    from nanochat.sources import measure_parquet, sha256_of

    documents, size = measure_parquet(path)
    return Shard(name, sha256_of(path), documents, size)


class _Record:
    """`fetch.json`: the data set of a folder, and each shard's record from its first fetch."""

    def __init__(self, out: Path, published: PublishedSet, disk: Disk) -> None:
        self._path, self._name, self._disk = out / RECORD_NAME, published.name, disk
        self.known = self._read(out, published)

    def add(self, shard: Shard) -> None:
        """Record a shard durably."""
        if self.known.get(shard.name) != shard:
            self.known[shard.name] = shard
            self.write()

    def write(self) -> None:
        shards = [asdict(self.known[name]) for name in sorted(self.known)]
        content = {"format": FORMAT, "version": FORMAT_VERSION, "dataset": self._name, "shards": shards}
        self._disk.replace("FETCH_RECORD", self._path, (json.dumps(content, indent=1) + "\n").encode())

    def _read(self, out: Path, published: PublishedSet) -> dict[str, Shard]:
        from nanochat.dataset import Shard, read_shards

        elsewhere = "choose another folder with --out"
        try:
            content = json.loads(self._path.read_bytes())
            if (content["format"], content["version"]) != (FORMAT, FORMAT_VERSION):
                raise ValueError("another format")
            dataset, shards = content["dataset"], [Shard(**entry) for entry in content["shards"]]
        except FileNotFoundError:
            try:
                listed = read_shards(out)
            except NotFound:
                return {}
            # An imported data set, or a fetched one that was copied without its record.
            dataset = published.name if listed.validation.name == published.validation_name else "another data set"
            shards = [*listed.training, listed.validation]
        except OSError as error:
            raise disk_error("read", self._path, error) from error
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self._path} is truncated or not valid", "delete it and fetch again") from None
        if dataset != published.name:
            raise DataError(f"{out} holds {dataset}, not {published.name}", elsewhere)
        return {shard.name: shard for shard in shards}


def _check_room(out: Path, wanted: int) -> None:
    """Raises: DiskError: `out` has too little free space."""
    try:
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise disk_error("use", out, error) from error
    if wanted > free:
        raise DiskError(
            f"the shards need about {wanted / 1e9:.1f} GB in {out}, and {free / 1e9:.1f} GB are free",
            "free some space there, choose another folder, or ask for fewer shards",
        )


def _part(out: Path, name: str) -> Path:
    return out / f"{name}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
