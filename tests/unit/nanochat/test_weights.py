"""Weight files: repeatable, checked, and the same content for torch and numpy."""

import contextlib
import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail.errors import CheckpointError, DiskError, NotFound
from curtail.system.disk import SystemDisk, file_sha256
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import GPTConfig, weight_shapes
from nanochat.weights import (
    digest,
    from_model,
    from_tensors,
    load_into,
    read_tensors,
    read_weights,
    to_tensors,
    write_tensors,
    write_weights,
)

DISK = SystemDisk()
TINY = GPTConfig(16, 100, 2, 2, 2, 32)


def some(seed=0):
    random = np.random.default_rng(seed)
    shapes = {"b.weight": (5, 3), "a": (4,), "c": (), "empty": (0, 3)}
    return {name: random.standard_normal(shape).astype(np.float32).reshape(shape) for name, shape in shapes.items()}


def saved(tmp_path, weights=None):
    path = tmp_path / "model.safetensors"
    write_weights(path, some() if weights is None else weights, DISK, "TEST")
    return path


def test_what_is_written_is_read_in_name_order(tmp_path):
    found = read_weights(saved(tmp_path))
    assert list(found) == ["a", "b.weight", "c", "empty"]
    assert all(np.array_equal(found[name], array) for name, array in some().items())
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_safetensors_library_reads_our_files_and_we_read_its(tmp_path):
    theirs = safetensors.numpy.load_file(saved(tmp_path))
    assert digest(theirs) == digest(some())
    safetensors.numpy.save_file(some(), tmp_path / "theirs", {"made": "elsewhere"})
    assert digest(read_weights(tmp_path / "theirs")) == digest(some())


def test_equal_weights_give_equal_bytes_whatever_their_order(tmp_path):
    first = file_sha256(saved(tmp_path))
    backwards = {name: np.array(array, order="F") for name, array in reversed(some().items())}
    assert file_sha256(saved(tmp_path, backwards)) == first


def test_arrays_of_all_types_are_aligned_in_the_file(tmp_path):
    arrays = {"a": np.ones(3, np.int8), "b": np.ones(3, np.float32), "c": np.ones(1, np.int64)}
    write_tensors(tmp_path / "x", arrays, DISK, "TEST", {"k": "v"})
    found, metadata = read_tensors(tmp_path / "x")
    assert metadata == {"k": "v"}
    assert all(array.flags.aligned and not array.flags.writeable for array in found.values())
    assert digest(found) == digest(arrays)


def test_weights_of_another_precision_are_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="a is float64"):
        saved(tmp_path, {"a": np.zeros(2)})


def test_a_failed_write_leaves_the_old_file_and_no_scraps(tmp_path):
    class Failing(SystemDisk):
        def publish(self, op, temp, path):
            raise DiskError(f"{op} fails")

    path = saved(tmp_path)
    before = path.read_bytes()
    with pytest.raises(DiskError, match="MODEL fails"):
        write_weights(path, some(1), Failing(), "MODEL")
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_a_disk_error(tmp_path):
    with pytest.raises(DiskError):
        write_weights(tmp_path / "none" / "x", some(), DISK, "TEST")


def test_a_missing_file_is_not_found(tmp_path):
    for read in (read_weights, file_sha256):
        with pytest.raises(NotFound):
            read(tmp_path / "none")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError):
        read_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 8, 60, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError):
        read_weights(path)


def test_a_file_that_goes_on_is_refused(tmp_path):
    path = saved(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="has data after its last tensor"):
        read_weights(path)


