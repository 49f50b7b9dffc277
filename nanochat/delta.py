"""Differences of weights (deltas): encoding, error feedback, bit-exact application, files.

A delta is either a pseudo-gradient (base minus local weights), which a site uploads,
or an update (old minus new weights), which the controller broadcasts. Applying it
subtracts it from the base. Every operation is one correctly rounded float32 step
(never a fused multiply-add), so all machines that apply one delta get the same
digest. `nanochat.codecs` defines the encoding of the arrays. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from curtail.errors import CheckpointError
from curtail.system.disk import Disk
from nanochat import codecs
from nanochat.codecs import CODECS as CODECS
from nanochat.weights import Shapes, Weights, check_shapes, read_tensors, write_tensors

FORMAT = "curtail-delta-1"
DECAY = 0.9
"""Factor on the residual of the last encoding when it is added to the next (MuLoCo, arXiv 2505.23725)."""

_OTHER_MODEL = "use deltas of the same model and codec"

Encoded = dict[str, np.ndarray]


def difference(base: Mapping[str, np.ndarray], local: Mapping[str, np.ndarray]) -> Weights:
    """The pseudo-gradient: base - local for every name. It has the sign of a gradient.

    Raises: CheckpointError: names or shapes differ.
    """
    check_shapes(_shapes(local), _shapes(base), "the local weight set")
    # With `out`, numpy returns arrays for arrays without dimensions, not scalars.
    return {name: np.subtract(base[name], local[name], out=np.empty_like(base[name])) for name in sorted(base)}


def encode(delta: Mapping[str, np.ndarray], codec: str) -> Encoded:
    """Encode a delta, in the forms of `codecs.form_of`.

    Raises: ConfigError: no such codec. CheckpointError: not float32, or not finite.
    """
    return encode_with_feedback(delta, codec, None, 0.0)[0]


def encode_with_feedback(
    delta: Mapping[str, np.ndarray], codec: str, residual: Mapping[str, np.ndarray] | None, decay: float = DECAY
) -> tuple[Encoded, Encoded]:
    """Encode a delta plus `decay` times the last residual (error feedback), and compute the new residual.

    Only int4 loses enough for this to matter (benchmarks/aggregate.md); other forms have no residual.
    Args:
        residual: as returned by the last call; None at the start. It is an encoded delta of the arrays in
            int4, with int8 values, so it takes a quarter of their fp32 size in memory and on disk.
        decay: 0: residuals are neither used nor computed.
    Returns: the encoded delta, and the new residual, which is empty if no array is int4. Use the new residual
        only if the delta was merged. If it was refused, keep the old one.
    Raises: ConfigError: no such codec. CheckpointError: not float32, not finite, or a residual of other shapes.
    """
    encoded: Encoded = {}
    lost: Encoded = {}
    for name in sorted(delta):
        array = delta[name]
        if array.dtype != np.float32:
            raise CheckpointError(f"{name} is {array.dtype}, not float32", "convert the weights first")
        form = codecs.form_of(name, array.shape, codec)
        if form == "fp32":
            codecs.refuse_non_finite(name, array)
            encoded[name] = array
            continue
        encoded |= _places(name, array.shape, form)
        if keep := decay > 0 and has_residual(form):
            lost |= _places(name, array.shape, "int8")
        for rows in _blocks(array.shape):
            block = array[rows]
            if keep and residual:
                block = add_residual(name, block, residual, array.shape, rows, decay)
            values, scale = codecs.quantise(name, block, form)
            put_rows(encoded, name, form, rows, values, scale)
            if keep:
                put_rows(lost, name, "int8", rows, *what_was_lost(name, block, values, scale, form))
    return encoded, lost


def has_residual(form: str) -> bool:
    """Do arrays of this form use error feedback?"""
    return form == "int4"


def add_residual(
    name: str, block: np.ndarray, residual: Mapping[str, np.ndarray], shape: tuple[int, ...], rows: slice, decay: float
) -> np.ndarray:
    """Rows of a delta plus `decay` times the same rows of a residual.

    Raises: CheckpointError: the residual is of another model.
    """
    form, values, scale = codecs.parts_in(residual, name)
    if form != "int8" or values.shape != shape:
        raise CheckpointError(
            f"the residual of {name} has another shape", "delete the residual; only a correction is lost"
        )
    assert scale is not None
    carried = codecs.restore(values[rows], scale[rows], form, np.empty(block.shape, np.float32))
    np.multiply(carried, np.float32(decay), out=carried)
    return np.add(block, carried, out=carried)


def what_was_lost(
    name: str, block: np.ndarray, values: np.ndarray, scale: np.ndarray | None, form: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """The encoding error: rows minus their decoded values, as int8."""
    lost = codecs.restore(values, scale, form, np.empty(block.shape, np.float32))
    return codecs.quantise(name, np.subtract(block, lost, out=lost), "int8")


def _places(name: str, shape: tuple[int, ...], form: str) -> Encoded:
    return {key: np.empty(size, kind) for key, (kind, size) in codecs.parts_of(name, shape, form).items()}


def put_rows(encoded: Encoded, name: str, form: str, rows: slice, values: np.ndarray, scale: np.ndarray | None) -> None:
    """Store encoded rows of one array."""
    encoded[name + codecs.ENDINGS[form]][rows] = values
    if scale is not None:
        encoded[name + codecs.SCALE][rows] = scale


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    height = codecs.height(shape)
    return (slice(start, start + height) for start in range(0, shape[0], height))


def decode(encoded: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each name with its float32 values, in name order, one array at a time.

    Raises: CheckpointError: the parts do not match.
    """
    for name in names(encoded):
        form, values, scale = codecs.parts_in(encoded, name)
        if form == "fp32":
            yield name, values
            continue
        out = np.empty(codecs.shape_of(values, form), np.float32)
        for rows in _blocks(out.shape):
            codecs.restore(values[rows], None if scale is None else scale[rows], form, out[rows])
        yield name, out


