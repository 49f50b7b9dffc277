"""Weights as canonical safetensors files and as digests; no torch.

Defines the bytes of a weights file (safetensors, with one canonical form for each
content), and what is refused when reading one. A weight set is a dict of float32 arrays
in name order; names and shapes are those of `presets.weight_shapes`. Digests are
SHA-256 in hex.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curtail.errors import CheckpointError, NotFound
from curtail.system.disk import Disk, disk_error

if TYPE_CHECKING:
    import torch

Weights = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
Layout = Mapping[str, tuple[type[np.generic], tuple[int, ...]]]  # type and shape of each array of a file

_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I8": "|i1", "U8": "|u1"}
_WRITTEN = {"float32": "F32", "int64": "I64", "int8": "I8", "uint8": "U8", "uint16": "BF16"}
_HEADER_LIMIT = 8 * 2**20  # bytes, enough for 50,000 arrays; the parsed header takes many times as much memory
_LONGEST_NAME = 256  # characters
_MOST_DIMENSIONS = 8  # below numpy's limit, which would raise another error


def write_weights(path: Path, weights: Mapping[str, np.ndarray], disk: Disk, op: str) -> None:
    """Write a weight set durably; equal weights give equal bytes.

    Args: disk, op: write the file, and the name of the operation.
    Raises: CheckpointError: an array is not float32. DiskError.
    """
    for name, array in weights.items():
        if array.dtype != np.float32:
            raise CheckpointError(f"{name} is {array.dtype}, not float32", "convert the weights first")
    write_tensors(path, weights, disk, op)


def read_weights(path: Path, expect: Shapes | None = None) -> Weights:
    """Read a weight set as read-only mapped arrays.

    Args: expect: the exact names and shapes.
    Raises: CheckpointError: the first error. NotFound: no such file.
    """
    weights, _ = read_tensors(path)
    for name, array in weights.items():
        if array.dtype != np.float32:
            raise CheckpointError(f"{name} in {path} is {array.dtype}, not float32", "use a file of fp32 weights")
    if expect is not None:
        check_shapes({name: array.shape for name, array in weights.items()}, expect, str(path))
    return weights


def check_shapes(found: Shapes, expect: Shapes, where: str) -> None:
    """Raises: CheckpointError: reports the first missing or unknown name or wrong shape, in name order."""
    for name in sorted(set(found) | set(expect)):
        if name not in found:
            raise CheckpointError(f"{where} lacks {name}", "it belongs to another model or is incomplete")
        if name not in expect:
            raise CheckpointError(f"{where} holds the unknown {name}", "it belongs to another model")
        if tuple(found[name]) != tuple(expect[name]):
            raise CheckpointError(
                f"{name} in {where} has shape {tuple(found[name])}, not {tuple(expect[name])}",
                "it belongs to another model",
            )


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], disk: Disk, op: str, metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as one safetensors file, durably; equal arrays give equal bytes.

    Types: float32, int64, int8, uint8, and uint16 for bf16, as `read_tensors` returns it.

    The header is sorted, unlike that of the safetensors library, whose metadata order varies
    between runs. The data are sorted by type, widest first, then by name, so that every array
    is aligned in the mapped file.
    Raises: CheckpointError: another dtype. DiskError.
    """
    header, _ = file_header({name: (array.dtype.type, array.shape) for name, array in tensors.items()}, metadata)
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temp, "wb") as file:
                file.write(header)
                for name in sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)):
                    file.write(array_bytes(tensors[name]))
        except OSError as error:
            raise disk_error("write", path, error) from error
        disk.publish(op, temp, path)
    finally:
        temp.unlink(missing_ok=True)  # missing if it was published


