"""`curtail eval` and `curtail sample`: score a checkpoint, or generate text with it.

Finds the data of a checkpoint, checks that it was trained on them, limits the number of
tokens to score, and prints the scores of `nanochat.bpb` and `nanochat.core_eval`.
Units: bits per byte, nats per token, accuracies from 0 to 1.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from curtail.errors import CheckpointError, DataError, NotFound, UsageError
from curtail.system.disk import SystemDisk

if TYPE_CHECKING:
    from nanochat.checkpoint import CheckpointMeta
    from nanochat.core_eval import CoreResult
    from nanochat.gpt import GPT
    from nanochat.tokenizer import Tokenizer

MOST_TOKENS = 20 * 2**19
"""Largest default number of tokens to score; the same as in nanochat's base evaluation."""

_OTHER = "pass the data that it was trained on with --data"


def run_eval(checkpoint: Path, *, data: Path | None, tokens: int | None, batch: int, as_json: bool) -> int:
    """Run `curtail eval` in bits per byte; returns the exit code.

    Args:
        tokens: number of tokens to score, rounded down to whole samples; None: all, at most `MOST_TOKENS`.
        batch: samples per batch.
    Raises: CurtailError.
    """
    from nanochat.bpb import bits_per_byte
    from nanochat.checkpoint import read_meta
    from nanochat.pack import Manifest, TokenStream

    meta = read_meta(checkpoint)
    folder = find_data(checkpoint, data)
    manifest = Manifest.load(folder)
    if meta.manifest_digest not in (None, manifest.digest):
        raise CheckpointError(
            f"{checkpoint} was trained on the data {meta.manifest_digest:.12}, but {folder} holds"
            f" {manifest.digest:.12}",
            _OTHER,
        )
    if manifest.sequence_len != meta.model_config.sequence_len:
        raise DataError(
            f"the data in {folder} have samples of {manifest.sequence_len} tokens,"
            f" the model needs samples of {meta.model_config.sequence_len}",
            _OTHER,
        )
    tokenizer = load_tokenizer(meta, checkpoint, folder)
    stream = TokenStream(folder, manifest, "validation")
    stream.verify()
    model = load_model(checkpoint)
    wanted = tokens_to_score(stream.samples, manifest.sequence_len, tokens)
    device = next(model.parameters()).device
    result = bits_per_byte(model, stream, tokenizer.token_bytes(), tokens=wanted, device=device, device_batch=batch)
    if as_json:
        values = {
            "bpb": result.bpb,
            "loss": result.loss,
            "tokens": result.tokens,
            "bytes": result.bytes,
            "checkpoint": str(checkpoint),
            "version": meta.version,
        }
        print(json.dumps(values))
    else:
        print(
            f"{result.bpb:.4f} bits per byte (loss {result.loss:.4f} nats per token) on {result.tokens:,} validation"
            f" tokens, {result.bytes:,} bytes; version {meta.version} after {meta.tokens:,} tokens of training"
        )
    return 0


def run_core(
    checkpoint: Path,
    bundle: Path,
    *,
    data: Path | None,
    max_per_task: int | None,
    batch: int,
    as_json: bool,
    csv_file: Path | None,
) -> int:
    """Run `curtail eval --core`; returns the exit code.

    Args:
        data: folder with the tokenizer; None: the checkpoint's own folder, or the run's data.
        max_per_task: maximum number of questions per task; None: all.
        csv_file: also write the scores to this file.
    Raises: CurtailError.
    """
    from nanochat.checkpoint import read_meta
    from nanochat.core_eval import evaluate_core
    from nanochat.core_tasks import read_bundle

    meta = read_meta(checkpoint)
    if csv_file is not None and not csv_file.parent.is_dir():
        # fail now, not after hours of evaluation
        raise NotFound(f"the folder {csv_file.parent} does not exist", "create it, or give another path with --csv")
    tasks = read_bundle(bundle, max_per_task)
    tokenizer = load_tokenizer(meta, checkpoint, find_tokenizer(checkpoint, data))
    numbers = {task.label: number for number, task in enumerate(tasks, 1)}

    def progress(label: str, done: int, of: int) -> None:
        _progress(f"{label} ({numbers[label]} of {len(tasks)}): {done:,} of {of:,} sequences")

    result = evaluate_core(load_model(checkpoint), tokenizer, tasks, batch=batch, progress=progress)
    _progress("")
    if as_json:
        values = {
            **asdict(result),
            "max_per_task": max_per_task,
            "checkpoint": str(checkpoint),
            "version": meta.version,
        }
        print(json.dumps(values))
    else:
        print(core_table(result))
    if csv_file is not None:
        SystemDisk().replace("CORE_CSV", csv_file, core_csv(result).encode())
    return 0


