"""Files written piece by piece: the bytes of `write_tensors`, and nothing left of what was not finished."""

import errno
import os

import numpy as np
import pytest

from curtail.errors import CheckpointError, DiskError
from curtail.system.disk import SystemDisk
from nanochat import tensorfile
from nanochat.tensorfile import TensorFile, release
from nanochat.weights import read_tensors, write_tensors

DISK = SystemDisk()


def some():
    random = np.random.default_rng(1)
    return {
        "m": random.standard_normal((7, 5)).astype(np.float32),
        "m:int8": random.integers(-9, 9, (7, 4)).astype(np.int8),
        "b": random.integers(0, 9, (3, 3)).astype(np.uint16),
        "s": np.float32(3.0).reshape(()),
        "e": np.empty((0, 4), np.float32),
    }


def layout(arrays):
    return {name: (array.dtype.type, array.shape) for name, array in arrays.items()}


def test_rows_written_in_any_order_give_the_bytes_of_a_file_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "_FLUSH_BYTES", 16)
    arrays = some()
    write_tensors(tmp_path / "whole", arrays, DISK, "TEST", {"a": "b"})
    with TensorFile(tmp_path / "pieces", layout(arrays), DISK, "TEST", {"a": "b"}) as file:
        for name in sorted(arrays, reverse=True):
            rows = arrays[name] if arrays[name].ndim == 2 else arrays[name].reshape(1, -1)
            for row in reversed(range(len(rows))):
                file.write(name, row, rows[row : row + 1])
        file.publish()
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces", "whole"]


def test_what_is_not_published_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), TensorFile(tmp_path / "f", layout(some()), DISK, "TEST") as file:
        file.write("m", 0, some()["m"])
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_is_not_stored_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="m is float64"):
        TensorFile(tmp_path / "f", {"m": (np.float64, (2, 2))}, DISK, "TEST")
    with pytest.raises(DiskError, match="does not exist"):
        TensorFile(tmp_path / "none" / "f", layout(some()), DISK, "TEST")


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_a_full_disk_is_reported_also_when_it_shows_beside_the_writing(tmp_path, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorfile, "_FLUSH_BYTES", 16)
    monkeypatch.setattr(os, call, full)
    with (
        pytest.raises(DiskError, match="free some space"),
        TensorFile(tmp_path / "f", {"m": (np.float32, (7, 5))}, DISK, "TEST") as file,
    ):
        file.write("m", 0, some()["m"])
        file.publish()
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_array_keeps_its_values_when_its_memory_is_given_back(tmp_path):
    arrays = {"a": np.arange(5000, dtype=np.float32), "b": np.ones((50, 60), np.int8)}
    write_tensors(tmp_path / "f", arrays, DISK, "TEST")
    found, _ = read_tensors(tmp_path / "f")
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        release(found[name])
        release(found[name][3:])
        assert np.array_equal(found[name], array)
    release(arrays["a"])
    assert arrays["a"][4999] == 4999
