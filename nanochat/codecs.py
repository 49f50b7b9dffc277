"""Encodes and decodes the rows of an array as fp32, bf16, int8 or int4; bit-exact.

Defines the bytes of a row, and rejects bytes that no encoder writes. Every operation
is one correctly rounded float32 step or integer arithmetic, so all machines get the
same bits. This module handles rows; `nanochat.delta` handles whole deltas and files.
No torch.

Forms (an encoded array is stored under its name and a suffix):

- `fp32`: unchanged.
- `bf16` (`NAME:bf16`): the upper half of a float32, rounded to nearest, ties to even.
- `int8` (`NAME:int8`, `NAME:scale`): round(value / scale), scale = max |row| / 127.
- `int4` (`NAME:int4`, `NAME:scale`): the same with 7; two values in a byte, each plus 8,
  the even column in the lower half. For an even number of columns only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from curtail.errors import CheckpointError, ConfigError

CODECS = ("fp32", "bf16", "int8", "int4")
"""As in `curtail.config`, which the model does not know (a test compares them)."""

BLOCK = 2**16
"""Elements processed at once, so that intermediate results stay in the CPU cache."""

SCALE = ":scale"
ENDINGS = {"fp32": "", "bf16": ":bf16", "int8": ":int8", "int4": ":int4"}
_TYPES = {"fp32": np.float32, "bf16": np.uint16, "int8": np.int8, "int4": np.uint8}
_LEVELS = {"int8": 127, "int4": 7}  # the largest value on either side of zero
_FINE = ("transformer.wte.", "value_embeds.")
"""Arrays that `int4` encodes as int8. lm_head is not one of them: with it d20 would send 0.73 GB both ways, more
than the limit of 0.65 GB. Every step changes all rows of lm_head, as of the other matrices, unlike of embeddings."""
_TINY = np.finfo(np.float32).tiny
_HUGE = np.finfo(np.float32).max
_BF16_INFINITE = 0x7F80  # the exponent bits
_DAMAGED = "refuse this delta"


def _pair_table() -> np.ndarray:
    """The two float32 values of each int4 byte, as one 64-bit entry."""
    byte = np.arange(256)
    return np.stack([(byte & 15) - 8, (byte >> 4) - 8], axis=1).astype(np.float32).view(np.uint64).reshape(256)


_PAIRS = _pair_table()


def form_of(name: str, shape: tuple[int, ...], codec: str) -> str:
    """The form in which `codec` encodes an array.

    Vectors, scalars and empty arrays stay fp32. `int4` encodes embeddings as int8, because their rows
    change only when their token occurs, and matrices with an odd number of columns, too.
    Raises: ConfigError: no such codec.
    """
    if codec not in CODECS:
        raise ConfigError(f"there is no delta codec {codec!r}", f"use one of {', '.join(CODECS)}")
    if len(shape) != 2 or 0 in shape:
        return "fp32"
    if codec == "int4" and (shape[1] % 2 or name.startswith(_FINE)):
        return "int8"
    return codec


def parts_of(name: str, shape: tuple[int, ...], form: str) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """Key -> (type, shape) of the encoded parts of one array."""
    stored = (shape[0], shape[1] // 2) if form == "int4" else shape
    parts: dict[str, tuple[Any, tuple[int, ...]]] = {name + ENDINGS[form]: (_TYPES[form], stored)}
    if form in _LEVELS:
        parts[name + SCALE] = (np.float32, shape[:1])
    return parts


def encoded_bytes(shapes: Mapping[str, tuple[int, ...]], codec: str) -> int:
    """Bytes of the values of a delta of these shapes in `codec`, without the file header.

    Raises: ConfigError: no such codec.
    """
    return sum(
        np.dtype(kind).itemsize * math.prod(size)
        for name, shape in shapes.items()
        for kind, size in parts_of(name, shape, form_of(name, shape, codec)).values()
    )


def split(key: str) -> tuple[str, str]:
    """Split a key of an encoded delta into name and suffix; the suffix is "", that of a form, or that of a scale."""
    for ending in (*ENDINGS.values(), SCALE):
        if ending and key.endswith(ending):
            return key.removesuffix(ending), ending
    return key, ""


def height(shape: tuple[int, ...]) -> int:
    """Number of rows of a matrix that are processed at once."""
    return max(1, BLOCK // max(1, shape[-1]))


def quantise(name: str, rows: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Quantise float32 rows. Returns: their values in `form`, and a scale for each row if the form has scales.

    The error of a value is at most half a scale (int8, int4) or 2^-9 of the value (bf16).
    Raises: CheckpointError: a value is not finite.
    """
    if form in _LEVELS:
        return _scaled(name, rows, form)
    refuse_non_finite(name, rows)
    if form == "fp32":
        return rows, None
    bits = np.ascontiguousarray(rows).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    # The largest float32 values would round up to infinity; they become the largest bf16 instead.
    return (rounded - ((rounded & _BF16_INFINITE) == _BF16_INFINITE)).astype(np.uint16), None


