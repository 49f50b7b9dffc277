"""The arithmetic of a merge, block by block: mean, outer step, encoding, new weights.

Pure: arrays in, arrays out. A piece is about a million values, computed in blocks
that fit into the CPU cache. `in_order` distributes pieces over threads (numpy
releases the GIL while it computes) and returns the results in order. The size of
pieces and blocks does not change a bit of the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from controller.aggregation.outer_step import OuterPlan, outer_step
from nanochat import codecs, delta

_THREADS = 2  # compute; the calling thread hashes and writes
_PIECE = 2**20  # values of one piece
_AHEAD = 4  # pieces computed or waiting to be written

Arrays = Mapping[str, np.ndarray]
Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of one array; a vector or a scalar is one row."""

    name: str
    rows: slice
    first: bool  # the first piece of its array
    last: bool


@dataclass(frozen=True, slots=True)
class ContributionInputs:
    """The inputs of a merge; all arrays are mapped files."""

    base: Arrays
    deltas: Sequence[tuple[Arrays, float]]  # encoded pseudo-gradients, each with its share
    velocity: Arrays  # empty: none yet
    residual: Arrays  # empty: none yet
    plan: OuterPlan
    codec: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """One piece of each output file."""

    piece: Piece
    model: np.ndarray
    update: dict[str, np.ndarray]
    residual: dict[str, np.ndarray]
    velocity: np.ndarray | None


def pieces(base: Arrays) -> Iterator[Piece]:
    """All rows of all arrays, in file order."""
    for name in sorted(base):
        count, width = as_rows(base[name]).shape
        height = max(1, _PIECE // max(1, width))
        for start in range(0, max(1, count), height):
            stop = min(count, start + height)
            yield Piece(name, slice(start, stop), start == 0, stop == count)


def as_rows(array: np.ndarray) -> np.ndarray:
    """The array as a matrix; an array that is not a matrix becomes one row."""
    return array if array.ndim == 2 else array.reshape(1, -1)


def compute(inputs: ContributionInputs, piece: Piece) -> Outputs:
    """One piece of the new version, computed in blocks that fit into the CPU cache."""
    name = piece.name
    shape = inputs.base[name].shape
    form = codecs.form_of(name, shape, inputs.codec)
    width = as_rows(inputs.base[name]).shape[1]
    size = (piece.rows.stop - piece.rows.start, width)
    keep = delta.has_residual(form)
    made = Outputs(
        piece,
        np.empty(size, np.float32),
        _room(name, size, form),
        _room(name, size, "int8") if keep else {},
        np.empty(size, np.float32) if inputs.plan.momentum else None,
    )
    height = codecs.height(size)
    for start in range(0, size[0], height):
        here = slice(start, min(size[0], start + height))
        there = slice(piece.rows.start + here.start, piece.rows.start + here.stop)
        old = as_rows(inputs.velocity[name])[there] if inputs.velocity else None
        step, velocity = outer_step(_mean(inputs, name, there, width), old, inputs.plan.lr, inputs.plan.momentum)
        if made.velocity is not None:
            made.velocity[here] = velocity
        if keep and inputs.residual:
            step = delta.add_residual(name, step, inputs.residual, shape, there, delta.DECAY)
        values, scale = codecs.quantise(name, step, form)
        delta.put_rows(made.update, name, form, here, values, scale)
        if keep:
            delta.put_rows(made.residual, name, "int8", here, *delta.what_was_lost(name, step, values, scale, form))
        new = made.model[here]
        codecs.restore(values, scale, form, new)
        np.subtract(as_rows(inputs.base[name])[there], new, out=new)
    return made


def _mean(inputs: ContributionInputs, name: str, rows: slice, width: int) -> np.ndarray:
    """The weighted mean of the pseudo-gradients' rows, summed in the order of the parts."""
    mean: np.ndarray | None = None
    for encoded, share in inputs.deltas:
        form, values, scale = codecs.parts_in(encoded, name)
        out = np.empty((rows.stop - rows.start, width), np.float32)
        codecs.restore(as_rows(values)[rows], None if scale is None else scale[rows], form, out)
        if share != 1.0:
            np.multiply(out, np.float32(share), out=out)
        mean = out if mean is None else np.add(mean, out, out=mean)
    assert mean is not None
    return mean


def _room(name: str, size: tuple[int, int], form: str) -> dict[str, np.ndarray]:
    return {key: np.empty(shape, kind) for key, (kind, shape) in codecs.parts_of(name, size, form).items()}


def in_order(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Map `work` over the items with several threads. Yields results in order; only a few are in memory at a time."""
    with ThreadPoolExecutor(_THREADS, "merge") as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
