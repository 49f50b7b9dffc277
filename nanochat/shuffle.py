"""Shuffles the documents of an import on disk, and splits off the validation documents.

A hash of the text decides the order and whether a document is for validation. So the
order of import does not matter, equal texts stay together, and no text is in both
parts. The documents are stored on disk in piles, each with one range of the order;
only one pile is in memory at a time. Sizes are in bytes of UTF-8 text.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from curtail.errors import DataError

_PILES = 64  # at 60 GB of text a pile has about 1 GB
_RECORD = struct.Struct("<QQ16sQ")  # position in the order, draw, identity, length of the text
_PROGRESS_EVERY = 1024  # documents

Progress = Callable[[int, int], None]
"""Called with the documents and the bytes of text handled so far."""


class Piles:
    """The documents of one import, in files in `folder`; the caller deletes the folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._key = str(seed).encode()
        self._smallest, self._largest = 2**64, -1  # of the draws
        self.documents = 0
        self.bytes = 0
        self.empty_documents = 0  # skipped, because they have only white space
        self.files: set[Path] = set()  # files with at least one document

    def fill(self, found: Iterable[tuple[Path, str]], on_progress: Progress | None = None) -> None:
        """Store every (file, document)."""
        with ExitStack() as stack:
            piles = [stack.enter_context(open(self._path(pile), "wb")) for pile in range(_PILES)]
            for path, text in found:
                data = _utf8(text)
                if not text.strip():
                    self.empty_documents += 1
                    continue
                self._store(data, piles)
                self.files.add(path)
                if on_progress is not None and self.documents % _PROGRESS_EVERY == 0:
                    on_progress(self.documents, self.bytes)
        if on_progress is not None:
            on_progress(self.documents, self.bytes)

    def _store(self, data: bytes, piles: Sequence[IO[bytes]]) -> None:
        identity = hashlib.blake2b(data, digest_size=16).digest()
        place = int.from_bytes(hashlib.blake2b(identity, key=self._key, digest_size=8).digest(), "big")
        # The draw does not depend on the seed, so another seed keeps the validation set.
        draw = int.from_bytes(identity[:8], "big")
        piles[place * _PILES >> 64].write(_RECORD.pack(place, draw, identity, len(data)) + data)
        self._smallest, self._largest = min(self._smallest, draw), max(self._largest, draw)
        self.documents += 1
        self.bytes += len(data)

    def validation_limit(self, fraction: float) -> int:
        """The largest draw of a validation document.

        On average `fraction` of the documents are at or below it; at least one is, and at least one is not.

        Raises: DataError: fewer than two different documents.
        """
        if self._smallest >= self._largest:
            raise DataError(
                "there is only one document, but training and validation need one each",
                "give a longer text or at least two different ones",
            )
        return min(max(int(fraction * 2**64) - 1, self._smallest), self._largest - 1)

    def in_order(self) -> Iterator[tuple[int, bytes]]:
        """(draw, text) of every document, shuffled."""
        for pile in range(_PILES):
            records = sorted(_records(self._path(pile)), key=lambda record: (record[0], record[2]))
            for _, draw, _, data in records:
                yield draw, data

    def _path(self, pile: int) -> Path:
        return self._folder / f"pile_{pile:02d}"


def _records(path: Path) -> Iterator[tuple[int, int, bytes, bytes]]:
    with open(path, "rb") as file:
        while head := file.read(_RECORD.size):
            place, draw, identity, length = _RECORD.unpack(head)
            yield place, draw, identity, file.read(length)


def _utf8(text: str) -> bytes:
    """`text` as UTF-8; a lone surrogate, which JSON can contain, becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
