"""`curtail data` and `curtail tokenizer`: text to shards, shards to a tokenizer, both to packed tokens.

Decides what these commands print. `nanochat` converts text to tokens; `data fetch`
is in `curtail.commands.data.fetch`. Results go to stdout, progress to
stderr and only on a terminal. Sizes in bytes of UTF-8 text, lengths in tokens.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curtail.errors import DataError, NotFound
from curtail.system.disk import SystemDisk, disk_error

if TYPE_CHECKING:
    from nanochat.bestfit import PackCount
    from nanochat.tokenizer import Tokenizer

MOST_NAMED = 5
"""Number of skipped files that are named; the others are only counted."""


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


def evaluate_tokenizer(tokenizer: Path, files: Sequence[Path], as_json: bool) -> int:
    """Carry out `curtail tokenizer eval`; returns the exit code. Raises: CurtailError."""
    from nanochat.sample_texts import SAMPLE_TEXTS
    from nanochat.tokenizer_eval import OWN
    from nanochat.tokenizer_eval import evaluate_tokenizer as run

    loaded = _load_tokenizer(tokenizer)
    score = run(loaded, {**SAMPLE_TEXTS, **{str(file): _read_text(file) for file in files}})
    for name in score.missing:
        print(f"{name} is left out: tiktoken has no copy of its files on this machine", file=sys.stderr)
    if as_json:
        texts = [
            {
                "name": text.name,
                "bytes": text.bytes,
                "tokens": text.tokens,
                "bytes_per_token": {name: text.bytes_per_token(name) for name in text.tokens},
            }
            for text in score.texts
        ]
        values = {
            "tokenizer": loaded.digest,
            "vocab_sizes": score.vocab_sizes,
            "texts": texts,
            "missing": list(score.missing),
        }
        print(json.dumps(values))
        return 0
    peers = [name for name in score.vocab_sizes if name != OWN]
    widths = [max(12, *(len(text.name) for text in score.texts)), 10, 8, *(20 for _ in peers)]
    sizes = [f"{name} ({score.vocab_sizes[name]:,})" for name in peers]
    print(f"bytes per token; {loaded.vocab_size:,} token ids, digest {loaded.digest[:12]}")
    _row(["text", "bytes", "own", *sizes], widths)
    for text in score.texts:
        against = [f"{text.bytes_per_token(name):.2f} ({text.gain(name):+.1%})" for name in peers]
        _row([text.name, f"{text.bytes:,}", f"{text.bytes_per_token(OWN):.2f}", *against], widths)
    return 0


def _row(cells: Sequence[str], widths: Sequence[int]) -> None:
    aligned = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
    print("  ".join([f"{cells[0]:<{widths[0]}}", *aligned[1:]]))


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()  # line ends as they are
    except FileNotFoundError:
        raise NotFound(f"there is no text {file}", "check the path given by --text") from None
    except UnicodeDecodeError:
        raise DataError(f"{file} is not UTF-8 text", "convert it, or give another file by --text") from None
    except OSError as error:
        raise disk_error("read", file, error) from error


def _load_tokenizer(path: Path) -> Tokenizer:
    from nanochat.tokenizer import FILE_NAME, Tokenizer

    return Tokenizer.load(path / FILE_NAME if path.is_dir() else path)


def prepare(shards: Path, tokenizer: Path, sequence_len: int, out: Path, packing: str = "stream") -> int:
    """Carry out `curtail data prepare`; returns the exit code. Raises: CurtailError."""
    from nanochat.pack import prepare as run

    def progress(part: str, tokens: int) -> None:
        _progress(f"{part}: {tokens:,} tokens")

    counts: dict[str, PackCount] = {}
    manifest = run(
        shards, _load_tokenizer(tokenizer), out, disk=SystemDisk(), sequence_len=sequence_len, packing=packing,
        on_progress=progress, on_packed=counts.__setitem__,
    )  # fmt: skip
    _progress("")
    for part, count in counts.items():
        print(
            f"{part}: {count.cropped_share:.1%} of {count.tokens:,} tokens were cropped,"
            f" {count.left_over:,} at the end made no whole row"
        )
    print(
        f"{manifest.tokens('train'):,} tokens for training ({manifest.samples('train'):,} samples of {sequence_len})"
        f" and {manifest.tokens('validation'):,} for validation in {out}, manifest {manifest.digest[:12]}"
    )
    return 0


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
