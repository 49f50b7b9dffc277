"""Forms of arrays: rounding against torch's, error bounds, damaged bytes, and what error feedback brings back."""

from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from curtail import config
from curtail.errors import CheckpointError, ConfigError
from curtail.system.disk import SystemDisk
from nanochat import codecs, delta
from nanochat.presets import preset, weight_shapes
from nanochat.weights import digest, write_tensors

DISK = SystemDisk()
TINY = np.finfo(np.float32).tiny
values = st.floats(-(2.0**100), 2.0**100, width=32)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 4).map(lambda half: 2 * half))
matrices = shapes.flatmap(lambda shape: arrays(np.float32, shape, elements=values))


def rough(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def decoded(encoded):
    return dict(delta.decode(encoded))


@settings(deadline=None)
@given(arrays(np.float32, (3, 4), elements=st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=True)))
def test_bf16_rounds_as_torch_does(matrix):
    expected = torch.from_numpy(matrix).to(torch.bfloat16).to(torch.float32).numpy()
    assert decoded(delta.encode({"m": matrix}, "bf16"))["m"].tobytes() == expected.tobytes()


def test_bf16_takes_ties_to_even_and_never_rounds_to_infinity():
    most = np.finfo(np.float32).max
    matrix = np.float32([[1 + 2**-8, 1 + 3 * 2**-8, most, -most]])
    found = decoded(delta.encode({"m": matrix}, "bf16"))["m"]
    assert found[0, :2].tolist() == [1.0, 1 + 2**-6]
    assert np.isfinite(found).all() and found[0, 2] == -found[0, 3] > 3.38e38


@settings(deadline=None)
@given(matrices)
def test_int4_is_off_by_at_most_half_a_step_of_the_row(matrix):
    encoded = delta.encode({"m": matrix}, "int4")
    exact, found = matrix.astype(np.float64), decoded(encoded)["m"].astype(np.float64)
    largest = np.abs(exact).max(axis=1, keepdims=True)
    bound = np.where(largest / 7 < TINY * 1.001, largest, largest / 14 * (1 + 1e-5))
    assert (np.abs(found - exact) <= bound).all()
    assert ((found == 0) | (np.sign(found) == np.sign(exact))).all()
    assert (encoded["m:int4"] & 15).min() >= 1 and (encoded["m:int4"] >> 4).min() >= 1


def test_the_run_file_knows_the_codecs_that_there_are():
    assert config.CODECS == codecs.CODECS


def test_the_golden_bytes_of_int4_and_bf16_do_not_change():
    matrix = np.float32([[0.1, -0.25, 1.0, 0.0], [3e-5, 0.0, -1e-5, -3e-5]])
    encoded = delta.encode({"m": matrix}, "int4")
    assert encoded["m:int4"].tobytes().hex() == "698f8f16"  # even column in the lower half, each plus 8
    assert encoded["m:scale"].tobytes().hex() == "2549123e01ce8f36"  # checked with exact fractions
    assert delta.encode({"m": matrix}, "bf16")["m:bf16"].tobytes().hex() == "cd3d80be803f0000fc37000028b7fcb7"


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_a_matrix_of_many_blocks_is_encoded_as_each_of_its_rows_alone(codec):
    matrix = rough(1, 700, 200)
    assert matrix.size > 2 * codecs.BLOCK
    whole = delta.encode({"m": matrix}, codec)
    rows = [delta.encode({"m": row[None]}, codec) for row in matrix]
    assert {key: array.tobytes() for key, array in whole.items()} == {
        key: b"".join(row[key].tobytes() for row in rows) for key in whole
    }


def test_int4_leaves_embeddings_odd_widths_and_vectors_in_finer_forms():
    found = {
        name: codecs.form_of(name, shape, "int4")
        for name, shape in {
            "transformer.wte.weight": (8, 4),
            "value_embeds.1.weight": (8, 4),
            "lm_head.weight": (8, 4),
            "transformer.h.0.attn.c_q.weight": (4, 4),
            "odd": (4, 3),
            "v": (4,),
            "s": (),
            "empty": (0, 4),
        }.items()
    }
    assert list(found.values()) == ["int8", "int8", "int4", "int4", "int8", "fp32", "fp32", "fp32"]
    with pytest.raises(ConfigError):
        codecs.form_of("v", (4,), "int3")


