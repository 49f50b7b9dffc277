"""The difference of two weight sets: encoded small, applied bit for bit alike everywhere.

Decides what a site uploads and a controller broadcasts, and how a weight set
takes it up. A delta is base minus local, so the update is base minus delta.
Every operation is one correctly rounded float32 step (never a fused multiply-
add), so that all machines that apply one delta hold the same digest. Codecs:
`fp32`, and `int8` with one scale per matrix row. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from curtail.disk import Disk
from curtail.errors import CheckpointError, ConfigError
from nanochat.weights import Shapes, Weights, check_shapes, read_tensors, write_tensors

CODECS = ("fp32", "int8")
FORMAT = "curtail-delta-1"
_QUANTISED, _SCALE = ":int8", ":scale"  # endings of the two arrays that stand for one matrix
_BLOCK = 2**16  # elements treated at once: intermediate results then stay in the processor's cache
_OTHER_MODEL = "use deltas of the same model and codec"

Encoded = dict[str, np.ndarray]


def difference(base: Mapping[str, np.ndarray], local: Mapping[str, np.ndarray]) -> Weights:
    """base - local for every name: what was learned, with the sign of a gradient.

    Raises: CheckpointError: names or shapes differ.
    """
    check_shapes(_shapes(local), _shapes(base), "the local weight set")
    # with a given output numpy keeps arrays without dimensions arrays
    return {name: np.subtract(base[name], local[name], out=np.empty_like(base[name])) for name in sorted(base)}


def encode(delta: Mapping[str, np.ndarray], codec: str) -> Encoded:
    """The arrays that travel for a delta.

    `int8` stores a matrix as round(value / scale) with scale = max |row| / 127, so
    that a value is off by at most half a scale; other arrays stay float32.
    Raises: ConfigError: no such codec. CheckpointError: not float32, or not finite.
    """
    if codec not in CODECS:
        raise ConfigError(f"there is no delta codec {codec!r}", f"use one of {', '.join(CODECS)}")
    encoded: Encoded = {}
    for name in sorted(delta):
        array = delta[name]
        if array.dtype != np.float32:
            raise CheckpointError(f"{name} is {array.dtype}, not float32", "convert the weights first")
        if codec == "fp32" or array.ndim != 2 or array.size == 0:
            _refuse_non_finite(name, array)
            encoded[name] = array
            continue
        encoded[name + _QUANTISED], encoded[name + _SCALE] = _quantise(name, array)
    return encoded


def _quantise(name: str, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    quantised = np.empty(matrix.shape, np.int8)
    scales = np.empty(len(matrix), np.float32)
    height = max(1, _BLOCK // matrix.shape[1])
    for start in range(0, len(matrix), height):
        rows = slice(start, start + height)
        block = matrix[rows]
        largest = np.maximum(block.max(axis=1), -block.min(axis=1))
        _refuse_non_finite(name, largest)
        scale = largest / np.float32(127.0)
        # a row so small that its scale is not a normal number counts as zero: division by it would be inexact
        scale[scale < np.finfo(np.float32).tiny] = 0.0
        steps = block / np.where(scale > 0, scale, np.float32(1.0))[:, None]
        steps = np.clip(np.rint(steps, out=steps), -127, 127, out=steps)
        steps[scale == 0] = 0.0
        quantised[rows], scales[rows] = steps.astype(np.int8), scale
    return quantised, scales


def _refuse_non_finite(name: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} holds values that are not finite", "start the round again from its base")


def decode(encoded: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Each name with its float32 values, in name order, one matrix at a time.

    Raises: CheckpointError: the arrays do not belong together.
    """
    for name in _names(encoded):
        if name in encoded:
            yield name, encoded[name]
        else:
            quantised, scale = encoded[name + _QUANTISED], encoded[name + _SCALE]
            yield name, np.multiply(quantised, scale[:, None], dtype=np.float32)


