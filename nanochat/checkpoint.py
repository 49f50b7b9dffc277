"""Reads and writes checkpoints: a folder with the weights and a meta file.

Defines `model.safetensors` and `meta.json`, and what is refused when reading them.
The meta file is written last, so a folder that has one is complete. Optimizer state,
data and tokenizer are not part of it, only the digests of data and tokenizer. Units:
tokens trained, SHA-256 digests in hex, time in UTC (ISO 8601).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from curtail.errors import CheckpointError, ConfigError, NotFound
from curtail.system.disk import Disk
from nanochat.presets import GPTConfig, from_dict, to_dict, weight_shapes
from nanochat.weights import Weights, check_shapes, digest, read_weights, write_weights

FORMAT = "curtail-checkpoint-1"
MODEL_FILE = "model.safetensors"
META_FILE = "meta.json"
_REMEDY = "the folder is damaged or not a checkpoint; use another one"


@dataclass(frozen=True, slots=True)
class CheckpointMeta:
    """The content of `meta.json`."""

    preset: str | None  # None: a configuration without a name
    model_config: GPTConfig
    tokens: int  # trained so far
    version: int  # of the global weights
    weights_digest: str  # `weights.digest`; filled in when the weights are written
    tokenizer_digest: str | None  # None: unknown
    manifest_digest: str | None  # of the packed training data; None: unknown
    created: str  # UTC, ISO 8601


def write_checkpoint(
    folder: Path, weights: Mapping[str, np.ndarray] | None, meta: CheckpointMeta, disk: Disk
) -> CheckpointMeta:
    """Write weights, then meta, durably. Purposes: CHECKPOINT_MODEL, CHECKPOINT_META.

    Args:
        folder: must exist.
        weights: None if `model.safetensors` is already there; then meta must have its digest.
    Returns: the meta as written, with the digest of the weights.
    Raises: CheckpointError: the weights do not fit the configuration or the digest. DiskError.
    """
    if weights is not None:
        found = digest(weights)
        if meta.weights_digest not in ("", found):
            raise CheckpointError(f"the weights have digest {found[:12]}, not {meta.weights_digest[:12]}", _REMEDY)
        meta = replace(meta, weights_digest=found)
        _check_names(weights, meta)
        # There must never be an old meta file beside new weights.
        disk.remove("CHECKPOINT_META", folder / META_FILE)
        write_weights(folder / MODEL_FILE, weights, disk, "CHECKPOINT_MODEL")
    elif not (folder / MODEL_FILE).is_file() or not meta.weights_digest:
        raise CheckpointError(f"{folder} has no {MODEL_FILE} with a known digest yet", "write the weights first")
    disk.replace("CHECKPOINT_META", folder / META_FILE, meta_to_json(meta).encode())
    return meta


def read_checkpoint(folder: Path, verify: bool = True) -> tuple[CheckpointMeta, Weights]:
    """Meta and weights of a checkpoint; the weights are read-only and map the file.

    Args: verify: also check the digest, which reads all bytes.
    Raises: NotFound: the folder or one of its files is missing. CheckpointError: the checkpoint is damaged.
    """
    meta = read_meta(folder)
    if not (folder / MODEL_FILE).exists():
        raise NotFound(f"the checkpoint {folder} has no {MODEL_FILE}", _REMEDY)
    weights = read_weights(folder / MODEL_FILE, weight_shapes(meta.model_config))
    if verify and (found := digest(weights)) != meta.weights_digest:
        raise CheckpointError(
            f"the weights in {folder} have digest {found[:12]}, but {META_FILE} has {meta.weights_digest[:12]}", _REMEDY
        )
    return meta, weights


def read_meta(folder: Path) -> CheckpointMeta:
    """Read only the meta file of a checkpoint.

    Raises: NotFound: there is no checkpoint. CheckpointError: not a meta file of this version.
    """
    try:
        text = (folder / META_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"there is no checkpoint in {folder}: {META_FILE} is missing", _instead_of(folder)) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {folder / META_FILE}: {error.strerror}", "check its permissions") from None
    return meta_from_json(text, str(folder / META_FILE))


def _instead_of(folder: Path) -> str:
    """The remedy if `folder` is not a checkpoint."""
    if folder.is_dir() and any(folder.glob("model_*.pt")):
        return "it is a checkpoint of nanochat: convert it with `curtail checkpoint import`"
    for below in ("versions", "checkpoints"):
        if (folder / below).is_dir():
            return f"give one of the folders in {folder / below}"
    return "give a folder such as HOME/versions/v000012 or OUT/checkpoints/step00001000"


def meta_to_json(meta: CheckpointMeta) -> str:
    """The text of `meta.json`."""
    values = {field.name: getattr(meta, field.name) for field in fields(CheckpointMeta)}
    values |= {"format": FORMAT, "model_config": to_dict(meta.model_config)}
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def meta_from_json(text: str | bytes, where: str = META_FILE) -> CheckpointMeta:
    """The inverse of `meta_to_json`, strict.

    Raises: CheckpointError: another format; a missing, unknown or mistyped field.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where} is not JSON", _REMEDY) from None
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise CheckpointError(f"{where} does not have the format {FORMAT}", _REMEDY)
    kinds: dict[str, tuple[type, ...]] = {
        "preset": (str, type(None)),
        "model_config": (dict,),
        "tokens": (int,),
        "version": (int,),
        "weights_digest": (str,),
        "tokenizer_digest": (str, type(None)),
        "manifest_digest": (str, type(None)),
        "created": (str,),
    }
    if wrong := sorted(set(values) ^ set(kinds)):
        what = "lacks" if wrong[0] in kinds else "has the unknown field"
        raise CheckpointError(f"{where} {what} {wrong[0]!r}", _REMEDY)
    for name, allowed in kinds.items():
        if type(values[name]) not in allowed or (allowed == (int,) and values[name] < 0):
            raise CheckpointError(f"{name} in {where} has the wrong value {values[name]!r}", _REMEDY)
    try:
        values["model_config"] = from_dict(values["model_config"])
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error.message}", error.remedy) from None
    return CheckpointMeta(**values)


def _check_names(weights: Mapping[str, np.ndarray], meta: CheckpointMeta) -> None:
    shapes = {name: tuple(array.shape) for name, array in weights.items()}
    check_shapes(shapes, weight_shapes(meta.model_config), "the weight set")
