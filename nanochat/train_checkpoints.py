"""Saves, finds and prunes the checkpoints of a training run.

In OUT/checkpoints, `stepNNNNNNNN` has a checkpoint as in `nanochat.checkpoint`, the
optimizer's state and `progress.json`. It is written under a hidden name, fsynced and
renamed, so every folder with that name is complete. Later damage is detected by the
hashes. Units: steps, tokens, seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from curtail.errors import CheckpointError, NotFound
from curtail.system.disk import Disk, disk_error, file_sha256, fsync_folder
from nanochat.checkpoint import CheckpointMeta, read_checkpoint, read_meta, write_checkpoint
from nanochat.weights import Weights, read_tensors, write_tensors

FORMAT = "curtail-training-1"
OPTIMIZER_FILE = "optimizer.safetensors"
PROGRESS_FILE = "progress.json"
_OTHER = "give another folder with --out, or the same settings as before"


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """The progress of a run, and the settings that must not change when it resumes."""

    step: int  # finished optimizer steps; the next sample is step * batch_samples
    tokens: int
    token_budget: int
    batch_samples: int
    seed: int
    recipe: str  # all its values, as JSON
    ranks: int
    device_batch: int  # samples per pass, found or given
    seconds: float  # of training, without pauses
    loss: float | None  # of the last step, nats per token
    optimizer_sha256: str  # of OPTIMIZER_FILE; set when it is written


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A complete checkpoint."""

    folder: Path
    meta: CheckpointMeta
    progress: TrainingProgress
    weights: Weights
    optimizer: dict[str, np.ndarray]


