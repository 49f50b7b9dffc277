"""The inner optimizer's state across pauses, in the site's own cache.

Decides when a kept state is still worth using: as long as the global weights
have not moved on by more than `KEPT_STEPS` optimizer steps. It is a cache: one
that is damaged, of another model or too old is dropped with a line in the log,
and the optimizer starts afresh. Never sent to the controller. Units: tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from curtail.disk import Disk, disk_error
from curtail.errors import CheckpointError, CurtailError, NotFound
from nanochat.weights import from_tensors, read_tensors, to_tensors, write_tensors

if TYPE_CHECKING:
    import torch

KEPT_STEPS = 500
"""Global optimizer steps after which momentum says nothing of the present weights."""

FORMAT = "curtail-inner-1"


def state_path(cache: Path, run: str) -> Path:
    """Where the state of `run` lies."""
    return cache / "inner" / f"{run}.safetensors"


def still_useful(kept_tokens: int, tokens: int, batch_tokens: int) -> bool:
    """Whether a state of global token count `kept_tokens` fits weights of `tokens`.

    A count that went back, because a contribution was not accepted, is treated alike.
    """
    return abs(tokens - kept_tokens) <= KEPT_STEPS * batch_tokens


def save(path: Path, state: Mapping[str, torch.Tensor], tokens: int, digest: str, disk: Disk) -> None:
    """Keep `state`, reached at `tokens` global tokens with the weights of `digest`.

    Raises: DiskError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error("create", path.parent, error) from error
    metadata = {"format": FORMAT, "tokens": str(tokens), "weights": digest}
    write_tensors(path, from_tensors(state), disk, "INNER_STATE", metadata)


def load(path: Path, tokens: int, batch_tokens: int, log: Callable[[str], None]) -> dict[str, torch.Tensor] | None:
    """The kept state if it fits `tokens` global tokens, else None.

    Args: batch_tokens: global tokens of one optimizer step. log: told why a state is dropped.
    """
    try:
        arrays, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no optimizer state of this version")
        kept = int(metadata["tokens"])
        if not still_useful(kept, tokens, batch_tokens):
            log(f"the optimizer starts afresh: its state is of {kept} tokens, the weights of {tokens}")
            return None
        return to_tensors(arrays)
    except NotFound:
        return None
    except (CurtailError, ValueError, KeyError) as error:
        log(f"the optimizer starts afresh: its state cannot be used: {error}")
        return None
