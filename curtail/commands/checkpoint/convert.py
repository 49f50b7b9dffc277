"""`curtail checkpoint import` and `export`: checks before writing, and the printed summary.

The file formats are in `nanochat.upstream_checkpoint`. An existing checkpoint is never
overwritten.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from curtail.errors import CheckpointError, UsageError
from curtail.system.disk import SystemDisk, disk_error

if TYPE_CHECKING:
    from nanochat.presets import GPTConfig
    from nanochat.tokenizer import Tokenizer
    from nanochat.upstream_checkpoint import Foreign, Given


def import_checkpoint(path: Path, out: Path, tokenizer: Path | None, step: int | None, given: Given) -> int:
    """Run `curtail checkpoint import`; returns the exit code.

    Args:
        tokenizer: `tokenizer.json` or its folder; copied next to the weights, so that the folder is self-contained.
        step, given: see `nanochat.upstream_checkpoint.read_nanochat`.
    Raises: CurtailError.
    """
    from nanochat.checkpoint import META_FILE, MODEL_FILE, CheckpointMeta, write_checkpoint
    from nanochat.presets import PRESETS
    from nanochat.tokenizer import FILE_NAME, Tokenizer
    from nanochat.upstream_checkpoint import read_nanochat

    _must_be_free(out, MODEL_FILE, META_FILE)
    loaded = None
    if tokenizer is not None:
        _must_be_free(out, FILE_NAME)
        loaded = Tokenizer.load(tokenizer / FILE_NAME if tokenizer.is_dir() else tokenizer)
    foreign = read_nanochat(path, step, given)
    if loaded is not None:
        _must_fit(loaded, foreign, path)
    meta = CheckpointMeta(
        preset=next((name for name, config in PRESETS.items() if config == foreign.config), None),
        model_config=foreign.config,
        tokens=foreign.tokens,
        version=foreign.step,
        weights_digest="",
        tokenizer_digest=loaded.digest if loaded else foreign.tokenizer_digest,
        manifest_digest=foreign.manifest_digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _make(out)
    if loaded is not None:
        loaded.save(out / FILE_NAME)
    meta = write_checkpoint(out, foreign.weights, meta, SystemDisk())
    count = sum(array.size for array in foreign.weights.values())
    print(
        f"{meta.preset or 'a model'} of {count:,} parameters, step {foreign.step:,}, in {out}, digest"
        f" {meta.weights_digest[:12]}; {foreign.origin}: {_constants(foreign.config)}"
    )
    return 0


def export_checkpoint(checkpoint: Path, form: str, out: Path) -> int:
    """Run `curtail checkpoint export`; returns the exit code.

    Args: form: "nanochat" or "safetensors".
    Raises: CurtailError.
    """
    from nanochat.checkpoint import MODEL_FILE, read_checkpoint
    from nanochat.upstream_checkpoint import write_nanochat, write_safetensors
    from nanochat.upstream_versions import reader_of

    meta, weights = read_checkpoint(checkpoint)
    if form == "safetensors":
        _must_be_free(out, MODEL_FILE)
        _make(out)
        files = write_safetensors(out, meta, weights, SystemDisk())
    else:
        _must_be_free(out, f"model_{meta.version:06d}.pt", f"meta_{meta.version:06d}.json")
        _make(out)
        files = write_nanochat(out, meta, weights, SystemDisk())
        reader = reader_of(meta.model_config)
        note = (
            f"{reader} computes the same results"
            if reader
            else "no version of nanochat computes the same results; curtail can import it again"
        )
        print(f"{note}: {_constants(meta.model_config)}", file=sys.stderr)
    for file in files:
        print(file)
    return 0


def _must_be_free(folder: Path, *names: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "give another one with --out")
    if there := [name for name in names if (folder / name).exists()]:
        raise UsageError(f"{folder / there[0]} already exists", "give another folder with --out")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("create", folder, error) from error


def _must_fit(tokenizer: Tokenizer, foreign: Foreign, path: Path) -> None:
    """Check that the tokenizer belongs to the model. Raises: CheckpointError."""
    remedy = "give the tokenizer that the model was trained with, or omit --tokenizer"
    if tokenizer.vocab_size != foreign.config.vocab_size:
        raise CheckpointError(
            f"the model in {path} has {foreign.config.vocab_size:,} token ids, the tokenizer has"
            f" {tokenizer.vocab_size:,}",
            remedy,
        )
    if foreign.tokenizer_digest not in (None, tokenizer.digest):
        raise CheckpointError(
            f"the model in {path} was trained with the tokenizer {foreign.tokenizer_digest:.12},"
            f" not {tokenizer.digest:.12}",
            remedy,
        )


def _constants(config: GPTConfig) -> str:
    """The model constants that nanochat's files do not record, for display."""
    parts = [f"rotary base {config.rope_base:g}", f"queries and keys times {config.qk_scale:g}"]
    parts.append(f"softcap {config.softcap:g}")
    if "S" in config.window_pattern:
        parts.append(f"short windows of {min(config.windows())}")
    return ", ".join(parts)