def apply_update(
    base: Mapping[str, np.ndarray],
    decoded: Iterable[tuple[str, np.ndarray]] | Mapping[str, np.ndarray],
    out: dict[str, np.ndarray] | None = None,
) -> Weights:
    """base - decoded, one float32 subtraction per value.

    Args: out: arrays to write into; pass `base` itself to update it in place.
    Returns: out, or new arrays.
    Raises: CheckpointError: names or shapes differ; `out` may be half written then.
    """
    result: dict[str, np.ndarray] = {} if out is None else out
    pairs = decoded.items() if isinstance(decoded, Mapping) else decoded
    seen = set()
    for name, change in pairs:
        if name in seen or name not in base or base[name].shape != change.shape:
            raise CheckpointError(f"the delta of {name} does not fit the base weights", _OTHER_MODEL)
        seen.add(name)
        place = np.empty(change.shape, np.float32) if out is None else out[name]
        result[name] = np.subtract(base[name], change, out=place)
    if missing := sorted(set(base) - seen):
        raise CheckpointError(f"the delta lacks {missing[0]}", _OTHER_MODEL)
    return result


def write_delta(path: Path, encoded: Mapping[str, np.ndarray], disk: Disk, op: str) -> None:
    """Write an encoded delta as safetensors, durably; equal deltas give equal bytes.

    Raises: DiskError.
    """
    write_tensors(path, encoded, disk, op, {"format": FORMAT})


def read_delta(path: Path, expect: Shapes | None = None) -> Encoded:
    """The encoded delta in a file, as read-only arrays that map the file.

    Scales and quantised values are checked; float32 parts only for their type
    (`all_finite` looks at their values).
    Args: expect: names and shapes of the decoded delta.
    Raises: CheckpointError: the first thing that is wrong. NotFound: no such file.
    """
    encoded, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a delta file of this version", f"its format must be {FORMAT}")
    shapes = {}
    for name in _names(encoded):
        part = encoded.get(name + _QUANTISED, encoded.get(name))
        assert part is not None
        shapes[name] = part.shape
        if name + _SCALE in encoded:
            scale = encoded[name + _SCALE]
            if not (np.isfinite(scale).all() and (scale >= 0).all() and part.min(initial=0) >= -127):
                raise CheckpointError(f"{name} in {path} holds a value that no encoder writes", "refuse this delta")
    if expect is not None:
        check_shapes(shapes, expect, str(path))
    return encoded


def _names(encoded: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the decoded delta, in order, after a check that parts and types fit."""
    names = []
    for key in sorted(encoded):
        name = key.removesuffix(_QUANTISED).removesuffix(_SCALE)
        quantised, scale, plain = (encoded.get(name + ending) for ending in (_QUANTISED, _SCALE, ""))
        if plain is not None:
            fits = quantised is None and scale is None and plain.dtype == np.float32
        else:
            fits = (
                quantised is not None
                and scale is not None
                and quantised.dtype == np.int8
                and scale.dtype == np.float32
                and quantised.ndim == 2
                and scale.shape == quantised.shape[:1]
            )
        if not fits:
            raise CheckpointError(f"the parts of {name} do not make one delta", _OTHER_MODEL)
        names.append(name)
    return sorted(set(names))


def all_finite(arrays: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]) -> bool:
    """Whether no value is infinite or NaN; takes weights, a delta, or what `decode` yields."""
    pairs = arrays.items() if isinstance(arrays, Mapping) else arrays
    return all(np.isfinite(array).all() for _, array in pairs)


def norm(arrays: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]) -> float:
    """Root of the sum of all squares, summed in float64; not finite if a value is not."""
    pairs = arrays.items() if isinstance(arrays, Mapping) else arrays
    total = 0.0
    for _, array in pairs:
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            wide = flat[start : start + _BLOCK].astype(np.float64)
            total += float(np.dot(wide, wide))
    return math.sqrt(total) if math.isfinite(total) else total


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
