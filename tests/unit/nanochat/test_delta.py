"""Deltas: error bounds of the codecs, equal results at both ends, strict files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from curtail.errors import CheckpointError, ConfigError, NotFound
from curtail.system.disk import SystemDisk
from nanochat.delta import (
    CODECS,
    all_finite,
    apply_update,
    decode,
    difference,
    encode,
    norm,
    read_delta,
    write_delta,
)
from nanochat.weights import digest, write_tensors

DISK = SystemDisk()
values = st.floats(-(2.0**100), 2.0**100, width=32)
matrices = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=values)
vectors = arrays(np.float32, array_shapes(min_dims=0, max_dims=1, max_side=6), elements=values)
deltas = st.builds(lambda m, v: {"m.weight": m, "v": v}, matrices, vectors)


def some(seed):
    random = np.random.default_rng(seed)
    shapes = {"m": (6, 5), "v": (4,), "s": ()}
    return {name: np.asarray(random.standard_normal(shape), np.float32) for name, shape in shapes.items()}


@settings(deadline=None)
@given(deltas)
def test_fp32_brings_back_every_bit(delta):
    assert digest(dict(decode(encode(delta, "fp32")))) == digest(delta)


@settings(deadline=None)
@given(deltas)
def test_int8_is_off_by_at_most_half_a_step_of_the_row(delta):
    decoded = dict(decode(encode(delta, "int8")))
    assert decoded["v"].tobytes() == delta["v"].tobytes()
    exact, found = delta["m.weight"].astype(np.float64), decoded["m.weight"].astype(np.float64)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    # a row below the normal numbers counts as zero
    bound = np.where(largest / 127 < np.finfo(np.float32).tiny * 1.001, largest, largest / 254 * (1 + 1e-5))
    assert (np.abs(found - exact) <= bound).all()


@settings(deadline=None)
@given(deltas)
def test_int8_keeps_signs_and_repeats_itself(delta):
    encoded = encode(delta, "int8")
    decoded = dict(decode(encoded))
    assert (decoded["m.weight"] * np.sign(delta["m.weight"]) >= 0).all()
    assert encoded["m.weight:int8"].min() >= -127
    assert digest(encode(delta, "int8")) == digest(encoded)


@settings(deadline=None)
@given(deltas, st.sampled_from(CODECS), st.integers(0, 99))
def test_everyone_who_applies_a_file_gets_the_same_digest(tmp_path_factory, delta, codec, seed):
    path = tmp_path_factory.getbasetemp() / "delta"
    random = np.random.default_rng(seed)
    base = {name: np.asarray(random.standard_normal(a.shape), np.float32) for name, a in delta.items()}
    encoded = encode(delta, codec)
    write_delta(path, encoded, DISK, "TEST")
    at_controller = apply_update(base, decode(encoded))
    at_site = {name: array.copy() for name, array in base.items()}
    shapes = {name: array.shape for name, array in base.items()}
    apply_update(at_site, decode(read_delta(path, shapes)), out=at_site)
    assert digest(at_site) == digest(at_controller)


@pytest.mark.parametrize("codec", CODECS)
def test_applying_the_difference_leads_from_base_to_local(codec):
    base, local = some(1), some(2)
    arrived = apply_update(base, decode(encode(difference(base, local), codec)))
    tolerance = 1e-6 if codec == "fp32" else 0.02
    for name in base:
        np.testing.assert_allclose(arrived[name], local[name], atol=tolerance)


def test_applying_changes_no_input_unless_it_is_the_output():
    base = some(1)
    before = digest(base)
    apply_update(base, some(2))
    assert digest(base) == before
    places = {name: id(array) for name, array in base.items()}
    assert apply_update(base, some(2), out=base) is base
    assert digest(base) != before
    assert {name: id(array) for name, array in base.items()} == places


def test_int8_is_a_quarter_of_fp32_and_a_scale_per_row():
    delta = {"m": np.ones((64, 128), np.float32)}
    assert sum(array.nbytes for array in encode(delta, "int8").values()) == 64 * 128 + 64 * 4


def test_a_row_of_zeros_stays_zero():
    delta = {"m": np.zeros((2, 3), np.float32)}
    delta["m"][1] = [1, -2, 0.5]
    assert not dict(decode(encode(delta, "int8")))["m"][0].any()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["m", "v"])
def test_values_that_are_not_finite_are_refused(codec, value, name):
    delta = some(1)
    delta[name].flat[1] = value
    assert not all_finite(delta)
    assert not np.isfinite(norm(delta))
    with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
        encode(delta, codec)


def test_an_unknown_codec_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="fp32, bf16, int8, int4"):
        encode(some(1), "int3")


def test_the_norm_is_that_of_all_values_together():
    delta = {"a": np.full((3, 4), 2.0, np.float32), "b": np.float32([1.0])}
    assert norm(delta) == 7.0
    assert norm(decode(encode(delta, "int8"))) == pytest.approx(7.0, rel=1e-6)
    assert norm({}) == 0.0


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("v"),
        lambda d: d.update(extra=d["v"]),
        lambda d: d.update(v=d["v"][:2]),
    ],
)
def test_a_delta_of_another_model_is_refused(change):
    foreign = some(2)
    change(foreign)
    with pytest.raises(CheckpointError):
        apply_update(some(1), foreign)
    with pytest.raises(CheckpointError):
        difference(some(1), foreign)


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.pop("m:scale"),
        lambda e: e.pop("m:int8"),
        lambda e: e.update({"m:scale": e["m:scale"][:-1]}),
        lambda e: e.update({"m:scale": np.full(6, np.nan, np.float32)}),
        lambda e: e.update({"m:scale": np.full(6, -1, np.float32)}),
        lambda e: e.update({"m:int8": np.full((6, 5), -128, np.int8)}),
        lambda e: e.update({"m:int8": np.zeros(6, np.int8)}),
        lambda e: e.update({"m": np.zeros((6, 5), np.float32)}),
        lambda e: e.update({"v": np.zeros(4, np.int8)}),
        lambda e: e.update({"v": np.zeros(5, np.float32)}),
        lambda e: e.pop("v"),
    ],
)
def test_a_damaged_delta_file_is_refused(tmp_path, change):
    encoded = encode(some(1), "int8")
    change(encoded)
    write_delta(tmp_path / "d", encoded, DISK, "TEST")
    with pytest.raises(CheckpointError):
        read_delta(tmp_path / "d", {name: array.shape for name, array in some(1).items()})


def test_a_weights_file_is_no_delta(tmp_path):
    write_tensors(tmp_path / "w", some(1), DISK, "TEST")
    with pytest.raises(CheckpointError, match="not a delta"):
        read_delta(tmp_path / "w")
    with pytest.raises(NotFound):
        read_delta(tmp_path / "none")


def test_the_golden_bytes_of_int8_do_not_change():
    delta = {"m": np.float32([[0.1, -0.25, 1.0], [3e-5, 0.0, -1e-5]]), "v": np.float32([0.1])}
    encoded = encode(delta, "int8")
    assert encoded["m:int8"].tolist() == [[13, -32, 127], [127, 0, -42]]
    assert encoded["m:scale"].tobytes().hex() == "0402013ccaa37d34"
    assert [value.tobytes().hex() for _, value in decode(encoded)] == [
        "46a3d13d040281be0000803f82a8fb37000000007d7326b7",  # each checked with exact fractions
        "cdcccc3d",
    ]
