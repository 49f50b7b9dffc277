"""Reads samples by index from memory-mapped token files; indices wrap around after each epoch.

With "stream" packing, sample i is the T + 1 tokens from i * T on: neighbours share one
token, and every target is used once. With "bestfit" it is row i, the T + 1 tokens from
i * (T + 1) on. Lengths are in tokens, sizes in bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from curtail.errors import DataError, UsageError
from nanochat.manifest import BEST_FIT, Manifest, TokenFile
from nanochat.sources import sha256_of

LITTLE_ENDIAN = np.dtype("<u2")
_CHECKED_AT_ONCE = 1 << 22  # tokens

Tokens: TypeAlias = npt.NDArray[np.uint16]
Ids: TypeAlias = npt.NDArray[np.int64]


def require_sample(manifest: Manifest, part: str) -> None:
    """Refuse a part that is shorter than one sample.

    Raises: DataError. UsageError: any other part than `train` or `validation`.
    """
    if not manifest.samples(part):
        raise DataError(
            f"the {part} part has {manifest.tokens(part)} tokens, but one sample needs {manifest.sequence_len + 1}",
            "import more text or choose a shorter sequence length",
        )


class TokenStream:
    """The token files of a part as one memory-mapped stream of samples.

    Raises:
        DataError: a file is missing or has the wrong size, or the part is shorter
            than one sample.
        UsageError: any other part than `train` or `validation`.
    """

    def __init__(self, folder: Path, manifest: Manifest, part: str = "train") -> None:
        require_sample(manifest, part)
        self.folder, self.manifest, self.part = folder, manifest, part
        self.samples = manifest.samples(part)
        """Number of samples in one epoch."""
        self._rows = manifest.packing == BEST_FIT  # samples share no token
        self._files = manifest.files_of(part)
        self._ends = list(accumulate(file.tokens for file in self._files))
        self._maps = [self._map(file) for file in self._files]

    def _map(self, file: TokenFile) -> Tokens:
        path = self.folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            raise DataError(f"{path} is missing or not {file.size} bytes long", "fetch the file again")
        return np.memmap(path, dtype=LITTLE_ENDIAN, mode="r", shape=(file.tokens,))

    def sample(self, index: int) -> Tokens:
        """The T + 1 tokens of sample `index`, modulo the number of samples.

        Raises: UsageError: `index` is negative.
        """
        return self._run(index, index + 1)

    def batch(self, start: int, stop: int) -> tuple[Ids, Ids]:
        """Inputs and targets of the samples start <= i < stop, each of shape (n, T).

        Indices wrap around as in `sample`.

        Raises: UsageError: the range is empty or starts below 0.
        """
        length = self.manifest.sequence_len
        inputs = np.empty((stop - start if stop > start else 0, length), np.int64)
        targets = np.empty_like(inputs)
        at = start
        while at < stop or at == start:
            # Samples follow each other in the files, so a range within an epoch is contiguous.
            end = min(stop, at - at % self.samples + self.samples)
            run = self._run(at, end)
            rows = slice(at - start, end - start)
            if self._rows:
                samples = run.reshape(-1, length + 1)
                inputs[rows], targets[rows] = samples[:, :-1], samples[:, 1:]
            else:
                inputs[rows], targets[rows] = run[:-1].reshape(-1, length), run[1:].reshape(-1, length)
            at = end
        return inputs, targets

    def _run(self, start: int, stop: int) -> Tokens:
        """The tokens of samples start <= i < stop, which are in one epoch."""
        if not 0 <= start < stop:
            raise UsageError(f"the range of samples {start} to {stop} is invalid", "give 0 <= start < stop")
        length = self.manifest.sequence_len
        if self._rows:
            first = start % self.samples * (length + 1)
            return self._tokens(first, first + (stop - start) * (length + 1))
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
        """Read every file of the part and check size, hash and vocabulary against the manifest.

        Raises: DataError: names the first file that differs.
        """
        for file, tokens in zip(self._files, self._maps, strict=True):
            path = self.folder / file.name
            if not _is_intact(self.folder, file):
                raise DataError(f"{path} does not match the manifest", "fetch the file again")
            starts = range(0, file.tokens, _CHECKED_AT_ONCE)
            highest = max(int(tokens[start : start + _CHECKED_AT_ONCE].max()) for start in starts)
            if highest >= self.manifest.vocab_size:
                raise DataError(
                    f"{path} has the token id {highest}, outside the manifest's vocabulary of"
                    f" {self.manifest.vocab_size}",
                    "create the tokens again with `curtail data prepare`",
                )


def missing_files(folder: Path, manifest: Manifest) -> tuple[TokenFile, ...]:
    """The files of the manifest that are missing in `folder`, or have a wrong size or hash."""
    return tuple(file for file in manifest.files if not _is_intact(folder, file))


def _is_intact(folder: Path, file: TokenFile) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size and sha256_of(path) == file.sha256