def file_header(layout: Layout, metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """The header of a safetensors file, and the offset of each array in the data after it.

    Raises: CheckpointError: a type that cannot be stored.
    """
    types = {name: np.dtype(kind) for name, (kind, _) in layout.items()}
    if foreign := [name for name, kind in types.items() if kind.name not in _WRITTEN]:
        raise CheckpointError(
            f"{foreign[0]} is {types[foreign[0]]}", "only float32, bf16, int64, int8 and uint8 can be stored"
        )
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    starts, offset = {}, 0
    for name in sorted(layout, key=lambda name: (-types[name].itemsize, name)):
        shape = layout[name][1]
        starts[name], stop = offset, offset + prod(shape) * types[name].itemsize
        header[name] = {"dtype": _WRITTEN[types[name].name], "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All arrays of a safetensors file, in name order, and its metadata.

    The arrays are read-only views of the mapped file; BF16 is returned as uint16.
    Raises: CheckpointError: truncated, or not a safetensors file. NotFound.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _HEADER_LIMIT):
                raise CheckpointError(f"{path} is truncated or not a safetensors file", "fetch it again")
            header, metadata = _header(file.read(length), path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", "check the path") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}", "check its permissions") from None
    end = 0
    tensors: dict[str, np.ndarray] = {}
    for name, (kind, shape, start, stop) in sorted(header.items(), key=lambda item: (item[1][2], item[1][3])):
        if start != end or stop - start != prod(shape) * np.dtype(kind).itemsize:
            raise CheckpointError(f"{name} in {path} has offsets that do not match its shape", "fetch the file again")
        if 8 + length + stop > size:
            raise CheckpointError(f"{path} ends inside {name}", "the file is truncated; fetch it again")
        tensors[name] = np.frombuffer(mapped, dtype=kind, count=prod(shape), offset=8 + length + start).reshape(shape)
        end = stop
    if 8 + length + end != size:
        raise CheckpointError(f"{path} has data after its last tensor", "the file is damaged; fetch it again")
    return dict(sorted(tensors.items())), metadata


def _header(text: bytes, path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...], int, int]], dict[str, str]]:
    """Name -> (numpy dtype, shape, start, stop) and the metadata, all types checked."""
    damaged = CheckpointError(
        f"the header of {path} is damaged", "the file is damaged or not a safetensors file; fetch it again"
    )

    def refuse(_: object) -> Any:
        raise ValueError("NaN or a repeated key")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(pairs) if len({key for key, _ in pairs}) == len(pairs) else refuse(pairs)

    try:
        header = json.loads(text, parse_constant=refuse, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(header, dict):
        raise damaged
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged
    entries = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise damaged
        kind, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or not _whole(shape) or not _whole(span) or len(span) != 2:
            raise damaged
        if len(name) > _LONGEST_NAME or not name.isprintable():
            raise damaged
        # Dimensions of an empty array are limited, too, because numpy multiplies them without the zeros.
        if len(shape) > _MOST_DIMENSIONS or prod(size or 1 for size in shape) >= 2**48:
            raise damaged
        if kind not in _KINDS:
            raise CheckpointError(f"{name} in {path} has the dtype {kind[:16]!a}", f"known are {', '.join(_KINDS)}")
        entries[name] = (_KINDS[kind], tuple(shape), span[0], span[1])
    return entries, metadata


def _whole(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def array_bytes(array: np.ndarray) -> memoryview:
    """The array's bytes in little-endian C order, without a copy if it has that order already."""
    ordered = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return ordered.reshape(-1).view(np.uint8).data


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each array, in name order; hex.

    It identifies the content, not a file: equal arrays give equal digests on every machine.
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name]
        total.update(digest_line(name, array))
        total.update(array_bytes(array))
    return total.hexdigest()


def digest_line(name: str, array: np.ndarray) -> bytes:
    """The bytes that `digest` hashes before those of an array."""
    return f"{json.dumps(name)} {array.dtype.name} {list(array.shape)}\n".encode()


def from_model(model: torch.nn.Module) -> Weights:
    """A copy of a model's parameters as float32 arrays in name order, including vocabulary padding."""
    import torch

    return {
        name: tensor.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, tensor in sorted(model.state_dict().items())
    }


def load_into(model: torch.nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy a weight set into the model's existing parameter tensors.

    Raises: CheckpointError: names or shapes differ from the model's; then nothing is changed.
    """
    import torch

    state = model.state_dict()
    found = {name: tuple(array.shape) for name, array in weights.items()}
    check_shapes(found, {name: tuple(tensor.shape) for name, tensor in state.items()}, "the weight set")
    with torch.no_grad():
        for name, tensor in state.items():
            array = weights[name]
            # torch does not wrap read-only arrays, so mapped arrays are copied one by one.
            tensor.copy_(torch.from_numpy(array if array.flags.writeable else array.copy()))


def from_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Torch tensors (an optimizer state) as arrays for `write_tensors`."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in sorted(state.items())}


def to_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The inverse of `from_tensors`; copies the data."""
    import torch

    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