def apply_update(
    base: Mapping[str, np.ndarray],
    decoded: Iterable[tuple[str, np.ndarray]] | Mapping[str, np.ndarray],
    out: dict[str, np.ndarray] | None = None,
) -> Weights:
    """base - decoded, one float32 subtraction per value.

    Args: out: arrays for the result; pass `base` to update it in place.
    Returns: out, or new arrays.
    Raises: CheckpointError: names or shapes differ; then `out` may be partly written.
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
    """Write an encoded delta or residual as safetensors, durably; equal deltas give equal bytes.

    Raises: DiskError.
    """
    write_tensors(path, encoded, disk, op, {"format": FORMAT})


def read_delta(path: Path, expect: Shapes | None = None, codec: str | None = None) -> Encoded:
    """Read an encoded delta as read-only mapped arrays, and check every scale and value.

    Of fp32 parts only the type is checked (use `all_finite` for their values).
    Args:
        expect: names and shapes of the decoded delta.
        codec: the required codec; None: any.
    Raises: CheckpointError: the first error. NotFound: no such file.
    """
    encoded = open_delta(path, expect, codec)
    for name in names(encoded):
        check_values(encoded, name)
    return encoded


def open_delta(path: Path, expect: Shapes | None = None, codec: str | None = None) -> Encoded:
    """Like `read_delta`, but check only names, types and shapes; the values are not read."""
    encoded, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a delta file of this version", f"the format must be {FORMAT}")
    shapes = {}
    for name in names(encoded):
        form, values, _ = codecs.parts_in(encoded, name)
        shapes[name] = codecs.shape_of(values, form)
        if codec is not None and form != (wanted := codecs.form_of(name, shapes[name], codec)):
            raise CheckpointError(f"{name} in {path} has the form {form}, not {wanted} as in {codec}", _OTHER_MODEL)
    if expect is not None:
        check_shapes(shapes, expect, str(path))
    return encoded


def names(encoded: Mapping[str, np.ndarray]) -> list[str]:
    """The names of the decoded delta, in order."""
    return sorted({codecs.split(key)[0] for key in encoded})


def check_values(encoded: Mapping[str, np.ndarray], name: str) -> float:
    """Check that an encoder can have written one array. Returns: the sum of squares of its decoded values.

    The sum is not finite if a value is not. Reads the array once, in blocks.
    Raises: CheckpointError: no encoder writes such values.
    """
    form, values, scale = codecs.parts_in(encoded, name)
    if form == "fp32":
        return _squares(values)
    total = 0.0
    for rows in _blocks(values.shape):
        part = None if scale is None else scale[rows]
        codecs.check_codec(name, values[rows], part, form)
        total += codecs.squares(values[rows], part, form)
    return total


def all_finite(arrays: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]) -> bool:
    """Are all values finite? Takes weights, a delta, or the pairs that `decode` yields."""
    pairs = arrays.items() if isinstance(arrays, Mapping) else arrays
    return all(np.isfinite(array).all() for _, array in pairs)


def norm(arrays: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]]) -> float:
    """The Euclidean norm over all values, summed in float64; not finite if a value is not."""
    pairs = arrays.items() if isinstance(arrays, Mapping) else arrays
    total = sum((_squares(array) for _, array in pairs), 0.0)
    return math.sqrt(total) if math.isfinite(total) else total


def _squares(array: np.ndarray) -> float:
    flat, total = array.reshape(-1), 0.0
    for start in range(0, flat.size, codecs.BLOCK):
        wide = flat[start : start + codecs.BLOCK].astype(np.float64)
        total += float(np.square(wide, out=wide).sum())  # a dot product would start threads for every block
    return total


def _shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}
