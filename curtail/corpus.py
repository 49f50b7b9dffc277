"""`curtail data` and `curtail tokenizer`: text to shards, shards to a tokenizer, both to packed tokens.

Decides what these commands print; how text becomes tokens is decided in
`nanochat`. Results go to stdout as one line each, progress to stderr and only on
a terminal. Sizes in bytes of UTF-8 text, lengths in tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from curtail.disk import SystemDisk, disk_error

MOST_NAMED = 5
"""Files that were left out and are named; the rest is only counted."""


def import_texts(paths: Sequence[Path], out: Path, overwrite: bool) -> int:
    """Carry out `curtail data import`; returns the exit code. Raises: CurtailError."""
    from nanochat.dataset import import_texts as run

    def progress(documents: int, size: int) -> None:
        _progress(f"{documents:,} documents, {size / 1e6:,.1f} MB")

    report = run(paths, out, disk=SystemDisk(), overwrite=overwrite, on_progress=progress)
    _progress("")
    for skipped in report.skipped[:MOST_NAMED]:
        print(f"left out {skipped.path}: {skipped.reason}", file=sys.stderr)
    if len(report.skipped) > MOST_NAMED:
        print(f"left out {len(report.skipped) - MOST_NAMED} more files", file=sys.stderr)
    shards = len(report.shards.training) + 1
    print(
        f"{report.documents:,} documents, {report.bytes / 1e6:,.1f} MB of text, from {report.files:,} files"
        f" in {shards} shards in {out}; {report.shards.validation.documents:,} documents are for validation"
    )
    return 0


def train_tokenizer(shards: Path, vocab_size: int, out: Path) -> int:
    """Carry out `curtail tokenizer train`; returns the exit code. Raises: CurtailError."""
    from nanochat.dataset import iterate_texts
    from nanochat.tokenizer import FILE_NAME, Tokenizer

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("create", out, error) from error
    tokenizer = Tokenizer.train(iterate_texts(shards), vocab_size)
    tokenizer.save(out / FILE_NAME)
    print(f"{tokenizer.vocab_size:,} token ids in {out / FILE_NAME}, digest {tokenizer.digest[:12]}")
    return 0


def prepare(shards: Path, tokenizer: Path, sequence_len: int, out: Path) -> int:
    """Carry out `curtail data prepare`; returns the exit code. Raises: CurtailError."""
    from nanochat.pack import prepare as run
    from nanochat.tokenizer import FILE_NAME, Tokenizer

    def progress(part: str, tokens: int) -> None:
        _progress(f"{part}: {tokens:,} tokens")

    loaded = Tokenizer.load(tokenizer / FILE_NAME if tokenizer.is_dir() else tokenizer)
    manifest = run(shards, loaded, out, disk=SystemDisk(), sequence_len=sequence_len, on_progress=progress)
    _progress("")
    print(
        f"{manifest.tokens('train'):,} tokens for training ({manifest.samples('train'):,} samples of {sequence_len})"
        f" and {manifest.tokens('validation'):,} for validation in {out}, manifest {manifest.digest[:12]}"
    )
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
