"""The pure half of a hand-in: local weights to the arrays that are uploaded (agent.job.encode)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from agent.job.encode import EXACT, encode
from curtail.errors import CheckpointError, ConfigError
from nanochat import delta, weights


def weight_set(seed):
    source = np.random.default_rng(seed)
    shapes = {"a.weight": (6, 8), "b.weight": (4, 10), "scale": (3,)}
    return {name: source.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


BASE, LOCAL = weight_set(1), weight_set(2)
PSEUDO_GRADIENT = delta.difference(BASE, LOCAL)


def equal(found, expected):
    return set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in expected)


def test_exact_weights_travel_as_they_are_and_leave_no_residual():
    made = encode(LOCAL, BASE, EXACT, {"a.weight": np.zeros(1, np.int8)})
    assert made.arrays is LOCAL and made.residual == {}
    assert made.digest == weights.digest(LOCAL)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4"])
def test_any_other_codec_encodes_the_pseudo_gradient_base_minus_local(codec):
    made = encode(LOCAL, BASE, codec, {})
    assert equal(made.arrays, delta.encode(PSEUDO_GRADIENT, codec))
    assert (made.codec, made.digest, made.problem) == (codec, weights.digest(LOCAL), "")
    assert bool(made.residual) == (codec == "int4")


def test_the_residual_of_one_contribution_is_added_to_the_next():
    first = encode(LOCAL, BASE, "int4", {})
    second = encode(LOCAL, BASE, "int4", first.residual)
    arrays, residual = delta.encode_with_feedback(PSEUDO_GRADIENT, "int4", first.residual)
    assert equal(second.arrays, arrays) and equal(second.residual, residual)
    assert not equal(second.arrays, first.arrays)


def test_encoding_changes_none_of_its_arguments():
    residual = encode(LOCAL, BASE, "int4", {}).residual
    given = [{name: array.copy() for name, array in arrays.items()} for arrays in (LOCAL, BASE, residual)]
    encode(LOCAL, BASE, "int4", residual)
    assert all(equal(*pair) for pair in zip((LOCAL, BASE, residual), given, strict=True))


def test_a_residual_of_another_model_is_dropped_and_named():
    other = {name: np.zeros((2, 2), np.float32) for name in BASE}
    residual = encode(other, {name: array + 1 for name, array in other.items()}, "int4", {}).residual
    made = encode(LOCAL, BASE, "int4", residual)
    assert "has another shape" in made.problem
    assert equal(made.arrays, encode(LOCAL, BASE, "int4", {}).arrays)


@pytest.mark.parametrize("codec", [EXACT, "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(codec, value):
    with pytest.raises(CheckpointError, match="not finite"):
        encode(LOCAL | {"scale": np.full(3, value, np.float32)}, BASE, codec, {})


def test_weights_of_another_model_and_unknown_codecs_are_refused():
    with pytest.raises(CheckpointError, match="shape"):
        encode(LOCAL | {"scale": np.zeros(4, np.float32)}, BASE, "int8", {})
    with pytest.raises(ConfigError):
        encode(LOCAL, BASE, "int3", {})


def test_encoding_needs_no_torch():
    code = "import sys, agent.job.encode, agent.job.base_weights; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
