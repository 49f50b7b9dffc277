"""Shards of text to files of tokens, once; and samples out of these files.

Decides how documents become one stream: each is BOS and its tokens, and they
follow each other without gaps ("stream" packing). Sample i is the T + 1 tokens
from i * T on, so neighbours share one token and every target is used once. Token
files are 16-bit unsigned little-endian numbers and nothing else. Who trains on
which sample is not decided here. Lengths are in tokens, sizes in bytes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
import numpy.typing as npt

from curtail.disk import Disk, disk_error
from curtail.errors import DataError, UsageError
from nanochat.dataset import iterate_texts, read_shards
from nanochat.manifest import MANIFEST_NAME, PACKING, PARTS, TOKEN_BYTES, Manifest, SourceShard, TokenFile
from nanochat.sources import sha256_of
from nanochat.tokenizer import FILE_NAME, Tokenizer

__all__ = ["Manifest", "SourceShard", "TokenFile", "TokenStream", "missing_files", "prepare"]

TOKENS_PER_FILE = 100_000_000
_BATCH_CHARACTERS = 4 << 20  # text that is encoded at once
_LITTLE_ENDIAN = np.dtype("<u2")

Tokens: TypeAlias = npt.NDArray[np.uint16]
Ids: TypeAlias = npt.NDArray[np.int64]
Progress: TypeAlias = Callable[[str, int], None]
"""Called with the part and the tokens of it written so far."""


def prepare(
    shards: Path,
    tokenizer: Tokenizer,
    out: Path,
    *,
    disk: Disk,
    sequence_len: int,
    tokens_per_file: int = TOKENS_PER_FILE,
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Turn the shards in the folder `shards` into token files, manifest and tokenizer in `out`.

    The manifest is written last: a folder with a manifest is complete. An earlier
    content of `out` is replaced.

    Raises:
        NotFound: there is no data set in `shards`.
        DataError: a shard is damaged, or a part is shorter than one sample.
        UsageError: `sequence_len` or `tokens_per_file` is below 1.
        DiskError: `out` is full or not writable.
    """
    if sequence_len < 1 or tokens_per_file < 1:
        raise UsageError("sequence length and tokens per file must be at least 1")
    listed = read_shards(shards)
    sources = tuple(SourceShard(shard.name, shard.sha256) for part in PARTS for shard in listed.part(part))
    try:
        out.mkdir(parents=True, exist_ok=True)
        disk.remove("MANIFEST_DROP", out / MANIFEST_NAME)
        files: list[TokenFile] = []
        for part in PARTS:
            with _TokenWriter(out, part, disk, tokens_per_file) as writer:
                for packed in _packed(iterate_texts(shards, part), tokenizer, threads):
                    writer.add(packed)
                    if on_progress is not None:
                        on_progress(part, writer.written)
                files += writer.close()
    except OSError as error:
        raise disk_error("write into", out, error) from error
    manifest = Manifest(sequence_len, tokenizer.vocab_size, tokenizer.digest, PACKING, sources, tuple(files))
    for part in PARTS:
        _require_sample(manifest, part)
    tokenizer.save(out / FILE_NAME, disk)
    disk.replace("MANIFEST", out / MANIFEST_NAME, manifest.to_json().encode())
    _drop_strays(out, manifest, disk)
    return manifest


def _packed(texts: Iterable[str], tokenizer: Tokenizer, threads: int | None) -> Iterator[Tokens]:
    """The stream, in pieces: BOS and the tokens of each text."""
    for batch in _batches(texts):
        encoded = tokenizer.encode_batch(batch, threads)
        packed = np.empty(sum(map(len, encoded)) + len(encoded), _LITTLE_ENDIAN)
        at = 0
        for ids in encoded:
            packed[at] = tokenizer.bos_id
            packed[at + 1 : at + 1 + len(ids)] = ids
            at += 1 + len(ids)
        yield packed


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
    """Cuts a stream into files of equal length; each is published when it is full."""

    def __init__(self, out: Path, part: str, disk: Disk, tokens_per_file: int) -> None:
        self._out, self._part, self._disk, self._most = out, part, disk, tokens_per_file
        self._temp = out / f".{part}.tmp"
        self._file = self._begin()
        self._hash = hashlib.sha256()
        self._tokens = 0  # in the file that is open
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
            data = packed[:room].tobytes()
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