def core_table(result: CoreResult) -> str:
    """The scores as a text table: one line per task, and CORE at the end."""
    width = max(len(task.label) for task in result.tasks)
    lines = [f"{'':{width}}  shots  questions  accuracy  centered  seconds"]
    for task in result.tasks:
        lines.append(
            f"{task.label:{width}}  {task.shots:5}  {task.questions:9,}  {task.accuracy:8.4f}  {task.centered:8.4f}"
            f"  {task.seconds:7.1f}"
        )
    seconds = sum(task.seconds for task in result.tasks)
    lines.append(f"{'CORE':{width}}  {'':5}  {'':9}  {'':8}  {result.core:8.4f}  {seconds:7.1f}")
    if cropped := sum(task.cropped for task in result.tasks):
        lines.append(f"{cropped:,} questions were longer than the model's context and were cropped at the start")
    return "\n".join(lines)


def core_csv(result: CoreResult) -> str:
    """The scores as CSV: one row per task, and CORE as the last row."""
    from nanochat.core_eval import TaskScore

    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(TaskScore)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(task) for task in result.tasks)
    writer.writerow({"label": "CORE", "centered": result.core})
    return text.getvalue()


def run_sample(
    checkpoint: Path,
    text: str,
    *,
    data: Path | None,
    max_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> int:
    """Run `curtail sample`: print `text` and its continuation token by token; returns the exit code.

    Raises: CurtailError.
    """
    from nanochat.checkpoint import read_meta
    from nanochat.engine import generate

    meta = read_meta(checkpoint)
    tokenizer = load_tokenizer(meta, checkpoint, find_tokenizer(checkpoint, data))
    model = load_model(checkpoint)
    prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # the model may generate characters that the terminal cannot show
    print(text, end="", flush=True)
    ids: list[int] = []
    shown = ""
    for token in generate(model, prompt, max_tokens, temperature, top_k, seed, tokenizer.bos_id):
        ids.append(token)
        fresh = new_text(tokenizer.decode(ids), shown)
        print(fresh, end="", flush=True)
        shown += fresh
    print(tokenizer.decode(ids)[len(shown) :])
    return 0


def find_data(
    checkpoint: Path, data: Path | None, names: tuple[str, ...] = ("manifest.json", "tokenizer.json")
) -> Path:
    """The folder with the files `names` of a checkpoint: `data`, or HOME/data for a checkpoint in HOME/versions.

    Raises: NotFound.
    """
    folder = checkpoint.resolve().parent.parent / "data" if data is None else data
    for name in names:
        if not (folder / name).is_file():
            raise NotFound(
                f"there is no {name} in {folder}", "pass the folder made by `curtail data prepare` with --data"
            )
    return folder


def find_tokenizer(checkpoint: Path, data: Path | None) -> Path:
    """The folder with the checkpoint's tokenizer: `data`, or its own folder, or the run's data. Raises: NotFound."""
    if data is None and (checkpoint / "tokenizer.json").is_file():
        return checkpoint
    return find_data(checkpoint, data, ("tokenizer.json",))


def load_tokenizer(meta: CheckpointMeta, checkpoint: Path, folder: Path) -> Tokenizer:
    """Load the tokenizer in `folder` and check that the checkpoint was trained with it.

    Raises: CheckpointError: it is another tokenizer. NotFound, DataError.
    """
    from nanochat.tokenizer import FILE_NAME, Tokenizer

    tokenizer = Tokenizer.load(folder / FILE_NAME)
    if meta.tokenizer_digest not in (None, tokenizer.digest):
        raise CheckpointError(
            f"{checkpoint} was trained with the tokenizer {meta.tokenizer_digest:.12},"
            f" but {folder} holds {tokenizer.digest:.12}",
            _OTHER,
        )
    return tokenizer


def load_model(checkpoint: Path) -> GPT:
    """Load the model of a checkpoint, on the GPU if there is one.

    Raises: NotFound, CheckpointError.
    """
    from nanochat.checkpoint import read_checkpoint
    from nanochat.distributed import choose_device, compute_dtype
    from nanochat.gpt import GPT
    from nanochat.weights import load_into

    meta, weights = read_checkpoint(checkpoint)
    device = choose_device()
    model = GPT(meta.model_config, compute_dtype(device))
    load_into(model, weights)
    return model.to(device).eval()


def tokens_to_score(samples: int, sequence_len: int, wanted: int | None) -> int:
    """The number of tokens to score: whole samples, at most those available.

    Raises: UsageError: `wanted` is less than one sample.
    """
    if wanted is not None and wanted < sequence_len:
        raise UsageError(f"{wanted} tokens are fewer than one sample", f"give at least {sequence_len}")
    most = MOST_TOKENS if wanted is None else wanted
    return min(samples, max(1, most // sequence_len)) * sequence_len


def new_text(decoded: str, shown: str) -> str:
    """The part of `decoded` after `shown`; empty while the last character is incomplete."""
    return "" if decoded.endswith("�") else decoded[len(shown) :]


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
