"""The inner optimizer's state, kept across pauses and crashes in the site's own cache.

One file is written with each contribution, named by the digest of its weights; the
last two are kept. A job loads the state of exactly its base weights, else the newest
one within `KEPT_STEPS` optimizer steps of them. It is a cache: a file that is damaged,
of another model or too old is ignored with a line in the log, and the optimizer starts
fresh. It is never sent to the controller. Units: tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curtail.errors import CheckpointError, CurtailError, NotFound
from curtail.system.disk import Disk, disk_error
from nanochat.weights import Weights, from_tensors, read_tensors, to_tensors, write_tensors

if TYPE_CHECKING:
    import torch

KEPT_STEPS = 500
"""Global optimizer steps after which the momentum no longer fits the weights."""

KEPT_FILES = 2
"""The newest, and that of the base weights it was trained from: after a crash one of the two fits."""

FORMAT = "curtail-inner-2"
_RESIDUAL = "residual:"
_ENDING = ".safetensors"


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept with one contribution."""

    tokens: int  # global tokens up to which the optimizer was trained
    digest: str  # of the weights after that
    state: Mapping[str, torch.Tensor]
    residual: Weights = field(default_factory=dict)  # what the contribution's codec lost; int4 only


def folder_of(cache: Path, run: str) -> Path:
    """The folder of the states of `run`."""
    return cache / "inner" / run


def still_useful(kept_tokens: int, tokens: int, batch_tokens: int) -> bool:
    """Whether a state of `kept_tokens` global tokens fits weights of `tokens`.

    A count that went back, because a contribution was not accepted, is treated the same way.
    """
    return abs(tokens - kept_tokens) <= KEPT_STEPS * batch_tokens


def save(folder: Path, kept: Kept, base_digest: str, disk: Disk) -> None:
    """Write `kept` durably, then delete all but `KEPT_FILES`.

    Args: base_digest: of the version that the weights were trained from; its state is not deleted.
    Raises: DiskError.
    """
    disk.folder("INNER_FOLDER", folder)
    metadata = {"format": FORMAT, "tokens": str(kept.tokens), "weights": kept.digest}
    arrays: dict[str, np.ndarray] = from_tensors(kept.state)
    arrays |= {_RESIDUAL + name: array for name, array in kept.residual.items()}
    path = folder / f"{kept.digest}{_ENDING}"
    write_tensors(path, arrays, disk, "INNER_STATE", metadata)
    _prune(folder, (kept.digest, base_digest))


def _prune(folder: Path, first: Collection[str]) -> None:
    """Keep `first`, then the newest; deletes what a crash left half written, too."""
    wanted = {f"{digest}{_ENDING}" for digest in first}
    try:
        ranked = [
            (path.name in wanted, path.suffix == _ENDING, path.stat().st_mtime_ns, path) for path in folder.iterdir()
        ]
        for *_, path in sorted(ranked, reverse=True)[KEPT_FILES:]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error("clear", folder, error) from error


def load(folder: Path, digest: str, tokens: int, batch_tokens: int, log: Callable[[str], None]) -> Kept | None:
    """The state that fits weights of `digest` at `tokens` global tokens best; None if none fits.

    Args: batch_tokens: global tokens of one optimizer step. log: told why a state is ignored.
    """
    for path in _best_first(folder, digest):
        try:
            arrays, metadata = read_tensors(path)
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path} is no optimizer state of this version")
            kept = int(metadata["tokens"])
            if not still_useful(kept, tokens, batch_tokens):
                log(f"an optimizer state of {kept} tokens is not used for weights of {tokens}")
                continue
            residual = {n[len(_RESIDUAL) :]: a.copy() for n, a in arrays.items() if n.startswith(_RESIDUAL)}
            state = to_tensors({n: a for n, a in arrays.items() if not n.startswith(_RESIDUAL)})
            return Kept(kept, metadata["weights"], state, residual)
        except NotFound:
            continue
        except (CurtailError, ValueError, KeyError) as error:
            log(f"an optimizer state cannot be used: {error}")
    return None


def _best_first(folder: Path, digest: str) -> list[Path]:
    """The state of exactly these weights, then the others, newest first."""
    try:
        found = [(path.stem == digest, path.stat().st_mtime_ns, path) for path in folder.glob(f"*{_ENDING}")]
    except OSError:
        return []  # a folder that cannot be read is an empty cache
    return [path for _, _, path in sorted(found, reverse=True)]
