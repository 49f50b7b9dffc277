"""Weight files that anybody may have made: whatever is in them, reading raises a `CheckpointError` or gives what fits.

A hundred files per test run in the suite; more with

    CURTAIL_FUZZ=20000 python -m pytest tests/property/test_hostile_files.py
"""

from __future__ import annotations

import json
import os
import tracemalloc
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curtail.errors import CheckpointError
from curtail.system.disk import SystemDisk
from nanochat import delta, weights

COUNT = int(os.environ.get("CURTAIL_FUZZ", "100"))
fuzz = settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck))

NUMBERS = st.one_of(
    st.integers(0, 64), st.sampled_from([-1, 2**31, 2**47, 2**48 - 1, 2**48, 2**63, 2**64, 10**30]), st.floats(),
    st.booleans(), st.none(), st.text(max_size=3),
)  # fmt: skip
SHAPES = st.one_of(st.lists(NUMBERS, max_size=4), st.just([1] * 65), st.just([0, 2**47, 2**47]), NUMBERS)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from([*weights._KINDS, "C64", "", "f32"]), NUMBERS),
        "shape": SHAPES,
        "data_offsets": st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS),
    },
    optional={"more": NUMBERS},
)
HEADERS = st.dictionaries(
    st.one_of(st.text(max_size=8), st.sampled_from(["a", "b", "__metadata__", "\x00", "../x", "\ud800"])),
    st.one_of(ENTRIES, ENTRIES, NUMBERS, st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2)),
    max_size=4,
)


@st.composite
def headers_that_nearly_fit(draw):
    """Arrays one behind the other, and then one thing of it changed."""
    header, end = {}, 0
    for index in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(list(weights._KINDS)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        stop = end + prod(shape) * np.dtype(weights._KINDS[kind]).itemsize
        header[f"t{index}"] = {"dtype": kind, "shape": shape, "data_offsets": [end, stop]}
        end = stop
    name = draw(st.sampled_from(sorted(header)))
    what = draw(st.sampled_from(["dtype", "shape", "data_offsets", "nothing"]))
    if what != "nothing":
        values = {
            "dtype": st.sampled_from(list(weights._KINDS)),
            "shape": SHAPES,
            "data_offsets": st.lists(st.integers(0, end + 8), min_size=2, max_size=2),
        }
        header[name][what] = draw(values[what])
    return header, end


def written(path: Path, header: object, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def read(path: Path) -> dict[str, np.ndarray] | None:
    """What is read, or None where it is refused as it should be."""
    try:
        tensors, metadata = weights.read_tensors(path)
    except CheckpointError as error:
        str(error).encode()  # it can be printed
        assert len(str(error)) < 1000
        return None
    assert all(isinstance(value, str) for value in metadata.values())
    assert sum(array.nbytes for array in tensors.values()) <= path.stat().st_size
    for array in tensors.values():
        assert array.tobytes() is not None and not array.flags.writeable
    return tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


@fuzz
@given(header=HEADERS, data=st.binary(max_size=64))
def test_a_random_header_is_refused_or_lies_within_the_file(folder, header, data):
    read(written(folder / "random", header, data))


@fuzz
@given(made=headers_that_nearly_fit(), less=st.integers(0, 2))
def test_a_header_that_nearly_fits_is_refused_unless_it_fits(folder, made, less):
    header, end = made
    tensors = read(written(folder / "near", header, bytes(max(0, end - less))))
    if tensors is not None:
        assert {name: list(array.shape) for name, array in tensors.items()} == {
            name: entry["shape"] for name, entry in header.items()
        }


@fuzz
@given(text=st.binary(max_size=200), length=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_random_bytes_are_refused_or_read_within_the_file(folder, text, length):
    read(written(folder / "bytes", text, b"", length))


@fuzz
@given(
    at=st.integers(0, 10**9),
    value=st.integers(0, 255),
    cut=st.integers(0, 10**9),
    codec=st.sampled_from(["int8", "int4", "bf16"]),
)
def test_a_contribution_with_one_byte_changed_or_cut_is_refused_or_decodes(folder, at, value, cut, codec):
    path = folder / f"{codec}.delta"
    if not path.exists():
        rng = np.random.default_rng(1)
        arrays = {"a.weight": rng.standard_normal((8, 8)).astype(np.float32), "b": np.ones(3, np.float32)}
        delta.write_delta(path, delta.encode(arrays, codec), SystemDisk(), "TEST")
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    changed = folder / "changed"
    changed.write_bytes(bytes(data[: cut % len(data) or len(data)]) if cut % 2 else bytes(data))
    try:
        for name, array in delta.decode(delta.read_delta(changed)):
            assert isinstance(name, str) and array.dtype == np.float32 and array.nbytes <= 16 * len(data)
    except CheckpointError as error:
        str(error).encode()


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 2**63),
        (b"{}", 2**64 - 1),
        (b"[" * 1_000_000, None),
        (b'{"a":' * 200_000, None),
        (b'{"a": 1' + b"0" * 1_000_000 + b"}", None),
        (b" " * (weights._HEADER_LIMIT + 1), None),
        (b"\xff" * 1_000_000, None),
        (json.dumps({"a": {"dtype": "F32", "shape": [2**47, 2**47], "data_offsets": [0, 4]}}).encode(), None),
        (json.dumps({"a": {"dtype": "U8", "shape": [1] * 200, "data_offsets": [0, 1]}}).encode(), None),
        (json.dumps({"a": {"dtype": "U8", "shape": [0, 2**47, 2**47], "data_offsets": [0, 0]}}).encode(), None),
        (json.dumps({"a" * 5000: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode(), None),
        (b'{"\\ud800": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', None),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_hostile_header_is_refused_in_little_memory(folder, header, length):
    path = written(folder / "hostile", header, b"\x00", length)
    tracemalloc.start()
    try:
        assert read(path) is None
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * path.stat().st_size + 1_000_000
