"""Merging: the outer step against torch's own, gates, and bit-equal copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from controller.aggregate import (
    MergeSpec,
    Part,
    main,
    merge,
    outer_step,
    outliers,
    result_from_json,
    spec_from_json,
    spec_to_json,
)
from curtail.disk import SystemDisk
from nanochat import checkpoint, delta, weights
from nanochat.presets import GPTConfig, weight_shapes

MODEL = GPTConfig(sequence_len=8, vocab_size=64, n_layer=1, n_head=1, n_kv_head=1, n_embd=16)
DISK = SystemDisk()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "base"
    folder.mkdir()
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in weight_shapes(MODEL).items()}
    meta = checkpoint.CheckpointMeta(None, MODEL, 100, 3, "", None, None, "2026-01-01T00:00:00+00:00")
    checkpoint.write_checkpoint(folder, arrays, meta, DISK)
    return folder


def contribution(base: Path, path: Path, seed: int, scale: float = 0.01, codec: str = "int8") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrays = checkpoint.read_checkpoint(base)[1]
    change = {n: (scale * rng.standard_normal(a.shape)).astype(np.float32) for n, a in arrays.items()}
    delta.write_delta(path, delta.encode(change, codec), DISK, "TEST")
    return change


def spec(base: Path, out: Path, *parts: Part, lr: float = 1.0, momentum: float = 0.0, codec: str = "int8") -> MergeSpec:
    out.mkdir()
    return MergeSpec(7, 4, str(base), str(out), parts, codec, lr, momentum, 100, "2026-01-01T00:00:00+00:00")


def test_the_outer_step_equals_torch_sgd_with_nesterov_momentum_over_many_rounds():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((4, 5)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(weight))
    reference = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    velocity = None
    for _ in range(10):
        deltas = [(rng.standard_normal((4, 5)).astype(np.float32), w) for w in (0.25, 0.75)]
        step, velocity = outer_step(deltas, velocity, 0.7, 0.9)
        weight = weight - step
        parameter.grad = torch.tensor(sum(d * np.float32(w) for d, w in deltas))
        reference.step()
        np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_without_momentum_at_rate_one_the_step_is_the_weighted_mean():
    step, velocity = outer_step([(np.float32([1, 2]), 0.5), (np.float32([3, 6]), 0.5)], None, 1.0, 0.0)
    assert velocity is None and step.tolist() == [2.0, 4.0]


def test_a_site_that_applies_the_broadcast_holds_the_controllers_bits(base, tmp_path):
    parts = []
    for index, tokens in ((1, 300), (2, 100)):
        path = tmp_path / f"{index}.bin"
        contribution(base, path, index)
        parts.append(Part(f"s{index}", str(path), "int8", tokens, ""))
    result = merge(spec(base, tmp_path / "out", *parts), DISK)
    meta, new = checkpoint.read_checkpoint(tmp_path / "out")
    assert (meta.version, meta.tokens, result.accepted) == (4, 500, ("s1", "s2"))
    held = {name: array.copy() for name, array in checkpoint.read_checkpoint(base)[1].items()}
    update = delta.read_delta(tmp_path / "out" / "update.safetensors")
    delta.apply_update(held, delta.decode(update), held)
    assert weights.digest(held) == result.digest == weights.digest(new)


def test_exact_weights_of_a_sole_site_pass_through_bit_for_bit(base, tmp_path):
    own = {n: a + np.float32(0.125) for n, a in checkpoint.read_checkpoint(base)[1].items()}
    path = tmp_path / "own.safetensors"
    weights.write_weights(path, own, DISK, "TEST")
    result = merge(spec(base, tmp_path / "out", Part("s", str(path), "weights", 8, weights.digest(own))), DISK)
    assert result.digest == weights.digest(own) and result.updates == ""
    lie = merge(spec(base, tmp_path / "out2", Part("s", str(path), "weights", 8, "0" * 64)), DISK)
    assert lie.accepted == () and "digest" in lie.refused["s"]


def test_a_delta_that_is_not_finite_or_far_from_the_others_is_left_out(base, tmp_path):
    parts = []
    for index, scale in enumerate((0.01, 0.01, 0.01, 1.0)):
        path = tmp_path / f"{index}.bin"
        contribution(base, path, index, scale)
        parts.append(Part(f"s{index}", str(path), "int8", 100, ""))
    bad = tmp_path / "bad.bin"
    arrays = delta.read_delta(tmp_path / "0.bin")
    name = next(n for n in arrays if n.endswith(":scale"))
    broken = {**arrays, name: np.full_like(arrays[name], np.nan)}
    weights.write_tensors(bad, broken, DISK, "TEST", {"format": delta.FORMAT})
    parts.append(Part("s4", str(bad), "int8", 100, ""))
    result = merge(spec(base, tmp_path / "out", *parts), DISK)
    assert result.accepted == ("s0", "s1", "s2")
    assert "times the median" in result.refused["s3"] and "s4" in result.refused


def test_when_nothing_is_usable_no_version_is_made(base, tmp_path):
    (tmp_path / "junk").write_bytes(b"\x00" * 100)
    result = merge(spec(base, tmp_path / "out", Part("s", str(tmp_path / "junk"), "int8", 100, "")), DISK)
    assert result.accepted == () and result.refused["s"]
    assert list((tmp_path / "out").iterdir()) == []


def test_momentum_is_kept_beside_the_version_and_used_only_for_several_sites(base, tmp_path):
    parts = []
    for index in (1, 2):
        contribution(base, tmp_path / f"{index}.bin", index, codec="fp32")
        parts.append(Part(f"s{index}", str(tmp_path / f"{index}.bin"), "fp32", 100, ""))
    merge(spec(base, tmp_path / "two", *parts, lr=0.7, momentum=0.5, codec="fp32"), DISK)
    assert (tmp_path / "two" / "velocity.safetensors").exists()
    merge(spec(base, tmp_path / "one", parts[0], lr=0.7, momentum=0.5, codec="fp32"), DISK)
    assert not (tmp_path / "one" / "velocity.safetensors").exists()
    before, after = (checkpoint.read_checkpoint(tmp_path / f)[1] for f in ("base", "one"))
    change = contribution(base, tmp_path / "again.bin", 1, codec="fp32")
    for name in before:
        assert np.array_equal(after[name], before[name] - change[name]), "alone, its own result as it is"


def test_one_outlier_of_two_cannot_be_told_and_is_kept():
    assert outliers({"a": 1.0, "b": 100.0}) == {}
    assert outliers({"a": float("inf"), "b": 1.0}).keys() == {"a"}


def test_the_process_does_the_same_and_reports_through_a_file(base, tmp_path):
    contribution(base, tmp_path / "1.bin", 1)
    made = spec(base, tmp_path / "out", Part("s1", str(tmp_path / "1.bin"), "int8", 100, ""))
    assert spec_from_json(spec_to_json(made)) == made
    (tmp_path / "spec.json").write_text(spec_to_json(made))
    assert main([str(tmp_path / "spec.json"), str(tmp_path / "result.json")]) == 0
    assert result_from_json((tmp_path / "result.json").read_text()).accepted == ("s1",)


def test_a_damaged_base_fails_the_merge(base, tmp_path, capsys):
    (base / "model.safetensors").write_bytes(b"short")
    made = spec(base, tmp_path / "out", Part("s1", str(tmp_path / "none"), "int8", 100, ""))
    (tmp_path / "spec.json").write_text(spec_to_json(made))
    assert main([str(tmp_path / "spec.json"), str(tmp_path / "result.json")]) != 0
    assert "merge:" in capsys.readouterr().err and not (tmp_path / "result.json").exists()