def _scaled(name: str, rows: np.ndarray, form: str) -> tuple[np.ndarray, np.ndarray]:
    level = _LEVELS[form]
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    refuse_non_finite(name, largest)
    scale = largest / np.float32(level)
    # If the scale is not a normal number, the row counts as zero, because division by it would be inexact.
    scale[scale < _TINY] = 0.0
    steps = rows / np.where(scale > 0, scale, np.float32(1.0))[:, None]
    steps = np.clip(np.rint(steps, out=steps), -level, level, out=steps)
    steps[scale == 0] = 0.0
    if form == "int8":
        return steps.astype(np.int8), scale
    steps += np.float32(8.0)
    nibbles = steps.astype(np.uint8)
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4)), scale


def restore(values: np.ndarray, scale: np.ndarray | None, form: str, out: np.ndarray) -> np.ndarray:
    """The inverse of `quantise`: rows in `form` -> float32, written into `out` and returned."""
    if form == "fp32":
        np.copyto(out, values)
    elif form == "bf16":
        np.left_shift(values, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
    else:
        assert scale is not None
        if form == "int8":
            np.copyto(out, values)
        else:
            np.take(_PAIRS, values, out=out.view(np.uint64), mode="clip")
        np.multiply(out, scale[:, None], out=out)
    return out


def check(name: str, values: np.ndarray, scale: np.ndarray | None, form: str) -> None:
    """Check that `quantise` can produce these rows; for fp32 only `refuse_non_finite` applies.

    Raises: CheckpointError: it cannot.
    """
    if scale is not None:
        level = np.float32(_LEVELS[form])
        if not (np.isfinite(scale).all() and (scale >= 0).all() and (scale <= _HUGE / level * (1 + 1e-6)).all()):
            raise CheckpointError(f"{name} has a scale that no encoder writes", _DAMAGED)
    if form == "int8":
        fine = values.min(initial=0) >= -127
    elif form == "int4":
        fine = bool(((values & 15) != 0).all() and ((values >> 4) != 0).all())
    else:
        fine = form != "bf16" or not ((values & _BF16_INFINITE) == _BF16_INFINITE).any()
    if not fine:
        raise CheckpointError(f"{name} has a value that no encoder writes", _DAMAGED)


def squares(values: np.ndarray, scale: np.ndarray | None, form: str) -> float:
    """The sum of squares of the decoded values; not finite if a value is not.

    For int8 and int4 it is scale^2 times the sum of the squared integers, so that a row is multiplied once.
    """
    if scale is None:
        wide = np.empty(values.shape, np.float32)
        flat = restore(values, None, form, wide).reshape(-1).astype(np.float64)
        return float(np.square(flat, out=flat).sum())
    width = values.shape[1] * (2 if form == "int4" else 1)
    steps = restore(values, np.ones(len(values), np.float32), form, np.empty((len(values), width), np.float32))
    return float((np.square(scale, dtype=np.float64) * np.vecdot(steps, steps)).sum())


def refuse_non_finite(name: str, array: np.ndarray) -> None:
    """Raises: CheckpointError: a value is infinite or NaN."""
    if not np.isfinite(array).all():
        raise CheckpointError(f"{name} has values that are not finite", "start the round again from its base")


Parts = Mapping[str, np.ndarray]


def parts_in(encoded: Parts, name: str) -> tuple[str, np.ndarray, np.ndarray | None]:
    """Form, values and scale of one array of an encoded delta.

    Raises: CheckpointError: the arrays do not belong together.
    """
    forms = [form for form, ending in ENDINGS.items() if name + ending in encoded]
    if len(forms) == 1:
        form = forms[0]
        values, scale = encoded[name + ENDINGS[form]], encoded.get(name + SCALE)
        fits = values.dtype == _TYPES[form] and (form == "fp32" or values.ndim == 2)
        if form in _LEVELS:
            fits &= scale is not None and scale.dtype == np.float32 and scale.shape == values.shape[:1]
        elif scale is not None:
            fits = False
        if fits:
            return form, values, scale
    raise CheckpointError(f"the parts of {name} do not form a delta", "use deltas of the same model and codec")


def shape_of(values: np.ndarray, form: str) -> tuple[int, ...]:
    """The shape of the decoded values."""
    return (values.shape[0], values.shape[1] * 2) if form == "int4" else values.shape
