"""Encodes and packs shards of text into token files.

Each document becomes BOS and its tokens. Documents follow each other without gaps
("stream" packing) or are packed into rows that begin with BOS ("bestfit", see
`nanochat.bestfit`). Token files contain only 16-bit unsigned little-endian numbers.
`nanochat.stream` defines the samples. Lengths are in tokens, sizes in bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np

from curtail.errors import UsageError
from curtail.system.disk import Disk, disk_error, fsync_folder
from nanochat.bestfit import BestFit, PackCount
from nanochat.dataset import iterate_texts, read_shards
from nanochat.manifest import (
    BEST_FIT,
    MANIFEST_NAME,
    PACKINGS,
    PARTS,
    STREAM,
    TOKEN_BYTES,
    Manifest,
    SourceShard,
    TokenFile,
)
from nanochat.stream import LITTLE_ENDIAN, Tokens, TokenStream, missing_files, require_sample
from nanochat.tokenizer import FILE_NAME, Tokenizer

__all__ = ["Manifest", "SourceShard", "TokenFile", "TokenStream", "missing_files", "prepare"]

TOKENS_PER_FILE = 100_000_000
_BATCH_CHARACTERS = 4 << 20  # text that is encoded at once
_ASIDE = ".packing"  # inside the output folder, so that files can be moved out of it by a rename

Progress: TypeAlias = Callable[[str, int], None]
"""Called with the part and the tokens of it written so far."""
OnPacked: TypeAlias = Callable[[str, PackCount], None]
"""Called at the end of a part that was packed `bestfit`, with the counts of kept and cropped tokens."""


def prepare(
    shards: Path,
    tokenizer: Tokenizer,
    out: Path,
    *,
    disk: Disk,
    sequence_len: int,
    packing: str = STREAM,
    tokens_per_file: int = TOKENS_PER_FILE,
    threads: int | None = None,
    on_progress: Progress | None = None,
    on_packed: OnPacked | None = None,
) -> Manifest:
    """Turn the shards in the folder `shards` into token files, manifest and tokenizer in `out`.

    The manifest is written last, so a folder with a manifest is complete. Earlier content
    of `out` is replaced only when everything is packed; after an error it is still there.

    Args:
        sequence_len: T; a sample has T + 1 tokens.
        packing: `stream` or `bestfit`.
        tokens_per_file: length of all token files but the last; with `bestfit` rounded to whole rows.
        threads: for the encoding; None: all cores.
    Raises:
        NotFound: there is no data set in `shards`.
        DataError: a shard is damaged, or a part is shorter than one sample.
        UsageError: `sequence_len` or `tokens_per_file` is below 1, or there is no such packing.
        DiskError: `out` is full or not writable.
    """
    if sequence_len < 1 or tokens_per_file < 1:
        raise UsageError("sequence length and tokens per file must be at least 1")
    if packing not in PACKINGS:
        raise UsageError(f"there is no packing {packing!r}", f"use {' or '.join(PACKINGS)}")
    if packing == BEST_FIT:
        tokens_per_file = max(1, tokens_per_file // (sequence_len + 1)) * (sequence_len + 1)
    listed = read_shards(shards)
    sources = tuple(SourceShard(shard.name, shard.sha256) for part in PARTS for shard in listed.part(part))
    aside, made = out / _ASIDE, not out.exists()
    try:
        shutil.rmtree(aside, ignore_errors=True)  # left by a killed run
        aside.mkdir(parents=True)
        files: list[TokenFile] = []
        for part in PARTS:
            encoded = _encoded(iterate_texts(shards, part), tokenizer, threads)
            packer = BestFit(sequence_len + 1) if packing == BEST_FIT else None
            with _TokenWriter(aside, part, disk, tokens_per_file) as writer:
                files += _write_part(part, encoded, packer, writer, on_progress)
                if packer is not None and on_packed is not None:
                    on_packed(part, packer.count)
        manifest = Manifest(sequence_len, tokenizer.vocab_size, tokenizer.digest, packing, sources, tuple(files))
        _complete(aside, manifest, tokenizer, disk)
        _put_in_place(aside, out, manifest, disk)
    except OSError as error:
        raise disk_error("write into", out, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if made and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
    return manifest


def _write_part(
    part: str,
    encoded: Iterable[tuple[Tokens, list[int]]],
    packer: BestFit | None,
    writer: _TokenWriter,
    on_progress: Progress | None,
) -> list[TokenFile]:
    """Write the documents of a part as token files: in rows with a packer, else as one stream."""
    for packed in packer.rows(_apart(encoded)) if packer else (tokens for tokens, _ in encoded):
        writer.add(packed.reshape(-1))
        if on_progress is not None:
            on_progress(part, writer.written)
    return writer.close()


def _complete(aside: Path, manifest: Manifest, tokenizer: Tokenizer, disk: Disk) -> None:
    """Add tokenizer and manifest to the token files. Raises: DataError: a part is shorter than one sample."""
    for part in PARTS:
        require_sample(manifest, part)
    tokenizer.save(aside / FILE_NAME, disk)
    disk.replace("MANIFEST", aside / MANIFEST_NAME, manifest.to_json().encode())


def _put_in_place(aside: Path, out: Path, manifest: Manifest, disk: Disk) -> None:
    """Move everything from `aside` to `out`, the manifest last. Raises: OSError, DiskError."""
    disk.remove("MANIFEST_DROP", out / MANIFEST_NAME)
    for name in (*(file.name for file in manifest.files), FILE_NAME):
        os.replace(aside / name, out / name)
    fsync_folder(out)  # after a power loss there must be no manifest without its files
    os.replace(aside / MANIFEST_NAME, out / MANIFEST_NAME)
    fsync_folder(out)
    _drop_strays(out, manifest, disk)


def _encoded(texts: Iterable[str], tokenizer: Tokenizer, threads: int | None) -> Iterator[tuple[Tokens, list[int]]]:
    """Batches of encoded documents: their tokens without gaps, each document after BOS, and the end of each."""
    for batch in _batches(texts):
        encoded = tokenizer.encode_batch(batch, threads)
        packed = np.empty(sum(map(len, encoded)) + len(encoded), LITTLE_ENDIAN)
        at, ends = 0, []
        for ids in encoded:
            packed[at] = tokenizer.bos_id
            packed[at + 1 : at + 1 + len(ids)] = ids
            at += 1 + len(ids)
            ends.append(at)
        yield packed, ends


def _apart(encoded: Iterable[tuple[Tokens, list[int]]]) -> Iterator[Tokens]:
    """The documents one by one."""
    for tokens, ends in encoded:
        for start, end in pairwise([0, *ends]):
            yield tokens[start:end]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _TokenWriter:
    """Splits a stream of tokens into files of equal length; each is published when it is full."""

    def __init__(self, out: Path, part: str, disk: Disk, tokens_per_file: int) -> None:
        self._out, self._part, self._disk, self._most = out, part, disk, tokens_per_file
        self._temp = out / f".{part}.tmp"
        self._file = self._begin()
        self._hash = hashlib.sha256()
        self._tokens = 0  # in the open file
        self._done: list[TokenFile] = []
        self.written = 0

    def _begin(self) -> IO[bytes]:
        return open(self._temp, "wb")

    def __enter__(self) -> _TokenWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temp.unlink(missing_ok=True)

    def add(self, packed: Tokens) -> None:
        while len(packed):
            room = self._most - self._tokens
            data = packed[:room].astype(LITTLE_ENDIAN, copy=False).tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._tokens += len(data) // TOKEN_BYTES
            self.written += len(data) // TOKEN_BYTES
            packed = packed[room:]
            if self._tokens == self._most:
                self._publish()
                self._file = self._begin()

    def close(self) -> list[TokenFile]:
        if self._tokens:
            self._publish()
        return self._done

    def _publish(self) -> None:
        self._file.close()
        name = f"{self._part}_{len(self._done):05d}.bin"
        self._disk.publish("TOKENS", self._temp, self._out / name)
        size = TOKEN_BYTES * self._tokens
        self._done.append(TokenFile(name, self._part, self._tokens, self._hash.hexdigest(), size))
        self._hash, self._tokens = hashlib.sha256(), 0


def _drop_strays(out: Path, manifest: Manifest, disk: Disk) -> None:
    """Delete token files of an earlier, longer data set in the same folder."""
    listed = {file.name for file in manifest.files}
    for part in PARTS:
        for path in out.glob(f"{part}_?????*.bin"):
            if path.name not in listed:
                disk.remove("TOKENS_DROP", path)
