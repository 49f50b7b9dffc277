"""Best-fit packing: rows that begin with BOS, made of whole documents and one cropped one.

Decides which documents share a row. Up to 1000 documents wait; a row takes the
longest of them that still fits, again and again, and when none fits, the shortest
is cropped to fill it. The rest of a cropped document is lost: the price of rows in
which nothing refers to text before them. The order of the documents alone decides
the rows. Lengths in tokens, BOS included. Source: nanochat's loader of 2026-01-13.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BUFFER_DOCUMENTS = 1000
_ROWS_AT_ONCE = 256

Rows = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class PackCount:
    """What became of the tokens of a part; `tokens` = `kept` + `cropped` + `left_over`."""

    documents: int
    tokens: int
    kept: int  # in rows
    cropped: int  # the tails of documents that filled a row
    left_over: int  # of the last documents, which made no whole row

    @property
    def cropped_share(self) -> float:
        """Of all tokens, 0 to 1; about a third for web text and rows of 2,049 tokens (nanochat's own figure)."""
        return self.cropped / self.tokens if self.tokens else 0.0


class BestFit:
    """Packs documents into rows of `row_len` tokens.

    Args:
        row_len: T + 1.
        buffer_documents: how many documents a row is chosen from.
    """

    def __init__(self, row_len: int, buffer_documents: int = BUFFER_DOCUMENTS) -> None:
        assert row_len > 0 and buffer_documents > 0
        self._row_len, self._buffer = row_len, buffer_documents
        # (length, -number): sorted by length, among equals the earliest document last.
        self._keys: list[tuple[int, int]] = []
        self._waiting: dict[int, Rows] = {}
        self._documents = self._tokens = self._kept = self._cropped = 0

    @property
    def count(self) -> PackCount:
        """What happened so far; documents that wait count as left over."""
        left_over = self._tokens - self._kept - self._cropped
        return PackCount(self._documents, self._tokens, self._kept, self._cropped, left_over)

    def rows(self, documents: Iterable[Sequence[int] | Rows]) -> Iterator[Rows]:
        """All whole rows of `documents`, in blocks of shape (n, row_len).

        A document is its tokens, BOS first; none may be empty.
        """
        source = iter(documents)
        block = np.empty((_ROWS_AT_ONCE, self._row_len), np.uint16)
        filled = 0
        while self._fill(source, block[filled]):
            filled += 1
            if filled == _ROWS_AT_ONCE:
                yield block
                block, filled = np.empty_like(block), 0
        if filled:
            yield block[:filled]

    def _fill(self, source: Iterator[Sequence[int] | Rows], row: Rows) -> bool:
        """Make one row; false if the documents do not suffice any more."""
        at = cropped = 0
        while at < self._row_len:
            self._refill(source)
            if not self._keys:
                return False
            room = self._row_len - at
            shortest = self._keys[0][0]
            length, ids = self._take(room if shortest <= room else shortest)
            kept = min(length, room)
            row[at : at + kept] = ids[:kept]
            at += kept
            cropped += length - kept
        self._kept += self._row_len
        self._cropped += cropped
        return True

    def _refill(self, source: Iterator[Sequence[int] | Rows]) -> None:
        while len(self._keys) < self._buffer and (ids := next(source, None)) is not None:
            insort(self._keys, (len(ids), -self._documents))
            # More of a document than a row can never be used.
            self._waiting[self._documents] = np.array(ids[: self._row_len], np.uint16)
            self._documents += 1
            self._tokens += len(ids)

    def _take(self, longest: int) -> tuple[int, Rows]:
        """Length and tokens of the longest document of at most `longest` tokens, the earliest among equals."""
        length, number = self._keys.pop(bisect_right(self._keys, (longest, 1)) - 1)
        return length, self._waiting.pop(-number)
