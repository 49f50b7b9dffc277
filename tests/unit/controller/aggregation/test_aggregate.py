"""Merging: the outer step against torch's own, gates, and bit-equal copies."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from controller.aggregation import blockwise
from controller.aggregation.aggregate import main, merge
from controller.aggregation.outer_step import (
    MergeSpec,
    Part,
    outer_step,
    per_root_token,
    result_from_json,
    spec_from_json,
    spec_to_json,
)
from curtail.errors import DiskError
from curtail.system.disk import SystemDisk, file_sha256
from nanochat import checkpoint, codecs, delta, weights
from nanochat.gpt import GPT
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


def spec(
    base: Path, out: Path, *parts: Part, lr: float = 1.0, momentum: float = 0.0, codec: str = "int8", **more: Any
) -> MergeSpec:
    out.mkdir()
    made = MergeSpec(
        7, 4, str(base), str(out), parts, codec, ((2, lr, momentum),), False, 100, "2026-01-01T00:00:00+00:00"
    )
    return replace(made, **more)


def write_part(path: Path, change: dict[str, np.ndarray], codec: str = "fp32", tokens: int = 100, **more: Any) -> Part:
    delta.write_delta(path, delta.encode(change, codec), DISK, "TEST")
    return Part(path.stem, str(path), codec, tokens, "", **more)


def model_of(folder: Path) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in checkpoint.read_checkpoint(folder)[1].items()}


def site_after(base: Path, out: Path) -> dict[str, np.ndarray]:
    """What a site holds that applies the broadcast to its own copy of the base."""
    held = model_of(base)
    delta.apply_update(held, delta.decode(delta.read_delta(out / "update.safetensors")), held)
    return held


def test_the_outer_step_equals_torch_sgd_with_nesterov_momentum_over_many_rounds() -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((4, 5)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.tensor(weight))
    reference = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    velocity = None
    for _ in range(10):
        mean = rng.standard_normal((4, 5)).astype(np.float32)
        step, velocity = outer_step(mean, velocity, 0.7, 0.9)
        weight = weight - step
        parameter.grad = torch.tensor(mean)
        reference.step()
        np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_versions_merged_from_recorded_deltas_equal_torch_sgd_on_their_token_weighted_means(
    base: Path, tmp_path: Path
) -> None:
    parameters = {n: torch.nn.Parameter(torch.tensor(a)) for n, a in model_of(base).items()}
    reference = torch.optim.SGD(parameters.values(), lr=0.7, momentum=0.9, nesterov=True)
    here = base
    for number in range(4):
        rng = np.random.default_rng(number)
        changes = [
            {n: rng.standard_normal(a.shape).astype(np.float32) for n, a in model_of(base).items()} for _ in "ab"
        ]
        parts = [
            write_part(tmp_path / f"{number}{k}.bin", change, "fp32", tokens)
            for k, (change, tokens) in enumerate(zip(changes, (300, 100), strict=True))
        ]
        merge(spec(here, tmp_path / f"v{number}", *parts, lr=0.7, momentum=0.9, codec="fp32"), DISK)
        here = tmp_path / f"v{number}"
        for name, parameter in parameters.items():
            parameter.grad = torch.tensor(changes[0][name] * 0.75 + changes[1][name] * 0.25)
        reference.step()
        for name, array in model_of(here).items():
            np.testing.assert_allclose(array, parameters[name].detach().numpy(), rtol=1e-5, atol=1e-5)


def test_sites_of_one_sgd_step_each_equal_data_parallel_gradient_averaging(base: Path, tmp_path: Path) -> None:
    sites, rate = 3, 0.5
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 64, (sites, 4, MODEL.sequence_len + 1), generator=generator)
    start = model_of(base)

    def gradients(batch: torch.Tensor) -> dict[str, np.ndarray]:
        model = GPT(MODEL)
        weights.load_into(model, start)
        model(batch[:, :-1], batch[:, 1:]).backward()
        return {name: p.grad.float().numpy() for name, p in model.named_parameters() if p.grad is not None}

    parts = []
    for site in range(sites):
        found = gradients(ids[site])
        local = {name: array - np.float32(rate) * found[name] for name, array in start.items()}
        parts.append(write_part(tmp_path / f"s{site}.bin", delta.difference(start, local)))
    merge(spec(base, tmp_path / "out", *parts, codec="fp32"), DISK)
    together = gradients(ids.flatten(0, 1))
    moved = 0.0
    for name, array in model_of(tmp_path / "out").items():
        expected = start[name] - np.float32(rate) * together[name]
        np.testing.assert_allclose(array, expected, rtol=0, atol=1e-6)
        moved = max(moved, float(np.abs(array - start[name]).max()))
    assert moved > 1e-3


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


@pytest.mark.parametrize("codec", codecs.CODECS)
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_in_every_codec_a_site_that_follows_the_broadcasts_holds_the_controllers_bits(
    base: Path, tmp_path: Path, codec: str, momentum: float
) -> None:
    here = base
    for number in range(3):
        parts = []
        for site in range(2):
            path = tmp_path / f"{number}{site}.bin"
            contribution(here, path, 10 * number + site, codec=codec)
            parts.append(Part(f"s{site}", str(path), codec, 100 + site, ""))
        out = tmp_path / f"v{number}"
        result = merge(spec(here, out, *parts, lr=0.7, momentum=momentum, codec=codec), DISK)
        held = site_after(here, out)
        assert weights.digest(held) == result.digest == weights.digest(model_of(out))
        assert file_sha256(out / "model.safetensors") == result.weights
        assert file_sha256(out / "update.safetensors") == result.updates
        here = out


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_how_the_work_is_cut_changes_no_byte_of_any_file(
    base: Path, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for name, piece, threads in (("whole", 2**20, 2), ("rows", 1, 5)):
        monkeypatch.setattr(blockwise, "_PIECE", piece)
        monkeypatch.setattr(blockwise, "_THREADS", threads)
        here = base
        for number in range(2):
            parts = []
            for site in range(3):
                path = tmp_path / f"{name}{number}{site}.bin"
                contribution(base, path, 10 * number + site, codec=codec)
                parts.append(Part(f"s{site}", str(path), codec, 100 + site, ""))
            out = tmp_path / f"{name}{number}"
            merge(spec(here, out, *parts, lr=0.7, momentum=0.5, codec=codec), DISK)
            here = out
        made.append({path.name: path.read_bytes() for path in here.iterdir()})
    assert made[0] == made[1]
    expected = {"model.safetensors", "meta.json", "update.safetensors", "velocity.safetensors"}
    assert set(made[0]) == expected | ({"residual.safetensors"} if codec == "int4" else set())


def test_the_files_are_those_of_writing_the_arrays_at_once(base: Path, tmp_path: Path) -> None:
    contribution(base, tmp_path / "1.bin", 1)
    merge(spec(base, tmp_path / "out", Part("s1", str(tmp_path / "1.bin"), "int8", 100, "")), DISK)
    weights.write_weights(tmp_path / "again", model_of(tmp_path / "out"), DISK, "TEST")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
    update = delta.read_delta(tmp_path / "out" / "update.safetensors")
    delta.write_delta(tmp_path / "update", update, DISK, "TEST")
    assert (tmp_path / "update").read_bytes() == (tmp_path / "out" / "update.safetensors").read_bytes()


def test_what_an_int4_broadcast_loses_goes_into_the_next_one(base: Path, tmp_path: Path) -> None:
    change = {n: np.full(a.shape, 0.01, np.float32) for n, a in model_of(base).items()}
    name = "transformer.h.0.attn.c_q.weight"
    change[name][:, 0] = 1.0  # sets the scale: 1/7, so that 0.01 alone rounds to zero
    here, start = base, model_of(base)[name]
    for number in range(12):
        part = write_part(tmp_path / f"{number}.bin", change)
        merge(spec(here, tmp_path / f"v{number}", part, codec="int4"), DISK)
        here = tmp_path / f"v{number}"
    moved = start - model_of(here)[name]
    assert 0.05 < moved[:, 1].mean() <= 0.15, "about 12 steps of 0.01; without feedback none arrives"
    kept = delta.names(delta.read_delta(here / "residual.safetensors"))
    assert name in kept and "lm_head.weight" in kept and "transformer.wte.weight" not in kept


def test_a_late_delta_counts_less_and_leaves_the_velocity_as_it_was(base: Path, tmp_path: Path) -> None:
    ones = {n: np.full(a.shape, 1.0, np.float32) for n, a in model_of(base).items()}
    threes = {n: 4 * a for n, a in ones.items()}
    parts = [write_part(tmp_path / "a.bin", ones), write_part(tmp_path / "b.bin", ones)]
    merge(spec(base, tmp_path / "v1", *parts, momentum=0.5, codec="fp32"), DISK)
    late = write_part(tmp_path / "late.bin", threes, weight=0.5, stale=1)
    merge(spec(tmp_path / "v1", tmp_path / "v2", parts[0], late, momentum=0.5, codec="fp32"), DISK)
    before, after = model_of(tmp_path / "v1"), model_of(tmp_path / "v2")
    for name in before:
        np.testing.assert_allclose(before[name] - after[name], 2.0, rtol=1e-5)  # (1 + 0.5 * 4) / 1.5, no momentum
    kept = [(tmp_path / v / "velocity.safetensors").read_bytes() for v in ("v1", "v2")]
    assert kept[0] == kept[1]


def test_a_changed_number_of_sites_keeps_the_velocity_and_the_last_tenth_drops_it(base: Path, tmp_path: Path) -> None:
    ones = {n: np.full(a.shape, 1.0, np.float32) for n, a in model_of(base).items()}
    parts = [write_part(tmp_path / f"{n}.bin", ones) for n in "abc"]
    merge(spec(base, tmp_path / "v1", *parts[:2], momentum=0.5, codec="fp32"), DISK)
    merge(spec(tmp_path / "v1", tmp_path / "v2", *parts, momentum=0.5, codec="fp32"), DISK)
    velocity = weights.read_weights(tmp_path / "v2" / "velocity.safetensors")
    assert all((array == 1.5).all() for array in velocity.values())
    end = spec(tmp_path / "v2", tmp_path / "v3", *parts, momentum=0.5, codec="fp32", momentum_off=True)
    merge(end, DISK)
    assert not (tmp_path / "v3" / "velocity.safetensors").exists()


def test_norms_come_back_and_gate_the_next_sole_contributor(base: Path, tmp_path: Path) -> None:
    ones = {n: np.full(a.shape, 0.1, np.float32) for n, a in model_of(base).items()}
    count = sum(a.size for a in ones.values())
    part = write_part(tmp_path / "a.bin", ones)
    result = merge(spec(base, tmp_path / "v1", part), DISK)
    assert result.norms == {"a": pytest.approx(per_root_token(0.1 * count**0.5, 100), rel=1e-5)}
    far = write_part(tmp_path / "far.bin", {n: 6 * a for n, a in ones.items()})
    usual = {"usual_norm": result.norms["a"], "usual_tokens": 100.0}
    refused = merge(spec(base, tmp_path / "v2", far, **usual), DISK)
    assert refused.accepted == () and "recent rounds" in refused.refused["far"]
    assert merge(spec(base, tmp_path / "v3", part, **usual), DISK).accepted == ("a",)
    own = {n: a - np.float32(0.6) for n, a in model_of(base).items()}
    weights.write_weights(tmp_path / "own", own, DISK, "TEST")
    exact = Part("own", str(tmp_path / "own"), "weights", 100, weights.digest(own))
    assert "recent rounds" in merge(spec(base, tmp_path / "v4", exact, **usual), DISK).refused["own"]
    assert list((tmp_path / "v4").iterdir()) == []
    assert merge(spec(base, tmp_path / "v5", exact), DISK).norms["own"] == pytest.approx(
        6 * result.norms["a"], rel=1e-4
    )


def damaged(kind: str, base: Path, path: Path) -> Part:
    """A contribution that must be refused."""
    contribution(base, path, 9)
    arrays = dict(delta.read_delta(path))
    name = "transformer.h.0.attn.c_q.weight"
    part = Part("bad", str(path), "int8", 100, "")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        return part
    if kind == "garbage":
        path.write_bytes(b"\x93" * 5000)
        return part
    if kind == "missing":
        path.unlink()
        return part
    if kind == "corrupted":
        arrays[name + ":int8"] = np.full_like(arrays[name + ":int8"], -128)
    elif kind == "nan":
        arrays["resid_lambdas"] = np.full_like(arrays["resid_lambdas"], np.nan)
    elif kind == "scale":
        arrays[name + ":scale"] = np.full_like(arrays[name + ":scale"], 1e37)
    elif kind == "shape":
        arrays[name + ":int8"] = arrays[name + ":int8"][:, :-1]
    elif kind == "name":
        arrays["other"] = arrays.pop("resid_lambdas")
    elif kind == "format":
        weights.write_tensors(path, arrays, DISK, "TEST")
        return part
    elif kind == "codec":
        contribution(base, path, 9, codec="fp32")
        return part
    elif kind == "weights":
        weights.write_weights(path, model_of(base), DISK, "TEST")
        return replace(part, codec="weights")
    elif kind == "unknown codec":
        return replace(part, codec="int3")
    elif kind == "no tokens":
        return replace(part, tokens=0)
    weights.write_tensors(path, arrays, DISK, "TEST", {"format": delta.FORMAT})
    return part


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "truncated|ends inside"),
        ("garbage", "truncated or not"),
        ("missing", "there is no file"),
        ("corrupted", "c_q.weight has a value"),
        ("nan", "not finite"),
        ("scale", "c_q.weight has a scale"),
        ("shape", "c_q.weight in .* has shape"),
        ("name", "unknown other"),
        ("format", "not a delta file"),
        ("codec", "has the form fp32, not int8"),
        ("weights", "codec is weights, which cannot be averaged"),
        ("unknown codec", "codec is int3"),
        ("no tokens", "it has 0 tokens"),
    ],
)
def test_an_unusable_contribution_is_refused_with_a_reason_and_the_others_are_merged(
    base: Path, tmp_path: Path, kind: str, reason: str
) -> None:
    good = []
    for index in (1, 2):
        contribution(base, tmp_path / f"{index}.bin", index)
        good.append(Part(f"s{index}", str(tmp_path / f"{index}.bin"), "int8", 100, ""))
    without = merge(spec(base, tmp_path / "without", *good), DISK)
    result = merge(spec(base, tmp_path / "out", good[0], damaged(kind, base, tmp_path / "bad.bin"), good[1]), DISK)
    assert result.accepted == ("s1", "s2") and result.refused.keys() == {"bad"}
    assert re.search(reason, result.refused["bad"])
    assert result.digest == without.digest and checkpoint.read_meta(tmp_path / "out").tokens == 300


@pytest.mark.parametrize(
    "op",
    ["VERSION_UPDATE", "VERSION_VELOCITY", "VERSION_RESIDUAL", "CHECKPOINT_MODEL", "CHECKPOINT_META"],
)
def test_a_write_that_fails_ends_the_merge_without_a_meta_file(base: Path, tmp_path: Path, op: str) -> None:
    class Full(SystemDisk):
        def publish(self, found: str, temp: Path, path: Path) -> None:
            if found == op:
                raise DiskError("no space")
            super().publish(found, temp, path)

        def replace(self, found: str, path: Path, data: bytes, mode: int = 0o644) -> None:
            if found == op:
                raise DiskError("no space")
            super().replace(found, path, data, mode)

    parts = []
    for index in (1, 2):
        contribution(base, tmp_path / f"{index}.bin", index)
        parts.append(Part(f"s{index}", str(tmp_path / f"{index}.bin"), "int8", 100, ""))
    with pytest.raises(DiskError):
        merge(spec(base, tmp_path / "out", *parts, momentum=0.5, codec="int4"), Full())
    assert not (tmp_path / "out" / "meta.json").exists()
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


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
