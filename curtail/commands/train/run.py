"""Runs `curtail train` and `curtail bench train`, in this process or under torchrun.

A single rank runs in this process; several ranks are started with torchrun. If
torchrun started this process (as on several machines), it runs as that rank. Training
itself is in `nanochat.trainer`. Progress goes to stderr, the result to stdout. Units:
tokens, seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curtail.errors import CurtailError
from curtail.system.disk import disk_error
from curtail.system.process import dying_with, on_signals

if TYPE_CHECKING:
    from nanochat.throughput import Asked
    from nanochat.train_options import TrainOptions

LOG_FILE = "train.log"
"""Log file in the output folder with the stderr of torchrun and its ranks."""


def run_train(options: TrainOptions, ranks: int, as_json: bool) -> int:
    """Run `curtail train`; returns the exit code.

    Args: ranks: processes on this machine; 0: one per GPU, or one without GPUs.
    Raises: CurtailError.
    """
    from nanochat.train_options import check_out, make_plan

    if options.wandb:
        from nanochat.metrics import require_wandb

        require_wandb()
    keep_compiled()
    started = "TORCHELASTIC_RUN_ID" in os.environ
    if started:
        count = int(os.environ.get("WORLD_SIZE", "1"))
    else:
        from agent.launcher import count_devices

        count = ranks or count_devices()
    plan = make_plan(options, count)
    check_out(options, plan)  # fail here, before anything starts
    first = int(os.environ.get("RANK", "0")) == 0 if started else True
    if first:
        samples, needed = plan.manifest.samples("train"), plan.steps * plan.batch_samples
        passes = f", {needed / samples:.1f} passes over the data" if needed > samples else ""
        _say(f"{plan.steps:,} steps of {plan.batch_tokens:,} tokens on {count} ranks{passes}")
    if started or count == 1:
        from nanochat.trainer import train

        result = asdict(train(options, _say))
    else:
        result = _by_torchrun(options, count)
    if first:
        _show(result, as_json)
    return 128 + result["stopped_by"] if result["stopped_by"] else 0


def _by_torchrun(options: TrainOptions, ranks: int) -> dict[str, Any]:
    """Train on several ranks of this machine; returns the result of rank 0.

    Raises: CurtailError: the error of a rank, or the last error line of the log.
    """
    from agent.launcher import source_folder, threads_per_rank
    from nanochat.train_options import FAILURE_FILE

    out = Path(options.out)
    threads = options.threads or threads_per_rank(ranks)
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
    environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    source = source_folder()
    if source is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [
        sys.executable,
        *("-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
        *("--nproc-per-node", str(ranks), "--max-restarts", "0"),
        *("-m", "nanochat.trainer", options.to_json()),
    ]
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / FAILURE_FILE).unlink(missing_ok=True)
        log = open(out / LOG_FILE, "ab")  # noqa: SIM115 (closed below, torchrun keeps its own copy)
    except OSError as error:
        raise disk_error("write", out / LOG_FILE, error) from error
    with log:
        job = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True, preexec_fn=dying_with(os.getpid()),
        )  # fmt: skip
    caught: list[int] = []

    def pass_on(number: int, _: object) -> None:
        caught.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(job.pid, signal.SIGTERM)  # torchrun forwards it to its ranks, which finish their step and save

    result: dict[str, Any] | None = None
    with on_signals((signal.SIGINT, signal.SIGTERM), pass_on):
        assert job.stdout is not None
        for line in job.stdout:
            if line.startswith('{"steps"'):
                result = json.loads(line)
            else:
                _say(line.rstrip("\n"))
        code = job.wait()
    if result is not None and (code == 0 or result["stopped_by"]):
        return {**result, "stopped_by": caught[0] if caught else result["stopped_by"]}
    raise _failure(out, code)


def _failure(out: Path, code: int) -> CurtailError:
    """The error of a failed rank, as if it had been raised in this process."""
    from nanochat.train_options import FAILURE_FILE

    with contextlib.suppress(OSError, ValueError, KeyError):
        said = json.loads((out / FAILURE_FILE).read_bytes())
        (out / FAILURE_FILE).unlink()
        error = CurtailError(said["message"], said["remedy"])
        error.exit_code = said["exit_code"]
        return error
    with contextlib.suppress(OSError):
        lines = deque((out / LOG_FILE).read_text(errors="replace").splitlines(), maxlen=200)
        errors = [line.strip() for line in lines if "Error" in line]
        if errors:
            return CurtailError(f"training failed with exit code {code}: {errors[0]}", f"see {out / LOG_FILE}")
    return CurtailError(f"training failed with exit code {code}", f"see {out / LOG_FILE}")


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(result))
        return
    loss = f", loss {result['loss']:.4f}" if result["loss"] is not None else ""
    ended = "stopped after" if result["stopped_by"] else "trained"
    print(f"{ended} {result['steps']:,} steps, {result['tokens']:,} tokens in {result['seconds']:,.1f} s{loss}")
    if result["checkpoint"]:
        print(f"checkpoint: {result['checkpoint']}")


def run_bench(
    *,
    preset: str | None,
    depth: int | None,
    vocab_size: int,
    sequence_len: int,
    asked: Asked,
    as_json: bool,
) -> int:
    """Run `curtail bench train`; returns the exit code.

    Args:
        preset, depth: one of them. vocab_size, sequence_len: of a model given by its depth.
        asked: with the attention "all", all backends are measured.
    Raises: CurtailError.
    """
    from curtail.system.clock import SystemClock
    from nanochat.presets import config_for
    from nanochat.presets import preset as named

    config = named(preset) if preset is not None else config_for("lambdas", depth or 0, vocab_size, sequence_len)
    keep_compiled()
    from nanochat.throughput import measure_backends, measure_speed

    model, first = preset or f"depth {depth}", not int(os.environ.get("RANK", "0"))
    if asked.attention == "all":
        rows = measure_backends(config, asked, SystemClock())
        if first:
            values = [asdict(row) for row in rows]
            print(json.dumps({"model": model, "rows": values}) if as_json else _rows(model, values))
        return 0
    result = measure_speed(config, asked, SystemClock())
    if not first:
        return 0
    if as_json:
        print(json.dumps({"model": model, **asdict(result)}))
        return 0
    for name, reason in result.refused.items():
        _say(f"attention {name} is not used: {reason}")
    share = (
        f"MFU {result.mfu:.1%}"
        if result.mfu is not None
        else f"MFU unknown: the peak speed of {result.device} is not listed"
    )
    windows = f", windows {result.windows}" if result.windows != "none" else ""
    form = f"{'compiled' if result.compiled else 'not compiled'}{', fp8' if result.fp8 else ''}"
    print(
        f"{model} ({result.parameters:,} weights) on {result.ranks} x {result.device}:"
        f" {result.tok_s:,.0f} tok/s, {result.tflop_s:,.2f} TFLOP/s, {share}, {result.peak_memory_mib:,.0f} MiB"
        f" ({result.seconds_per_step:.3f} s for a step of {result.batch_samples} samples of {result.sequence_len},"
        f" {result.device_batch_samples} at once; attention {result.attention}{windows}; {form}; loss {result.loss})"
    )
    return 0


def _rows(model: str, rows: list[dict[str, Any]]) -> str:
    """A table with one line per attention backend."""
    lines = [f"{model}: {'attention':10} {'windows':8} {'tok/s':>12} {'MFU':>7} {'MiB':>9}  at once"]
    indent = " " * len(f"{model}: ")
    for row in rows:
        if "reason" in row:
            lines.append(f"{indent}{row['attention']:10} {row['reason']}")
            continue
        share = f"{row['mfu']:.1%}" if row["mfu"] is not None else "-"
        lines.append(
            f"{indent}{row['attention']:10} {row['windows']:8} {row['tok_s']:12,.0f} {share:>7}"
            f" {row['peak_memory_mib']:9,.0f}  {row['device_batch_samples']}"
        )
    return "\n".join(lines)


def cache_folder(environment: Mapping[str, str]) -> Path:
    """This user's cache folder: $XDG_CACHE_HOME/curtail, or ~/.cache/curtail."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "curtail"


def keep_compiled() -> None:
    """Make this process and its children store torch's compiled code in this user's cache, for later runs."""
    from agent.launcher import compile_cache

    os.environ.update(compile_cache(cache_folder(os.environ) / "compiled", os.environ))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
