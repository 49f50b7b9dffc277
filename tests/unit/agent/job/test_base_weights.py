"""How rank 0's base weights follow the controller's versions (agent.job.base_weights)."""

from __future__ import annotations

import numpy as np
import pytest

from agent.job.base_weights import BaseWeights, OutOfSync, bring_up_to_date
from curtail.errors import CheckpointError
from curtail.system.disk import SystemDisk
from curtail.wire import Assignment
from nanochat import delta, weights

DISK = SystemDisk()
OLD = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float32)}
SHAPES = {name: array.shape for name, array in OLD.items()}
CHANGE = delta.encode({name: np.full_like(array, 0.5) for name, array in OLD.items()}, "fp32")
NEW = delta.apply_update(OLD, delta.decode(CHANGE))


def base():
    return BaseWeights(3, weights.digest(OLD), {name: array.copy() for name, array in OLD.items()})


def assignment(fetch, values=NEW):
    return Assignment(5, 4, weights.digest(values), fetch, "blob", 0, 8, 60.0, 0, 8, "int8", 2, 4, False, 1.0, 1.0)


@pytest.fixture
def whole(tmp_path):
    weights.write_weights(tmp_path / "w", NEW, DISK, "X")
    return tmp_path / "w"


@pytest.fixture
def update(tmp_path):
    delta.write_delta(tmp_path / "u", CHANGE, DISK, "X")
    return tmp_path / "u"


def test_what_is_held_already_only_gets_its_new_version():
    held = base()
    after = bring_up_to_date(held, assignment("none", OLD), None, SHAPES)
    assert (after.version, after.digest) == (4, held.digest) and after.weights is held.weights


def test_whole_weights_replace_the_base_by_arrays_that_can_be_written(whole):
    after = bring_up_to_date(None, assignment("weights"), whole, SHAPES)
    assert after.digest == weights.digest(NEW) == weights.digest(after.weights)
    assert all(array.flags.writeable for array in after.weights.values())


def test_an_update_is_applied_in_place(update):
    held = base()
    after = bring_up_to_date(held, assignment("update"), update, SHAPES)
    assert (after.version, after.digest) == (4, weights.digest(NEW))
    assert all(after.weights[name] is held.weights[name] for name in OLD)


def test_a_base_that_cannot_follow_is_out_of_sync(update):
    for held, fetch, file in [
        (None, assignment("none"), None),
        (base(), assignment("none"), None),  # another digest than the one held
        (None, assignment("update"), update),
        (base(), assignment("update", OLD), update),  # the update leads elsewhere
    ]:
        with pytest.raises(OutOfSync):
            bring_up_to_date(held, fetch, file, SHAPES)


def test_whole_weights_with_another_digest_are_the_controllers_fault(whole):
    with pytest.raises(CheckpointError, match="not what the controller says"):
        bring_up_to_date(None, assignment("weights", OLD), whole, SHAPES)


def test_an_update_of_another_model_cannot_be_used(update):
    with pytest.raises(CheckpointError):
        bring_up_to_date(base(), assignment("update"), update, {"a": (2, 3)})