@pytest.mark.parametrize(("codec", "most"), [("int8", 1.2e9), ("int4", 0.65e9)])
def test_a_round_of_the_561_million_parameter_model_stays_within_its_bytes_both_ways(codec, most):
    total = 0
    for name, shape in weight_shapes(preset("d20-561m")).items():
        parts = codecs.parts_of(name, shape, codecs.form_of(name, shape, codec))
        total += sum(np.dtype(kind).itemsize * prod(size) for kind, size in parts.values())
    assert 0.9 * most < 2 * total < 0.999 * most


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_the_sum_of_squares_is_that_of_the_decoded_values(codec):
    encoded = delta.encode({"m": rough(2, 700, 200)}, codec)
    exact = float(np.square(decoded(encoded)["m"].astype(np.float64)).sum())
    assert delta.check_values(encoded, "m") == pytest.approx(exact, rel=1e-5)


# -- error feedback ------------------------------------------------------------------


@settings(deadline=None)
@given(matrices, matrices)
def test_what_was_sent_and_what_was_lost_make_up_the_whole(first, second):
    residual = None
    for matrix in (first, second if second.shape == first.shape else -first):
        target = matrix.astype(np.float64)
        if residual:
            target = target + 0.9 * decoded(residual)["m"].astype(np.float64)
        encoded, residual = delta.encode_with_feedback({"m": matrix}, "int4", residual)
        made = decoded(encoded)["m"].astype(np.float64) + decoded(residual)["m"]
        # the loss is at most half a step of 1/7, kept to half a step of 1/127
        bound = np.abs(target).max(axis=1, keepdims=True) / 14 / 254 * 1.01 + 1e-5 * np.abs(target) + 8 * TINY
        assert (np.abs(made - target) <= bound).all()


def test_without_decay_to_zero_nothing_is_kept_and_the_bytes_are_those_without_feedback():
    encoded, residual = delta.encode_with_feedback({"m": rough(1, 4, 6)}, "int4", None, 0.0)
    assert residual == {} and digest(encoded) == digest(delta.encode({"m": rough(1, 4, 6)}, "int4"))


def test_feedback_brings_a_small_steady_step_through_that_int4_alone_never_sends():
    step = np.full((1, 8), 0.01, np.float32)
    step[0, 0] = 1.0  # sets the scale: 1/7, so that 0.01 rounds to zero
    assert decoded(delta.encode({"m": step}, "int4"))["m"][0, 1] == 0.0
    arrived, residual = np.zeros((1, 8)), None
    for _ in range(100):
        encoded, residual = delta.encode_with_feedback({"m": step}, "int4", residual, 1.0)
        arrived += decoded(encoded)["m"]
    assert arrived[0, 1] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8"])
def test_finer_codecs_keep_no_residual(codec):
    encoded, residual = delta.encode_with_feedback({"m": rough(1, 4, 6)}, codec, None)
    assert residual == {} and digest(encoded) == digest(delta.encode({"m": rough(1, 4, 6)}, codec))


def test_a_residual_read_from_its_file_goes_on_as_the_one_in_memory(tmp_path):
    shapes = {"m": (4, 6), "v": (3,), "transformer.wte.weight": (4, 6)}
    first, second = ({name: rough(seed, *shape) for name, shape in shapes.items()} for seed in (1, 2))
    _, residual = delta.encode_with_feedback(first, "int4", None)
    assert delta.names(residual) == ["m"]
    delta.write_delta(tmp_path / "residual", residual, DISK, "TEST")
    kept = delta.read_delta(tmp_path / "residual")
    results = [delta.encode_with_feedback(second, "int4", found) for found in (residual, kept)]
    assert digest(results[0][0]) == digest(results[1][0]) and digest(results[0][1]) == digest(results[1][1])