def _require_sample(manifest: Manifest, part: str) -> None:
    if not manifest.samples(part):
        raise DataError(
            f"the {part} part has {manifest.tokens(part)} tokens, and one sample needs {manifest.sequence_len + 1}",
            "import more text or choose a shorter sequence length",
        )


class TokenStream:
    """All token files of a part as one stream, memory-mapped; cut into samples.

    Raises:
        DataError: a file is missing or of the wrong size, or the part is shorter
            than one sample.
        UsageError: any other part than `train` or `validation`.
    """

    def __init__(self, folder: Path, manifest: Manifest, part: str = "train") -> None:
        _require_sample(manifest, part)
        self.folder, self.manifest, self.part = folder, manifest, part
        self.samples = manifest.samples(part)
        """Samples in one pass (epoch)."""
        self._files = manifest.files_of(part)
        self._ends = list(accumulate(file.tokens for file in self._files))
        self._maps = [self._map(file) for file in self._files]

    def _map(self, file: TokenFile) -> Tokens:
        path = self.folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise DataError(f"{path} is missing or not {file.size} bytes long", "fetch the file again")
        return np.memmap(path, dtype=_LITTLE_ENDIAN, mode="r", shape=(file.tokens,))

    def sample(self, index: int) -> Tokens:
        """The T + 1 tokens of sample `index`; indices go round, one pass after the other.

        Raises: UsageError: `index` is negative.
        """
        return self._run(index, index + 1)

    def batch(self, start: int, stop: int) -> tuple[Ids, Ids]:
        """Inputs and targets of the samples start <= i < stop, each of shape (n, T).

        Indices go round like in `sample`.

        Raises: UsageError: the range is empty or begins below 0.
        """
        length = self.manifest.sequence_len
        inputs = np.empty((stop - start if stop > start else 0, length), np.int64)
        targets = np.empty_like(inputs)
        at = start
        while at < stop or at == start:
            # Samples follow each other in the stream, so a range within a pass is one run.
            end = min(stop, at - at % self.samples + self.samples)
            run = self._run(at, end)
            rows = slice(at - start, end - start)
            inputs[rows] = run[:-1].reshape(-1, length)
            targets[rows] = run[1:].reshape(-1, length)
            at = end
        return inputs, targets

    def _run(self, start: int, stop: int) -> Tokens:
        """The tokens of samples start <= i < stop, which lie in one pass."""
        if not 0 <= start < stop:
            raise UsageError(f"there are no samples {start} to {stop}", "ask for at least one sample, from 0 on")
        length = self.manifest.sequence_len
        first = start % self.samples * length
        return self._tokens(first, first + (stop - start) * length + 1)

    def _tokens(self, first: int, last: int) -> Tokens:
        pieces = []
        number = bisect_right(self._ends, first)
        while first < last:
            begin = self._ends[number] - self._files[number].tokens
            end = min(last, self._ends[number])
            pieces.append(self._maps[number][first - begin : end - begin])
            first, number = end, number + 1
        return np.concatenate(pieces).astype(np.uint16, copy=False)

    def verify(self) -> None:
        """Read every file of the part and compare size and hash with the manifest.

        Raises: DataError: names the first file that differs.
        """
        for file in self._files:
            if not _is_intact(self.folder, file):
                raise DataError(f"{self.folder / file.name} does not match the manifest", "fetch the file again")


def missing_files(folder: Path, manifest: Manifest) -> tuple[TokenFile, ...]:
    """The files of the manifest that `folder` lacks, or holds with a wrong size or hash."""
    return tuple(file for file in manifest.files if not _is_intact(folder, file))


def _is_intact(folder: Path, file: TokenFile) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256
