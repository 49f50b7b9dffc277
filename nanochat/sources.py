"""Reads documents from text files, folders, JSONL and parquet files.

A text file is one document; a long one is split at blank lines, so that a single big
file is a usable data set. In a folder all UTF-8 text files are read, in the order of
their names, except hidden files and folders. Skipped files are reported with the
reason. A damaged file is an error that names file and line.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curtail.errors import DataError, NotFound
from curtail.system.disk import disk_error

CUT_CHARACTERS = 65_536
"""A text file longer than this becomes several documents of about this length."""
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was skipped, and why."""

    path: Path
    reason: str


def documents_of(paths: Sequence[Path], skipped: list[Skipped], leave_out: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, document) for all documents under `paths`; no file is read twice.

    Files that are not text are appended to `skipped`. Files below the folder
    `leave_out` are ignored, so that a data set is never imported into itself.

    Raises:
        NotFound: a path does not exist; raised before the first document.
        DataError: a JSONL or parquet file is broken.
    """
    for path in paths:
        if not path.exists():
            raise NotFound(f"{path} does not exist", "check the path of the texts to import")
    seen: set[Path] = set()
    for path in _files(paths, leave_out.resolve()):
        real = path.resolve()
        if real in seen:
            continue
        seen.add(real)
        try:
            for text in _documents(path, skipped):
                yield path, text
        except OSError as error:
            raise disk_error("read", path, error) from error


def _files(paths: Sequence[Path], leave_out: Path) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        for folder, names, files in os.walk(path):
            here = Path(folder)
            # In place, because os.walk descends into the folders that remain in the list.
            names[:] = sorted(n for n in names if not n.startswith(".") and (here / n).resolve() != leave_out)
            if here.resolve() == leave_out:
                names.clear()
                continue
            yield from (here / name for name in sorted(files) if not name.startswith("."))


def _documents(path: Path, skipped: list[Skipped]) -> Iterator[str]:
    if not path.is_file():
        skipped.append(Skipped(path, "not a regular file"))
    elif path.suffix == ".parquet":
        for text in read_parquet(path):
            yield text or ""
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from _read_jsonl(path)
    elif reason := _not_text(path):
        skipped.append(Skipped(path, reason))
    else:
        yield from _read_text(path)


def _not_text(path: Path) -> str | None:
    """Why the file is not text, or None. The whole file is checked before any of it is used."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                if b"\0" in block:
                    return "binary (it has a zero byte)"
                decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "not UTF-8 text"
    except PermissionError:
        return "not readable"
    return None


def _read_text(path: Path) -> Iterator[str]:
    """The documents of a file: split at a blank line, else at a line break, else anywhere."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rest = ""
        while block := file.read(_BLOCK):
            rest += block
            start = 0
            while len(rest) - start > 2 * CUT_CHARACTERS:
                cut = _cut(rest, start + CUT_CHARACTERS)
                yield rest[start:cut]
                start = cut
            rest = rest[start:]
        if len(rest) > CUT_CHARACTERS:
            cut = _cut(rest, len(rest) // 2)
            yield rest[:cut]
            rest = rest[cut:]
        yield rest


def _cut(text: str, at: int) -> int:
    """A position near `at`, at most a quarter of a document later, at which to split `text`."""
    for mark in ("\n\n", "\n"):
        found = text.find(mark, at, at + CUT_CHARACTERS // 4)
        if found >= 0:
            return found + len(mark)
    return at


def _read_jsonl(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                entry: Any = json.loads(line.removeprefix(codecs.BOM_UTF8))
            except (ValueError, RecursionError):
                raise DataError(f"{where}: not valid JSON", "repair or delete the line") from None
            if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
                raise DataError(f"{where}: no string under the key `text`", "every line must be an object with `text`")
            yield entry["text"]


def read_parquet(path: Path) -> Iterator[str | None]:
    """The column `text` of a parquet file, row by row.

    Raises: DataError: the file is empty, damaged, or has no such column of strings.
    """
    for column in _text_columns(path):
        yield from column.to_pylist()


def measure_parquet(path: Path) -> tuple[int, int]:
    """Number of documents in the column `text` of a parquet file, and their UTF-8 bytes; reads the whole column.

    Raises: DataError: as `read_parquet`, or there is no text in it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    documents = size = 0
    for column in _text_columns(path):
        documents += len(column) - column.null_count
        size += pc.sum(pc.binary_length(column.cast(pa.large_string()))).as_py() or 0
    if not size:
        raise DataError(f"{path} has no text", "leave it out or fetch it again")
    return documents, size


def _text_columns(path: Path) -> Iterator[Any]:
    """The column `text`, 256 rows at a time, each checked to be UTF-8."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                names = ", ".join(file.schema_arrow.names)
                raise DataError(f"{path} has no column `text`, only: {names}", "rename the column with the texts")
            if not _holds_text(file.schema_arrow.field("text").type):
                raise DataError(f"the column `text` of {path} does not contain strings", "convert it to strings")
            if not file.metadata.num_rows:
                raise DataError(f"{path} is empty", "leave it out or fetch it again")
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                batch.validate(full=True)
                yield batch.column(0)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError)):
            raise
        raise DataError(f"{path} is not an intact parquet file", "fetch it again or leave it out") from error


def _holds_text(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def sha256_of(path: Path) -> str:
    """The hash of a file, in hex, read in blocks.

    Raises: DiskError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise disk_error("read", path, error) from error