def test_a_residual_of_another_model_is_refused():
    _, residual = delta.encode_with_feedback({"m": rough(1, 4, 6)}, "int4", None)
    with pytest.raises(CheckpointError, match="residual of m"):
        delta.encode_with_feedback({"m": rough(1, 4, 8)}, "int4", residual)
    with pytest.raises(CheckpointError, match="parts of n"):
        delta.encode_with_feedback({"n": rough(1, 4, 6)}, "int4", residual)


# -- damaged files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "change", "reason"),
    [
        ("int4", lambda e: e.update({"m:int4": np.zeros((4, 3), np.uint8)}), "m has a value"),
        ("int4", lambda e: e.update({"m:int4": np.full((4, 3), 0x0F, np.uint8)}), "m has a value"),
        ("int4", lambda e: e.update({"m:int4": e["m:int4"].astype(np.int8)}), "parts of m"),
        ("int4", lambda e: e.update({"m:int4": e["m:int4"][:, :2]}), r"m in .* has shape \(4, 4\)"),
        ("int4", lambda e: e.update({"m:scale": np.full(4, np.inf, np.float32)}), "m has a scale"),
        ("int4", lambda e: e.update({"m:scale": np.full(4, 1e38, np.float32)}), "m has a scale"),
        ("int4", lambda e: e.pop("m:scale"), "parts of m"),
        ("int4", lambda e: e.update({"m:int8": np.zeros((4, 6), np.int8)}), "parts of m"),
        ("int8", lambda e: e.update({"m:scale": np.full(4, 1e37, np.float32)}), "m has a scale"),
        ("int8", lambda e: e.update({"m:scale": np.full(4, -1e-9, np.float32)}), "m has a scale"),
        ("bf16", lambda e: e.update({"m:bf16": np.full((4, 6), 0x7F80, np.uint16)}), "m has a value"),
        ("bf16", lambda e: e.update({"m:bf16": np.full((4, 6), 0xFFC0, np.uint16)}), "m has a value"),
        ("bf16", lambda e: e.update({"m:bf16": np.zeros(24, np.uint16)}), "parts of m"),
        ("bf16", lambda e: e.update({"m:scale": np.ones(4, np.float32)}), "parts of m"),
        ("fp32", lambda e: e.update({"m:scale": np.ones(4, np.float32)}), "parts of m"),
    ],
)
def test_bytes_that_no_encoder_writes_are_refused_with_the_name_of_the_array(tmp_path, codec, change, reason):
    encoded = delta.encode({"m": rough(1, 4, 6)}, codec)
    change(encoded)
    write_tensors(tmp_path / "d", encoded, DISK, "TEST", {"format": delta.FORMAT})
    with pytest.raises(CheckpointError, match=reason):
        delta.read_delta(tmp_path / "d", {"m": (4, 6)})


@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("wanted", codecs.CODECS)
def test_a_delta_in_another_codec_than_agreed_is_refused(tmp_path, codec, wanted):
    delta.write_delta(tmp_path / "d", delta.encode({"m": rough(1, 4, 6)}, codec), DISK, "TEST")
    if codec == wanted:
        assert delta.names(delta.read_delta(tmp_path / "d", {"m": (4, 6)}, wanted)) == ["m"]
    else:
        with pytest.raises(CheckpointError, match=f"has the form {codec}, not {wanted} as in {wanted}"):
            delta.read_delta(tmp_path / "d", {"m": (4, 6)}, wanted)


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_the_size_of_a_delta_is_known_from_its_shapes(codec):
    model = {"transformer.wte.weight": (6, 4), "lm_head.weight": (6, 4), "odd": (3, 5), "vector": (7,), "scalar": ()}
    encoded = delta.encode({name: rough(1, *shape) for name, shape in model.items()}, codec)
    assert codecs.encoded_bytes(model, codec) == sum(array.nbytes for array in encoded.values())
