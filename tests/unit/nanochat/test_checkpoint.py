"""Checkpoint folders: complete or refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from curtail.errors import CheckpointError, DiskError, NotFound
from curtail.system.disk import SystemDisk
from nanochat.checkpoint import (
    META_FILE,
    MODEL_FILE,
    CheckpointMeta,
    meta_from_json,
    meta_to_json,
    read_checkpoint,
    read_meta,
    write_checkpoint,
)
from nanochat.presets import GPTConfig, weight_shapes
from nanochat.weights import digest, write_weights

DISK = SystemDisk()
TINY = GPTConfig(8, 64, 1, 1, 1, 4)
META = CheckpointMeta(
    preset=None,
    model_config=TINY,
    tokens=4096,
    version=3,
    weights_digest="",
    tokenizer_digest="ab" * 32,
    manifest_digest=None,
    created="2026-01-12T00:00:00Z",
)


def some(seed=0):
    random = np.random.default_rng(seed)
    return {name: np.float32(random.standard_normal(shape)) for name, shape in weight_shapes(TINY).items()}


def test_what_is_written_is_read(tmp_path):
    written = write_checkpoint(tmp_path, some(), META, DISK)
    meta, weights = read_checkpoint(tmp_path)
    assert meta == written == replace(META, weights_digest=digest(some()))
    assert digest(weights) == digest(some())
    assert {p.name for p in tmp_path.iterdir()} == {MODEL_FILE, META_FILE}


def test_meta_can_join_weights_that_are_there_already(tmp_path):
    write_weights(tmp_path / MODEL_FILE, some(), DISK, "TEST")
    write_checkpoint(tmp_path, None, replace(META, weights_digest=digest(some())), DISK)
    assert digest(read_checkpoint(tmp_path)[1]) == digest(some())


def test_meta_alone_makes_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError):
        write_checkpoint(tmp_path, None, replace(META, weights_digest="0" * 64), DISK)


def test_weights_of_another_model_are_not_written(tmp_path):
    weights = some()
    weights["extra"] = weights["lm_head.weight"]
    with pytest.raises(CheckpointError, match="extra"):
        write_checkpoint(tmp_path, weights, META, DISK)
    assert not list(tmp_path.iterdir())


def test_weights_that_contradict_their_digest_are_not_written(tmp_path):
    with pytest.raises(CheckpointError, match="digest"):
        write_checkpoint(tmp_path, some(), replace(META, weights_digest="0" * 64), DISK)


@pytest.mark.parametrize("op", ["CHECKPOINT_MODEL", "CHECKPOINT_META"])
def test_a_crash_while_writing_never_leaves_meta_beside_other_weights(tmp_path, op):
    class Crashing(SystemDisk):
        def replace(self, purpose, path, data, mode=0o644):
            self.check(purpose)
            super().replace(purpose, path, data, mode)

        def publish(self, purpose, temp, path):
            self.check(purpose)
            super().publish(purpose, temp, path)

        def check(self, purpose):
            if purpose == op:
                raise DiskError("crash")

    write_checkpoint(tmp_path, some(0), META, DISK)
    with pytest.raises(DiskError):
        write_checkpoint(tmp_path, some(1), META, Crashing())
    with pytest.raises(NotFound):
        read_checkpoint(tmp_path)


def test_nothing_there_is_not_found(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(NotFound):
            read_checkpoint(folder)
    write_checkpoint(tmp_path, some(), META, DISK)
    (tmp_path / MODEL_FILE).unlink()
    with pytest.raises(NotFound, match=MODEL_FILE):
        read_checkpoint(tmp_path)


def test_a_truncated_model_is_refused(tmp_path):
    write_checkpoint(tmp_path, some(), META, DISK)
    path = tmp_path / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path)


def test_one_changed_bit_is_refused_when_verified(tmp_path):
    write_checkpoint(tmp_path, some(), META, DISK)
    path = tmp_path / MODEL_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="digest"):
        read_checkpoint(tmp_path)
    read_checkpoint(tmp_path, verify=False)


def test_weights_of_another_configuration_are_refused(tmp_path):
    meta = write_checkpoint(tmp_path, some(), META, DISK)
    other = replace(meta, model_config=replace(TINY, n_layer=2))
    (tmp_path / META_FILE).write_text(meta_to_json(other))
    with pytest.raises(CheckpointError, match="another model"):
        read_checkpoint(tmp_path)


def damaged(**changes):
    values = json.loads(meta_to_json(META)) | changes
    return json.dumps({key: value for key, value in values.items() if value != "drop"})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        "[]",
        damaged(format="curtail-checkpoint-0"),
        damaged(format="drop"),
        damaged(tokens="drop"),
        damaged(tokens=-1),
        damaged(tokens=1.5),
        damaged(version=True),
        damaged(extra=1),
        damaged(preset=3),
        damaged(model_config=None),
        damaged(model_config={}),
    ],
)
def test_a_damaged_meta_file_is_refused(text, tmp_path):
    (tmp_path / META_FILE).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError):
        read_meta(tmp_path)


def test_meta_comes_back_from_its_text():
    assert meta_from_json(meta_to_json(META)) == META
