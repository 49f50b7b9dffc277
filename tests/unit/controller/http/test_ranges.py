"""Which bytes of a file a Range header asks for, and reading them."""

from __future__ import annotations

import pytest

from controller.http import ranges
from controller.http.ranges import RangeRefused, parse_range, read_pieces


@pytest.mark.parametrize(
    ("header", "found"),
    [(None, (0, 10)), ("bytes=0-", (0, 10)), ("bytes=3-4", (3, 5)), ("bytes=3-99", (3, 10)), ("bytes=9-9", (9, 10))],
)
def test_a_range_is_cut_at_the_end_of_the_file(header, found):
    assert parse_range(header, 10) == found


@pytest.mark.parametrize(
    "header",
    ["", "bytes", "bytes=", "bytes=-5", "bytes=10-", "bytes=5-4", "bytes=0-1,3-4", "bytes=a-", "items=0-", "bytes=٣-",
     "bytes=" + "9" * 5000 + "-", "bytes=0-" + "9" * 5000, "bytes=-1-2"],
)  # fmt: skip
def test_a_range_that_cannot_be_served_is_refused_with_the_size(header):
    with pytest.raises(RangeRefused) as caught:
        parse_range(header, 10)
    assert caught.value.headers == {"content-range": "bytes */10"}


@pytest.mark.parametrize(("first", "stop"), [(0, 10), (3, 7), (9, 10), (4, 4), (8, 99)])
def test_a_range_is_read_in_pieces_and_ends_where_the_file_does(tmp_path, monkeypatch, first, stop):
    monkeypatch.setattr(ranges, "PIECE", 3)
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    pieces = list(read_pieces(path, first, stop))
    assert b"".join(pieces) == b"0123456789"[first:stop] and all(0 < len(piece) <= 3 for piece in pieces)
