"""Best-fit packing: rows that begin with BOS, made of whole documents and one cropped one.

A row is chosen from a buffer of up to 1000 documents. It repeatedly takes the longest
document that still fits; when none fits, the shortest is cropped to fill the row. The
rest of a cropped document is lost. In return no row begins in the middle of a
document. The rows depend only on the order of the documents. Lengths in tokens, BOS
included. Source: nanochat's loader of 2026-01-13.
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
    """Token counts of a part; `tokens` = `kept` + `cropped` + `left_over`."""

    documents: int
    tokens: int
    kept: int  # in rows
    cropped: int  # the tails of documents that filled a row
    left_over: int  # of the last documents, which did not fill a row

    @property
    def cropped_share(self) -> float:
        """Share of all tokens, 0 to 1; about a third for web text and rows of 2,049 tokens (nanochat's figure)."""
        return self.cropped / self.tokens if self.tokens else 0.0


class BestFit:
    """Packs documents into rows of `row_len` tokens.

    Args:
        row_len: T + 1.
        buffer_documents: number of documents from which a row is chosen.
    """

    def __init__(self, row_len: int, buffer_documents: int = BUFFER_DOCUMENTS) -> None:
        assert row_len > 0 and buffer_documents > 0
        self._row_len, self._buffer = row_len, buffer_documents
        # (length, -number): sorted by length; of equally long documents the earliest is last.
        self._keys: list[tuple[int, int]] = []
        self._waiting: dict[int, Rows] = {}
        self._documents = self._tokens = self._kept = self._cropped = 0

    @property
    def count(self) -> PackCount:
        """The counts so far; documents in the buffer count as left over."""
        left_over = self._tokens - self._kept - self._cropped
        return PackCount(self._documents, self._tokens, self._kept, self._cropped, left_over)

    def rows(self, documents: Iterable[Sequence[int] | Rows]) -> Iterator[Rows]:
        """Yield all full rows of `documents`, in blocks of shape (n, row_len).

        A document is a sequence of tokens that starts with BOS; none may be empty.
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
        """Fill one row. Returns: False if there are not enough documents."""
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
            # More than one row of a document can never be used.
            self._waiting[self._documents] = np.array(ids[: self._row_len], np.uint16)
            self._documents += 1
            self._tokens += len(ids)

    def _take(self, longest: int) -> tuple[int, Rows]:
        """Length and tokens of the longest document of at most `longest` tokens; of equals, the earliest."""
        length, number = self._keys.pop(bisect_right(self._keys, (longest, 1)) - 1)
        return length, self._waiting.pop(-number)