def entry(**changes):
    return {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        '{"a": NaN}',
        '{"a": 1}',
        "{" * 50_000,
        json.dumps({"a": entry(dtype="Q4")}),
        json.dumps({"a": entry(dtype=None)}),
        json.dumps({"a": entry(shape=[-1])}),
        json.dumps({"a": entry(shape=[True])}),
        json.dumps({"a": entry(shape=[2])}),
        json.dumps({"a": entry(shape=[1 << 40, 1 << 40])}),
        json.dumps({"a": entry(data_offsets=[0])}),
        json.dumps({"a": entry(data_offsets=[4, 0])}),
        json.dumps({"a": entry(more=1)}),
        json.dumps({"a": entry(), "b": entry()}),
        json.dumps({"a": entry(), "__metadata__": {"k": 1}}),
        '{"a": ' + json.dumps(entry()) + ', "a": ' + json.dumps(entry()) + "}",
    ],
)
def test_a_file_with_a_damaged_header_is_refused(tmp_path, header):
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "x")


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_either_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        read_tensors(path)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_the_digest(tmp_path_factory, where, value):
    folder = tmp_path_factory.getbasetemp()
    path = saved(folder)
    data = bytearray(path.read_bytes())
    where %= len(data)
    # blanks after the header's JSON carry nothing
    if data[where] == value or where < 8 + int.from_bytes(data[:8], "little"):
        return
    data[where] = value
    path.write_bytes(data)
    assert digest(read_weights(path)) != digest(some())


@pytest.mark.parametrize(
    ("expect", "complaint"),
    [
        ({"a": (4,), "b.weight": (5, 3), "c": (), "empty": (0, 3), "d": (1,)}, "lacks d"),
        ({"a": (4,), "b.weight": (5, 3), "c": ()}, "unknown empty"),
        ({"a": (4,), "b.weight": (3, 5), "c": (), "empty": (0, 3)}, r"b.weight .* \(5, 3\), not \(3, 5\)"),
    ],
)
def test_the_first_name_or_shape_that_differs_is_named(tmp_path, expect, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        read_weights(saved(tmp_path), expect)


def test_the_digest_depends_on_name_type_shape_and_values():
    base = {"a": np.zeros(4, np.float32)}
    others = [
        {"b": base["a"]},
        {"a": base["a"].view(np.int32)},
        {"a": base["a"].reshape(2, 2)},
        {"a": base["a"] + 1},
        {"a": -base["a"]},
        {},
    ]
    assert len({digest(weights) for weights in [base, *others]}) == 7


def test_the_digest_is_the_documented_one():
    value = np.array([[1.0, -2.0]], dtype=np.float32)
    text = b'"w" float32 [1, 2]\n' + bytes.fromhex("0000803f000000c0")
    assert digest({"w": value}) == hashlib.sha256(text).hexdigest()


def test_a_model_comes_back_from_its_file_into_the_same_tensors(tmp_path):
    model, other = GPT(TINY), GPT(TINY)
    model.init_weights(1)
    other.init_weights(2)
    places = [parameter.data_ptr() for parameter in other.parameters()]
    path = saved(tmp_path, from_model(model))
    load_into(other, read_weights(path, weight_shapes(TINY)))
    assert digest(from_model(other)) == digest(from_model(model))
    assert [parameter.data_ptr() for parameter in other.parameters()] == places


def test_weights_taken_from_a_model_do_not_follow_it():
    model = GPT(TINY)
    model.init_weights(1)
    weights = from_model(model)
    before = digest(weights)
    model.init_weights(2)
    assert digest(weights) == before


def test_foreign_weights_do_not_touch_the_model():
    model = GPT(TINY)
    model.init_weights(1)
    weights = from_model(model)
    before = digest(weights)
    foreign = {name: array + 1 for name, array in weights.items()}
    foreign["transformer.wte.weight"] = foreign["transformer.wte.weight"][:-1]
    with pytest.raises(CheckpointError, match="wte"):
        load_into(model, foreign)
    assert digest(from_model(model)) == before


def test_an_optimizer_state_travels_through_a_file(tmp_path):
    model = GPT(TINY)
    model.init_weights(1)
    optimizer = MuonAdamW(model, TINY, 2**19)
    optimizer.step_count = 41
    state = optimizer.state_dict()
    write_tensors(tmp_path / "o", from_tensors(state), DISK, "TEST")
    optimizer.step_count = 0
    optimizer.load_state_dict(to_tensors(read_tensors(tmp_path / "o")[0]))
    assert optimizer.step_count == 41
    assert all(torch.equal(state[name], value) for name, value in optimizer.state_dict().items())
