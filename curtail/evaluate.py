"""`curtail eval` and `curtail sample`: what a checkpoint is worth, as a figure and as text.

Decides where the data of a checkpoint are looked for, that they are the ones it
was trained with, and how many tokens are scored; the score itself is
`nanochat.bpb`'s. Units: bits per byte, nats per token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from curtail.errors import CheckpointError, DataError, NotFound, UsageError

if TYPE_CHECKING:
    from nanochat.checkpoint import CheckpointMeta
    from nanochat.gpt import GPT
    from nanochat.tokenizer import Tokenizer

MOST_TOKENS = 20 * 2**19
"""Scored by default at most; as many as nanochat's base evaluation reads."""

_OTHER = "give the data it was trained with by --data"


def run_eval(checkpoint: Path, *, data: Path | None, tokens: int | None, as_json: bool) -> int:
    """Carry out `curtail eval`; returns the exit code.

    Args: tokens: how many to score, rounded down to whole samples; None: all, at most `MOST_TOKENS`.
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
            f"{checkpoint} was trained on the data {meta.manifest_digest:.12}, {folder} holds {manifest.digest:.12}",
            _OTHER,
        )
    if manifest.sequence_len != meta.model_config.sequence_len:
        raise DataError(
            f"the data in {folder} are samples of {manifest.sequence_len} tokens,"
            f" the model reads {meta.model_config.sequence_len}",
            _OTHER,
        )
    tokenizer = load_tokenizer(meta, checkpoint, folder)
    stream = TokenStream(folder, manifest, "validation")
    stream.verify()
    model = load_model(checkpoint)
    wanted = tokens_to_score(stream.samples, manifest.sequence_len, tokens)
    device = next(model.parameters()).device
    result = bits_per_byte(model, stream, tokenizer.token_bytes(), tokens=wanted, device=device)
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
    """Carry out `curtail sample`: print `text` and its continuation as it comes; returns the exit code.

    Raises: CurtailError.
    """
    from nanochat.checkpoint import read_meta
    from nanochat.engine import generate

    meta = read_meta(checkpoint)
    tokenizer = load_tokenizer(meta, checkpoint, find_data(checkpoint, data))
    model = load_model(checkpoint)
    prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # the model may write what the terminal cannot show
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


def find_data(checkpoint: Path, data: Path | None) -> Path:
    """The folder with the manifest and the tokenizer of a checkpoint.

    Without `data` it is `data` in the controller's home, for a checkpoint that lies in HOME/versions.
    Raises: NotFound.
    """
    folder = checkpoint.resolve().parent.parent / "data" if data is None else data
    for name in ("manifest.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise NotFound(
                f"there is no {name} in {folder}", "give the folder made by `curtail data prepare` with --data"
            )
    return folder


def load_tokenizer(meta: CheckpointMeta, checkpoint: Path, folder: Path) -> Tokenizer:
    """The tokenizer in `folder`, if the checkpoint was trained with it.

    Raises: CheckpointError: it is another one. NotFound, DataError.
    """
    from nanochat.tokenizer import FILE_NAME, Tokenizer

    tokenizer = Tokenizer.load(folder / FILE_NAME)
    if meta.tokenizer_digest not in (None, tokenizer.digest):
        raise CheckpointError(
            f"{checkpoint} was trained with the tokenizer {meta.tokenizer_digest:.12},"
            f" {folder} holds {tokenizer.digest:.12}",
            _OTHER,
        )
    return tokenizer


def load_model(checkpoint: Path) -> GPT:
    """The model of a checkpoint, on the GPU if there is one.

    Raises: NotFound, CheckpointError.
    """
    from nanochat.checkpoint import read_checkpoint
    from nanochat.device import choose_device, compute_dtype
    from nanochat.gpt import GPT
    from nanochat.weights import load_into

    meta, weights = read_checkpoint(checkpoint)
    device = choose_device()
    model = GPT(meta.model_config, compute_dtype(device))
    load_into(model, weights)
    return model.to(device).eval()


def tokens_to_score(samples: int, sequence_len: int, wanted: int | None) -> int:
    """How many tokens are scored: whole samples, no more than there are.

    Raises: UsageError: `wanted` is less than one sample.
    """
    if wanted is not None and wanted < sequence_len:
        raise UsageError(f"{wanted} tokens are less than one sample", f"give at least {sequence_len}")
    most = MOST_TOKENS if wanted is None else wanted
    return min(samples, max(1, most // sequence_len)) * sequence_len


def new_text(decoded: str, shown: str) -> str:
    """What can be shown beyond `shown`: nothing yet while the last character is incomplete."""
    return "" if decoded.endswith("�") else decoded[len(shown) :]
