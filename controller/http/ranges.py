"""Ranges of a file: which bytes a Range header asks for, and reading them in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from curtail.errors import WireError

PIECE = 1024 * 1024
"""Bytes read and sent, or received and written, at a time."""

RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{0,15})")


class RangeRefused(WireError):
    """The range that was asked for cannot be sent."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.headers = {"content-range": f"bytes */{size}"}


def parse_range(header: str | None, size: int) -> tuple[int, int]:
    """(first, one past last) byte of a Range header; all of the file without one.

    Raises: RangeRefused: a form or position that cannot be served.
    """
    if header is None:
        return 0, size
    match = RANGE.fullmatch(header.strip())
    if match is None:
        raise RangeRefused("only one range of the form bytes=FIRST- or bytes=FIRST-LAST is served", size)
    first = int(match[1])
    stop = min(size, int(match[2]) + 1) if match[2] else size
    if first >= stop:
        raise RangeRefused(f"the range starts at byte {first}, the file has {size}", size)
    return first, stop


def read_pieces(path: Path, first: int, stop: int) -> Iterator[bytes]:
    """Bytes [first, stop) of a file, `PIECE` bytes at a time."""
    with open(path, "rb") as file:
        file.seek(first)
        left = stop - first
        while left > 0:
            piece = file.read(min(PIECE, left))
            if not piece:
                return
            left -= len(piece)
            yield piece
