"""Imports texts as shards, and reads the shards with a check of their hashes.

A hash of each document decides its shard, and whether it is for validation, so the
order of import does not matter. Shards are parquet files with one column `text`; they
are listed with their hashes in `shards.json`. `nanochat.sources` reads the documents,
`nanochat.pack` makes tokens. Sizes are in bytes of UTF-8 text, except for files.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curtail.errors import DataError, NotFound, UsageError
from curtail.system.disk import Disk, disk_error
from nanochat.shuffle import Piles, Progress
from nanochat.sources import Skipped, documents_of, read_parquet, sha256_of

LIST_NAME = "shards.json"
FORMAT = "curtail-shards"
FORMAT_VERSION = 1
VALIDATION_NAME = "validation.parquet"
DOCUMENTS_PER_SHARD = 53_248
"""52 row groups, as in nanochat's own data sets."""
BYTES_PER_SHARD = 256 << 20
_ROW_GROUP = 1024
_ROW_GROUP_BYTES = 64 << 20  # limit for long documents: a row group must fit in memory


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of texts."""

    name: str
    sha256: str  # of the file, hex
    documents: int
    bytes: int  # of text, as UTF-8


@dataclass(frozen=True, slots=True)
class Shards:
    """The content of `shards.json`: training shards in reading order, and the validation shard."""

    training: tuple[Shard, ...]
    validation: Shard

    def part(self, part: str) -> tuple[Shard, ...]:
        """The shards of `train` or `validation`.

        Raises: UsageError: any other part.
        """
        if part not in ("train", "validation"):
            raise UsageError(f"there is no part {part!r}", "use train or validation")
        return self.training if part == "train" else (self.validation,)


@dataclass(frozen=True, slots=True)
class ImportReport:
    """The result of an import."""

    shards: Shards
    files: int  # files with at least one document
    documents: int
    bytes: int  # of text, as UTF-8
    empty_documents: int  # skipped, because they have only white space
    skipped: tuple[Skipped, ...]  # skipped files, each with the reason


def import_texts(
    paths: Sequence[Path],
    out: Path,
    *,
    disk: Disk,
    validation_fraction: float = 0.01,
    documents_per_shard: int = DOCUMENTS_PER_SHARD,
    bytes_per_shard: int = BYTES_PER_SHARD,
    seed: int = 42,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> ImportReport:
    """Convert text files, folders, JSONL and parquet files into shards in the folder `out`.

    The whole data set is shuffled on disk, so `out` needs free space for about twice
    the text. The same documents and arguments give the same shards.
    `validation_fraction` is met on average; each part gets at least one document.

    Raises:
        NotFound: a path does not exist.
        DataError: a file is broken, there are fewer than two different documents, or
            `out` has a data set already and `overwrite` is false.
        UsageError: a number is out of range.
        DiskError: `out` is full or not writable.
    """
    if not 0 <= validation_fraction < 1:
        raise UsageError(f"a validation fraction of {validation_fraction} is not possible", "use 0 or more, below 1")
    if documents_per_shard < 1 or bytes_per_shard < 1:
        raise UsageError("the limits of a shard must be at least one document and one byte")
    if not overwrite and (out / LIST_NAME).exists():
        raise DataError(f"{out} has an imported data set already", "choose another folder or ask to overwrite it")
    scratch = out / ".import"
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a killed import
        scratch.mkdir(parents=True)
    except OSError as error:
        raise disk_error("write into", out, error) from error
    try:
        former = _former_names(out)
        skipped: list[Skipped] = []
        piles = Piles(scratch, seed)
        piles.fill(documents_of(paths, skipped, leave_out=out), on_progress)
        if not piles.documents:
            raise _nothing(skipped)
        limit = piles.validation_limit(validation_fraction)
        disk.remove("SHARDS_DROP", out / LIST_NAME)
        shards = _write_shards(piles, limit, out, scratch, disk, documents_per_shard, bytes_per_shard)
        write_shards(out, shards, disk)
        for name in former - {shard.name for shard in (*shards.training, shards.validation)}:
            disk.remove("SHARD_DROP", out / name)
        return ImportReport(
            shards, len(piles.files), piles.documents, piles.bytes, piles.empty_documents, tuple(skipped)
        )
    except OSError as error:
        raise disk_error("write into", out, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _nothing(skipped: list[Skipped]) -> DataError:
    reason = ""
    if skipped:
        reason = f" ({len(skipped)} files were skipped; the first is {skipped[0].path}: {skipped[0].reason})"
    return DataError(f"there is no document to import{reason}", "give text files, JSONL or parquet with a `text`")


def _former_names(out: Path) -> set[str]:
    """Names of the shards of the data set that is replaced; none if its list cannot be read."""
    try:
        former = read_shards(out)
    except (NotFound, DataError):
        return set()
    return {shard.name for shard in (*former.training, former.validation)}


class _ShardWriter:
    """Writes shards one after the other; each is published when it is full."""

    def __init__(self, out: Path, scratch: Path, disk: Disk, name: str) -> None:
        self.out, self.scratch, self.disk, self.name = out, scratch, disk, name
        self.shards: list[Shard] = []
        self.documents = self.bytes = self.pending_bytes = 0
        self.pending: list[str] = []
        self.writer: Any = None

    def add(self, data: bytes) -> None:
        self.pending.append(data.decode())
        self.documents += 1
        self.bytes += len(data)
        self.pending_bytes += len(data)
        if len(self.pending) == _ROW_GROUP or self.pending_bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema([pa.field("text", pa.string(), nullable=False)])
        if self.writer is None:
            self.writer = pq.ParquetWriter(
                self._temp(),
                schema,
                compression="zstd",
                compression_level=3,
                use_dictionary=False,
                write_statistics=False,
            )
        if self.pending:
            self.writer.write_table(pa.table({"text": self.pending}, schema=schema), row_group_size=_ROW_GROUP)
        self.pending, self.pending_bytes = [], 0

    def _temp(self) -> Path:
        return self.scratch / self.name

    def close(self) -> None:
        """Publish the shard, unless it is empty."""
        if not self.documents:
            return
        self._flush()
        self.writer.close()
        name = self.name.format(len(self.shards))
        digest = sha256_of(self._temp())
        self.disk.publish("SHARD", self._temp(), self.out / name)
        self.shards.append(Shard(name, digest, self.documents, self.bytes))
        self.writer, self.documents, self.bytes = None, 0, 0


def _write_shards(
    piles: Piles, limit: int, out: Path, scratch: Path, disk: Disk, most_documents: int, most_bytes: int
) -> Shards:
    training = _ShardWriter(out, scratch, disk, "shard_{:05d}.parquet")
    validation = _ShardWriter(out, scratch, disk, VALIDATION_NAME)
    for draw, data in piles.in_order():
        if draw <= limit:
            validation.add(data)
            continue
        training.add(data)
        if training.documents >= most_documents or training.bytes >= most_bytes:
            training.close()
    training.close()
    validation.close()
    return Shards(tuple(training.shards), validation.shards[0])


def write_shards(folder: Path, shards: Shards, disk: Disk) -> None:
    """Write the list of the shards in `folder`, for `read_shards`.

    Raises: DiskError: the folder is full, read-only or missing.
    """
    listed = {"format": FORMAT, "version": FORMAT_VERSION, **asdict(shards)}
    disk.replace("SHARDS_LIST", folder / LIST_NAME, (json.dumps(listed, indent=1) + "\n").encode())


def read_shards(folder: Path) -> Shards:
    """The list of the shards in `folder`; the shards themselves are not opened.

    Raises:
        NotFound: there is no list.
        DataError: the list is truncated or invalid.
    """
    path = folder / LIST_NAME
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format") != FORMAT or content.pop("version") != FORMAT_VERSION:
            raise ValueError("another format")
        training = tuple(_shard(entry) for entry in content.pop("training"))
        shards = Shards(training, _shard(content.pop("validation")))
        names = [shard.name for shard in (*training, shards.validation)]
        if content or not training or len(set(names)) < len(names):
            raise ValueError("other fields")
        return shards
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"no data set in {folder}", "create one with `curtail data import` or `curtail data fetch`"
        ) from None
    except OSError as error:
        raise disk_error("read", path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is truncated or not a list of shards", "import or fetch the texts again") from None


def _shard(entry: dict[str, Any]) -> Shard:
    shard = Shard(**entry)
    counts = (shard.documents, shard.bytes)
    if any(type(count) is not int or count < 1 for count in counts) or not isinstance(shard.sha256, str):
        raise ValueError("counts or hash")
    if os.path.basename(shard.name) != shard.name or not shard.name.endswith(".parquet"):
        raise ValueError("a shard lies in the folder itself")
    return shard


def iterate_texts(folder: Path, part: str = "train") -> Iterator[str]:
    """The documents of `train` or `validation`, in order; each shard is checked before it is read.

    Raises:
        NotFound: there is no data set in `folder`.
        DataError: a shard is missing, damaged or changed.
        UsageError: any other part.
    """
    for shard in read_shards(folder).part(part):
        path = folder / shard.name
        if not path.is_file():
            raise DataError(f"{path} is missing", "import or fetch the texts again, or copy the shard to that place")
        if sha256_of(path) != shard.sha256:
            raise DataError(
                f"{path} does not match its hash in {LIST_NAME}", "import or fetch the texts again, or copy it again"
            )
        yield from (text for text in read_parquet(path) if text is not None)
