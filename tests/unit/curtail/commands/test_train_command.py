"""`curtail train`: what is refused before it starts, its checkpoints, its record, memory and peaks."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch

from curtail.commands.train import run
from curtail.errors import (
    CheckpointError,
    ConfigError,
    CurtailError,
    DataError,
    DiskError,
    NotFound,
    Refused,
    UsageError,
)
from curtail.system.disk import SystemDisk
from nanochat import train_checkpoints
from nanochat.checkpoint import read_checkpoint
from nanochat.gpt import GPT
from nanochat.metrics import Metrics, read_metrics, require_wandb
from nanochat.micro_batch import device_batch, estimated_batch, fitting_batch, free_memory, hopeful_batch, sample_bytes
from nanochat.pack import Manifest, TokenStream
from nanochat.peak_flops import peak_flops, utilisation
from nanochat.presets import GPTConfig, preset
from nanochat.schedule import default_weight_decay
from nanochat.throughput import BenchOptions, measure_speed
from nanochat.train import StepBatches, inner_steps
from nanochat.train_options import TrainOptions, check_out, make_plan
from nanochat.trainer import Trainer, train
from nanochat.weights import digest, from_model

STEPS = 12


class Ticking:
    """A clock on which everything takes a second."""

    def __init__(self):
        self.t = 0.0

    def wall(self):
        return self.monotonic()

    def monotonic(self):
        self.t += 1.0
        return self.t

    def sleep(self, seconds):
        raise AssertionError("nobody sleeps here")


class FailingDisk(SystemDisk):
    """Fails the writes of one purpose."""

    def __init__(self, op):
        self.op = op

    def replace(self, op, path, data, mode=0o644):
        if op == self.op:
            raise DiskError(f"no {op}")
        super().replace(op, path, data, mode)

    def publish(self, op, temp, path):
        if op == self.op:
            raise DiskError(f"no {op}")
        super().publish(op, temp, path)


@pytest.fixture
def options(packed_data, tmp_path):
    torch.set_num_threads(1)
    return TrainOptions(
        data=str(packed_data), out=str(tmp_path / "out"), preset="d2-test", steps=STEPS, batch_samples=4,
        threads=1, save_every=4, keep=9, device="cpu",
    )  # fmt: skip


def go(options, **more):
    said = []
    return train(options, said.append, clock=Ticking(), **more), said


def losses(options):
    return [line["loss"] for line in read_metrics(Path(options.out)) if "loss" in line]


# -- what is refused ---------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "ranks", "kind", "says"),
    [
        ({"depth": 2}, 1, UsageError, "by --preset or by --depth"),
        ({"preset": None}, 1, UsageError, "by --preset or by --depth"),
        ({"preset": "d3"}, 1, ConfigError, "no model preset 'd3'"),
        ({"preset": "d4-test"}, 1, ConfigError, "tokenizer with 512 ids, but the preset d4-test has 4096"),
        ({"tokens": 1000}, 1, UsageError, "--tokens and --steps"),
        ({"batch_samples": 10**6}, 1, DataError, "one step needs 1000000"),
        ({"batch_samples": 5}, 2, ConfigError, "use a batch of 6"),
        ({"recipe": "fast"}, 1, ConfigError, "no recipe 'fast'"),
        ({"settings": ("final_lr=7",)}, 1, ConfigError, "0 to 1"),
        ({"data": "/no/where"}, 1, NotFound, "manifest.json"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_starts(options, changes, ranks, kind, says):
    with pytest.raises(kind, match=says):
        make_plan(replace(options, **changes), ranks)
    assert not Path(options.out).exists()


def test_samples_longer_than_the_model_are_refused(options, tmp_path, monkeypatch):
    manifest = replace(Manifest.load(Path(options.data)), sequence_len=65)
    monkeypatch.setattr(Manifest, "load", lambda folder: manifest)
    with pytest.raises(ConfigError, match="--sequence-len 64"):
        make_plan(options, 1)


def test_a_plan_fits_the_data_and_ends_on_a_whole_step(options):
    plan = make_plan(replace(options, preset=None, depth=3, steps=None, tokens=1000), 2)
    assert (plan.config.n_layer, plan.config.vocab_size, plan.config.sequence_len) == (3, 512, 64)
    assert (plan.steps, plan.batch_tokens, plan.schedule.token_budget) == (3, 256, 768)
    assert plan.schedule.weight_decay == default_weight_decay(3)


def test_options_travel_to_another_process(options):
    given = replace(options, settings=("final_lr=0.1",), compile=False)
    assert TrainOptions.from_json(given.to_json()) == given


def test_wandb_that_is_not_installed_is_a_clear_error(monkeypatch):
    # a folder of that name is no package either
    for found in (None, ModuleSpec("wandb", None, is_package=True)):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        with pytest.raises(UsageError, match="pip install wandb"):
            require_wandb()


def test_wandb_gets_the_metrics_keeps_to_the_folder_of_the_run_and_offline_calls_nobody(command, options, tmp_path):
    home, out = tmp_path / "home", Path(options.out)
    for folder in (home, home / "tmp"):
        folder.mkdir()
    with socket.socket() as world:
        world.bind(("127.0.0.1", 0))
        world.listen()
        world.setblocking(False)
        address = f"http://127.0.0.1:{world.getsockname()[1]}"
        places = dict.fromkeys(("WANDB_BASE_URL", "http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"), address)
        done = command(
            "train", "--preset", "d2-test", "--data", options.data, "--out", out, "--steps", 2, "--batch-samples", 4,
            "--threads", 1, "--ranks", 1, "--wandb", "--json",
            HOME=str(home), TMPDIR=str(home / "tmp"), WANDB_MODE="offline", **places,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        with pytest.raises(BlockingIOError):
            world.accept()
    assert json.loads(done.stdout)["steps"] == 2  # and nothing of W&B among it
    [record] = out.glob("wandb/offline-run-*/run-*.wandb")
    assert b"lr_scale" in record.read_bytes() and b"muon_beta2" in record.read_bytes()
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert [line["step"] for line in read_metrics(out)] == [1, 2]


def test_wandb_that_refuses_a_run_is_a_clear_error(tmp_path, monkeypatch):
    class Refusing:
        class errors:
            Error = KeyError

        @staticmethod
        def init(**_):
            raise KeyError("no API key")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec("wandb", None, origin="x"))
    monkeypatch.setattr("importlib.import_module", lambda name: Refusing)
    with pytest.raises(CurtailError, match=r"no API key.*WANDB_MODE=offline"):
        Metrics(tmp_path, 0, SystemDisk(), wandb=True, settings={})


# -- training ----------------------------------------------------------------


def test_a_run_equals_a_plain_loop_over_the_same_samples(options):
    result, said = go(options)
    plan = make_plan(options, 1)
    assert (result.steps, result.tokens, result.stopped_by) == (STEPS, STEPS * 256, None)
    model = GPT(plan.config)
    model.init_weights(1)
    trainer = Trainer(options, SystemDisk(), Ticking(), said.append)
    batches = StepBatches(
        TokenStream(Path(options.data), plan.manifest), start=0, stop=STEPS * 4, batch_samples=4, device_batch=4
    )
    optimizer = type(trainer.optimizer)(model, plan.config, 256)
    report = inner_steps(
        model, optimizer, plan.schedule, batches, tokens_before=0, tokens_per_step=256, until=lambda step: False,
        device=torch.device("cpu"),
    )  # fmt: skip
    meta, held = read_checkpoint(Path(result.checkpoint))
    assert meta.weights_digest == digest(held) == digest(from_model(model))
    assert (meta.tokens, meta.version, meta.preset) == (STEPS * 256, STEPS, "d2-test")
    assert result.loss == report.loss_last


def test_the_record_has_a_line_for_each_step(options):
    go(replace(options, eval_every=6, eval_tokens=640))
    lines = read_metrics(Path(options.out))
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert all(set(line) == {"step", "tokens", "loss", "lr_scale", "tok_s", "mfu", "seconds"} for line in steps)
    assert [line["tokens"] for line in steps] == [256 * line["step"] for line in steps]
    assert steps[0]["lr_scale"] == 1.0 and steps[-1]["lr_scale"] < 0.3
    assert steps[0]["tok_s"] == 256.0 and steps[0]["mfu"] is None
    scores = [line for line in lines if "val_bpb" in line]
    assert [line["step"] for line in scores] == [6, 12]
    assert all(0 < line["val_bpb"] < 10 and line["val_tokens"] <= 640 for line in scores)


def test_a_stopped_run_goes_on_with_the_same_losses(options):
    go(replace(options, out=options.out + "-whole"))
    whole = losses(replace(options, out=options.out + "-whole"))

    def say(line):
        if line.startswith("saved") and "00000004" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(options, say, clock=Ticking())
    assert stopped.stopped_by == signal.SIGTERM and 4 <= stopped.steps < STEPS
    assert train_checkpoints.saved_steps(Path(options.out))[-1] == stopped.steps
    result, said = go(options)
    assert said[0].startswith(f"resuming from step {stopped.steps}")
    assert losses(options) == whole and result.steps == STEPS


def test_lines_beyond_the_checkpoint_are_made_again(options):
    go(options)
    whole = losses(options)
    for step in (8, 12):
        (train_checkpoints.folder_of(Path(options.out), step)).rename(Path(options.out) / str(step))
    with open(Path(options.out) / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "lo')  # torn by a kill
    go(options)
    assert losses(options) == whole


def test_a_truncated_checkpoint_is_skipped_with_a_word(options):
    go(options)
    whole = losses(options)
    out = Path(options.out)
    for step, name in ((12, "optimizer.safetensors"), (8, "model.safetensors")):
        path = train_checkpoints.folder_of(out, step) / name
        path.write_bytes(path.read_bytes()[:-1000])
    result, said = go(options)
    assert said[0].startswith("skipped step00000012: optimizer.safetensors in ")
    assert said[1].startswith("skipped step00000008: ")
    assert said[2].startswith("resuming from step 4 ")
    assert losses(options) == whole and result.steps == STEPS
    assert train_checkpoints.newest(out, said.append).progress.step == STEPS


def test_checkpoints_none_of_which_is_whole_are_an_error(options):
    go(replace(options, save_every=0))
    (train_checkpoints.folder_of(Path(options.out), STEPS) / "progress.json").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        go(options)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_samples": 8}, "another batch size, 4 instead of 8"),
        ({"seed": 2}, "another seed, 1 instead of 2"),
        ({"settings": ("final_lr=0.5",)}, r"another recipe \(final_lr\)"),
        ({"preset": None, "depth": 3}, r"another model"),
    ],
)
def test_another_run_is_not_continued(options, changes, says):
    go(options)
    with pytest.raises(CheckpointError, match=says):
        go(replace(options, **changes))


@pytest.mark.parametrize(("field", "says"), [("tokenizer", "another tokenizer"), ("shards", "another data set")])
def test_other_data_are_refused_by_their_digest(options, field, says):
    go(options)
    plan = make_plan(options, 1)
    other = {"tokenizer": "0" * 64} if field == "tokenizer" else {"shards": ()}
    manifest = replace(plan.manifest, **other)
    meta = replace(plan.meta, tokenizer_digest=manifest.tokenizer, manifest_digest=manifest.digest)
    with pytest.raises(CheckpointError, match=says):
        train_checkpoints.check_same_run(Path(options.out), meta, plan.progress)


def test_a_folder_with_a_run_is_not_begun_again(options):
    go(options)
    with pytest.raises(Refused, match="--resume"):
        go(replace(options, resume=False))
    longer = replace(options, steps=STEPS + 2)
    assert "budget" in check_out(longer, make_plan(longer, 1))[0]
    assert go(longer)[0].steps == STEPS + 2


def test_a_loss_that_is_not_finite_ends_the_run_and_saves_nothing(options, monkeypatch):
    monkeypatch.setattr(GPT, "init_weights", lambda model, seed: model.load_state_dict(
        {name: torch.full_like(value, torch.nan) for name, value in model.state_dict().items()}
    ))  # fmt: skip
    with pytest.raises(CurtailError, match="the loss of step 1 is nan"):
        go(options)
    assert train_checkpoints.saved_steps(Path(options.out)) == []


# -- checkpoints ---------------------------------------------------------------


def test_the_newest_and_the_milestones_are_kept(options):
    go(replace(options, save_every=2, keep=2, milestone_every=6))
    assert train_checkpoints.saved_steps(Path(options.out)) == [6, 10, 12]


@pytest.mark.parametrize("op", ["CHECKPOINT_MODEL", "CHECKPOINT_META", "TRAIN_OPTIMIZER", "TRAIN_PROGRESS"])
def test_a_write_that_fails_leaves_no_checkpoint_under_its_name(options, op):
    with pytest.raises(DiskError, match=op):
        go(options, disk=FailingDisk(op))
    assert list((Path(options.out) / "checkpoints").iterdir()) == []


def test_what_a_kill_left_half_written_is_swept(options):
    aside = Path(options.out) / "checkpoints" / ".step00000004.123"
    aside.mkdir(parents=True)
    (aside / "model.safetensors").write_bytes(b"half")
    go(replace(options, steps=4))
    assert not aside.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "curtail-training-1"}', '{"format": "other"}'])
def test_a_foreign_progress_file_is_refused(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"progress\.json"):
        train_checkpoints.read_progress(tmp_path)
    with pytest.raises(NotFound):
        train_checkpoints.read_progress(tmp_path / "other")


# -- memory, peaks, speed --------------------------------------------------------


def test_the_estimate_stays_within_memory_and_takes_the_whole_slice_if_it_can():
    config = preset("d20-561m")
    assert estimated_batch(config, 2048, 4, 2**50) == 4
    assert estimated_batch(config, 2048, 4, 1) == 1
    some = estimated_batch(config, 2048, 10**6, 64 * 2**30)
    assert some > 1 and estimated_batch(config, 2048, 10**6, 128 * 2**30) > some
    small = preset("d2-test")
    assert estimated_batch(small, 64, 10**9, 2**30) * sample_bytes(small, 64) <= 2 * 2**30
    assert free_memory() > 2**26
    assert device_batch(GPT(small), small, 64, 8, torch.device("cpu")) == 8


def test_trying_begins_where_there_is_hope():
    config = preset("d20-561m")
    # published: 32 samples at once fit into 80 GB
    assert hopeful_batch(config, 2048, 256, 75 * 2**30) == 32
    assert hopeful_batch(config, 2048, 24, 2**45) == 24
    assert hopeful_batch(config, 2048, 24, 0) == 1


def test_the_estimate_is_above_what_a_pass_keeps():
    config = GPTConfig(128, 512, 4, 2, 2, 128)
    model = GPT(config)
    model.init_weights(0)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ids = torch.zeros((4, 128), dtype=torch.int64)
        model(ids, ids)
    weights = {p.data_ptr() for p in model.parameters()}
    assert sum(size for place, size in kept.items() if place not in weights) < 4 * sample_bytes(config, 128)


def test_on_a_gpu_the_number_is_halved_until_it_fits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    tried = []

    class Small(torch.nn.Module):
        def __init__(self, most):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.most = most

        def forward(self, ids, targets):
            tried.append(len(ids))
            if len(ids) > self.most:
                raise torch.OutOfMemoryError("full")
            return self.weight.sum()

    config, cpu = preset("d2-test"), torch.device("cpu")
    model = Small(5)
    assert fitting_batch(model, config, 8, 37, cpu) == 5
    assert tried == [37, 19, 10, 5, 5]
    assert model.weight.grad is None
    with pytest.raises(torch.OutOfMemoryError):
        fitting_batch(Small(0), config, 8, 4, cpu)


def test_a_gpu_too_small_for_one_sample_is_a_clear_error(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("nanochat.micro_batch.fitting_batch", full)
    monkeypatch.setattr("nanochat.micro_batch._free_on", lambda device: 2**30)
    config = preset("d2-test")
    with pytest.raises(CurtailError, match="not even one sample of 64 tokens fits into the memory of this GPU"):
        device_batch(GPT(config), config, 64, 4, torch.device("cuda"))


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989), ("NVIDIA B200", 2250), ("NVIDIA L40S", 362), ("NVIDIA L40", 181), ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce RTX 5090", 209.5), ("NVIDIA A10G", 70),
        ("Some other device", None), ("NVIDIA A1000", None),
    ],
)  # fmt: skip
def test_peaks_are_found_by_the_name_of_the_device(name, tera):
    assert peak_flops(name) == (None if tera is None else pytest.approx(tera * 1e12))


def test_utilisation_needs_a_known_peak():
    assert utilisation(1e5, 10**9, "NVIDIA A100-SXM4-80GB", 2) == pytest.approx(1e14 / 624e12)
    assert utilisation(1e5, 10**9, "Some other device", 1) is None
    assert utilisation(1e5, 10**9, None, 1) is None


def test_speed_is_the_median_of_the_steps_after_warm_up():
    asked = BenchOptions(steps=3, batch_samples=4, threads=1, device="cpu")
    speed = measure_speed(preset("d2-test"), asked, Ticking())
    assert (speed.device, speed.mfu, speed.steps, speed.compiled) == ("cpu", None, 3, False)
    assert (speed.tok_s, speed.seconds_per_step, speed.device_batch_samples) == (256.0, 1.0, 4)
    assert speed.peak_memory_mib > 0


def test_the_result_for_a_person_and_for_a_program(capsys):
    result = {"steps": 3, "tokens": 768, "loss": 2.5, "seconds": 1.5, "checkpoint": "/x", "stopped_by": None}
    run._show(result, False)
    assert capsys.readouterr().out == "trained 3 steps, 768 tokens in 1.5 s, loss 2.5000\ncheckpoint: /x\n"
    run._show(result, True)
    assert json.loads(capsys.readouterr().out) == result


def test_the_failure_of_a_rank_is_told_as_its_own(tmp_path):
    (tmp_path / ".failure.json").write_text(json.dumps({"message": "m", "remedy": "r", "exit_code": 3}))
    error = run._failure(tmp_path, 1)
    assert (str(error), error.exit_code) == ("m: r", 3)
    (tmp_path / "train.log").write_text("x\nRuntimeError: broken\ny\n")
    assert "RuntimeError: broken" in str(run._failure(tmp_path, 1))


def test_a_saved_state_is_fp32(options):
    go(replace(options, steps=2))
    found = train_checkpoints.newest(Path(options.out), print)
    assert {array.dtype for array in found.optimizer.values()} == {np.dtype("float32"), np.dtype("int64")}
