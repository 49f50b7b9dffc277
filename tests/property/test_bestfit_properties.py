"""Best-fit packing: whatever the documents, nothing but the cropped tails is lost, and nothing depends on chance."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nanochat.bestfit import BestFit

lengths = st.lists(st.integers(1, 40), max_size=120)


def documents_of(sizes):
    """Document n is 60,000 (its BOS) and then n, n, ...: every piece of a row says where it is from."""
    return [[60_000, *[number] * (size - 1)] for number, size in enumerate(sizes)]


def packed(sizes, row_len, buffer):
    packer = BestFit(row_len, buffer)
    blocks = list(packer.rows(documents_of(sizes)))
    rows = np.concatenate(blocks) if blocks else np.empty((0, row_len), np.uint16)
    return rows, packer.count


def pieces_of(row):
    """A row cut before every BOS."""
    starts = [*np.flatnonzero(row == 60_000).tolist(), len(row)]
    return [row[start:stop].tolist() for start, stop in pairwise(starts)]


@given(lengths, st.integers(2, 30), st.integers(1, 20))
def test_every_row_is_whole_documents_and_one_cropped_at_its_end(sizes, row_len, buffer):
    rows, count = packed(sizes, row_len, buffer)
    cropped = 0
    lone = 0  # documents of which only BOS is in a row: they do not say who they are
    seen = set()
    for row in rows:
        assert row[0] == 60_000
        *before, last = pieces_of(row)
        for piece in before:
            if len(piece) > 1:
                assert len(piece) == sizes[piece[1]], "only the last document of a row is cropped"
        for piece in (*before, last):
            if len(piece) == 1:
                lone += 1
                continue
            number = piece[1]
            assert number not in seen and piece == documents_of(sizes)[number][: len(piece)]
            seen.add(number)
            cropped += sizes[number] - len(piece)
    assert count.documents == len(sizes) and count.tokens == sum(sizes)
    assert count.kept == rows.size and count.kept + count.cropped + count.left_over == count.tokens
    assert cropped <= count.cropped
    if not lone:
        # What is in no row is the end of the data, less than a row.
        left = sum(size for number, size in enumerate(sizes) if number not in seen)
        assert cropped == count.cropped and left == count.left_over
    assert 0 <= count.left_over < row_len


@given(lengths, st.integers(2, 30), st.integers(1, 20))
def test_the_same_documents_give_the_same_rows(sizes, row_len, buffer):
    first, again = packed(sizes, row_len, buffer), packed(sizes, row_len, buffer)
    assert np.array_equal(first[0], again[0]) and first[1] == again[1]


@given(st.lists(st.integers(1, 10), min_size=1, max_size=40), st.integers(2, 10))
def test_documents_that_fill_rows_exactly_lose_nothing(sizes, row_len):
    """Where every document is as long as a row, or a document fits each gap, there is no waste."""
    rows, count = packed([row_len] * len(sizes), row_len, 7)
    assert len(rows) == len(sizes) and count.cropped == count.left_over == 0
    rows, count = packed([1] * sum(sizes), row_len, 7)
    assert count.cropped == 0 and len(rows) == sum(sizes) // row_len


@given(lengths, st.integers(2, 30), st.integers(1, 20))
def test_the_rows_equal_those_of_a_plain_search(sizes, row_len, buffer):
    """Against the rule written down without any index."""
    source, waiting, expected = list(enumerate(sizes)), [], []
    while True:
        row = []
        while len(row) < row_len:
            while source and len(waiting) < buffer:
                waiting.append(source.pop(0))
            if not waiting:
                break
            room = row_len - len(row)
            fitting = [entry for entry in waiting if entry[1] <= room]
            length = max(e[1] for e in fitting) if fitting else min(e[1] for e in waiting)
            number, size = next(entry for entry in waiting if entry[1] == length)
            waiting.remove((number, size))
            row += documents_of(sizes)[number][:room]
        if len(row) < row_len:
            break
        expected.append(row)
    assert packed(sizes, row_len, buffer)[0].tolist() == expected