def folder_of(out: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return out / "checkpoints" / f"step{step:08d}"


def saved_steps(out: Path) -> list[int]:
    """The steps for which there are checkpoints, ascending; whether they are intact is not checked."""
    names = [path.name for path in (out / "checkpoints").glob("step????????")]
    return sorted(int(name[4:]) for name in names if name[4:].isdigit())


def save(
    out: Path,
    weights: Mapping[str, np.ndarray],
    optimizer: Mapping[str, np.ndarray],
    meta: CheckpointMeta,
    progress: TrainingProgress,
    disk: Disk,
) -> Path:
    """Write a checkpoint under a temporary name and rename it. Returns: its folder.

    Purposes: CHECKPOINT_MODEL, CHECKPOINT_META, TRAIN_OPTIMIZER, TRAIN_PROGRESS.
    Raises: DiskError: then there is no checkpoint under the final name.
    """
    final = folder_of(out, progress.step)
    aside = final.with_name(f".{final.name}.{os.getpid()}")
    disk.folder("TRAIN_FOLDER", final.parent)
    try:
        aside.mkdir()
    except OSError as error:
        raise disk_error("create", aside, error) from error
    try:
        write_checkpoint(aside, weights, meta, disk)
        write_tensors(aside / OPTIMIZER_FILE, optimizer, disk, "TRAIN_OPTIMIZER")
        values = asdict(progress) | {"optimizer_sha256": file_sha256(aside / OPTIMIZER_FILE), "format": FORMAT}
        text = json.dumps(values, indent=1, sort_keys=True) + "\n"
        disk.replace("TRAIN_PROGRESS", aside / PROGRESS_FILE, text.encode())
        _discard(final)  # exists only if it is damaged, because a run resumes from the newest intact one
        try:
            os.rename(aside, final)
            fsync_folder(final.parent)
            fsync_folder(out)
        except OSError as error:
            raise disk_error("write", final, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # missing if it was renamed
    return final


def thin_out(out: Path, keep: int, milestone_every: int) -> list[int]:
    """Delete all but the newest `keep` checkpoints and the milestones. Returns: the deleted steps.

    Args: milestone_every: checkpoints of steps divisible by this are kept forever; 0: none.
    """
    steps = saved_steps(out)
    kept = set(steps[-keep:]) | {step for step in steps if milestone_every and step % milestone_every == 0}
    gone = [step for step in steps if step not in kept]
    for step in gone:
        _discard(folder_of(out, step))
    return gone


def sweep(out: Path) -> None:
    """Delete partly written or partly deleted checkpoints of a killed run."""
    for path in (out / "checkpoints").glob(".step*"):
        shutil.rmtree(path, ignore_errors=True)


def newest(out: Path, say: Callable[[str], None]) -> SavedCheckpoint | None:
    """The newest intact checkpoint; None if there is no checkpoint at all.

    Args: say: called with a message for each skipped checkpoint.
    Raises: CheckpointError: there are checkpoints, but none is intact.
    """
    steps = saved_steps(out)
    for step in reversed(steps):
        folder = folder_of(out, step)
        try:
            return read(folder)
        except (CheckpointError, NotFound) as error:
            say(f"skipped {folder.name}: {error.message}")
    if steps:
        raise CheckpointError(
            f"none of the {len(steps)} checkpoints in {out} is intact", "give another folder with --out"
        )
    return None


def read(folder: Path) -> SavedCheckpoint:
    """Read a checkpoint and check all its hashes.

    Raises: NotFound: a file is missing. CheckpointError: it is damaged, or not of a training run.
    """
    progress = read_progress(folder)
    meta, weights = read_checkpoint(folder)
    if file_sha256(folder / OPTIMIZER_FILE) != progress.optimizer_sha256:
        raise CheckpointError(f"{OPTIMIZER_FILE} in {folder} is damaged", "use another checkpoint")
    optimizer, _ = read_tensors(folder / OPTIMIZER_FILE)
    return SavedCheckpoint(folder, meta, progress, weights, optimizer)


def read_progress(folder: Path) -> TrainingProgress:
    """Read `progress.json` of a checkpoint; strict.

    Raises: NotFound: there is none. CheckpointError: another format, or a wrong value.
    """
    path = folder / PROGRESS_FILE
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(
            f"there is no {PROGRESS_FILE} in {folder}", "it is not a checkpoint of `curtail train`"
        ) from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON", "use another checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", "check its permissions") from None
    kinds = {"int": (int,), "float": (float, int), "str": (str,), "float | None": (float, int, type(None))}
    names = {field.name: kinds[str(field.type)] for field in fields(TrainingProgress)}
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT or set(values) != set(names):
        raise CheckpointError(f"{path} does not have the format {FORMAT}", "use another checkpoint")
    if wrong := [name for name, kind in names.items() if type(values[name]) not in kind]:
        raise CheckpointError(
            f"{wrong[0]} in {path} has the wrong value {values[wrong[0]]!r}", "use another checkpoint"
        )
    return TrainingProgress(**values)


def check_same_run(out: Path, meta: CheckpointMeta, progress: TrainingProgress) -> list[str]:
    """Compare a run with the newest readable checkpoint in `out`. Returns: what has changed, as lines to print.

    Args: meta, progress: of the run that is about to resume; only values that must be equal are compared.
    Raises: CheckpointError: another model, other data or tokenizer, another batch, seed or recipe.
    """
    for step in reversed(saved_steps(out)):
        folder = folder_of(out, step)
        try:
            old_meta, old = read_meta(folder), read_progress(folder)
        except (CheckpointError, NotFound):
            continue
        facts = (
            ("model", old_meta.model_config, meta.model_config),
            ("tokenizer", old_meta.tokenizer_digest, meta.tokenizer_digest),
            ("data set", old_meta.manifest_digest, meta.manifest_digest),
            ("batch size", old.batch_samples, progress.batch_samples),
            ("seed", old.seed, progress.seed),
            ("recipe", json.loads(old.recipe), json.loads(progress.recipe)),
        )
        for what, before, now in facts:
            if before != now:
                raise CheckpointError(f"{folder} was trained with another {what}{_shown(before, now)}", _OTHER)
        if old.token_budget != progress.token_budget:
            return [f"the budget changed from {old.token_budget:,} to {progress.token_budget:,} tokens: rates change"]
        return []
    return []


def _shown(before: object, now: object) -> str:
    if isinstance(before, int):
        return f", {before} instead of {now}"
    if isinstance(before, str) and isinstance(now, str):
        return f", {before[:12]} instead of {now[:12]}"
    if isinstance(before, dict) and isinstance(now, dict):
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return f" ({', '.join(changed)})"
    return ""


def _discard(folder: Path) -> None:
    """Delete a checkpoint: rename it first, so that it is never visible partly deleted."""
    hidden = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(hidden, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)
