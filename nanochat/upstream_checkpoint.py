"""Reads and writes checkpoints of nanochat itself: `model_000123.pt` and `meta_000123.json`.

Decides which files are accepted, and completes the model's configuration: nanochat's
files do not contain all of it, so `nanochat.upstream_versions` infers the rest from
the weights, and the user can override it. Pickles are never executed: torch reads only
tensors, and only from an intact archive.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curtail.errors import CheckpointError, ConfigError, DiskError, NotFound
from curtail.system.disk import Disk, disk_error
from nanochat.checkpoint import META_FILE, MODEL_FILE, CheckpointMeta
from nanochat.presets import GPTConfig, from_dict, to_dict, to_json, weight_shapes
from nanochat.upstream_versions import NUMBERS, infer_config, their_config
from nanochat.weights import Weights, check_shapes, to_tensors, write_tensors

_EXACT = (torch.float32, torch.bfloat16, torch.float16)  # these fit into float32 without rounding
_REMEDY = "it has another format or is damaged; fetch it again"
_NO_MODEL = "nanochat's model files are called model_000123.pt"
_OWN = "curtail"  # key of the meta file for the values that nanochat's format lacks; nanochat ignores it
# exceptions of torch for an archive that is not what it seems
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    AssertionError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Given:
    """The user's values for what a checkpoint does not contain; None: infer it."""

    rope_base: float | None = None
    qk_scale: float | None = None
    softcap: float | None = None
    short_window: int | None = None  # tokens; 0: half of the longest input


@dataclass(frozen=True, slots=True)
class Foreign:
    """A checkpoint of nanochat, converted to our form."""

    config: GPTConfig
    weights: Weights  # fp32, with every name that the configuration has
    step: int  # optimizer steps, nanochat's count
    tokens: int  # trained so far; 0: unknown
    tokenizer_digest: str | None  # None: unknown
    manifest_digest: str | None
    origin: str  # the version of nanochat that made it, for messages


def read_nanochat(path: Path, step: int | None = None, given: Given | None = None) -> Foreign:
    """Read the checkpoint in a folder of nanochat, or of a `.pt` file; bf16 and fp16 become fp32.

    Missing per-layer scales (before 2026-01-11) are added as 1 and 0, which changes nothing, and
    missing vocabulary padding (before 2025-12-09) as rows of zeros, which are never read.
    Args: step: which one of several in a folder; None: the last.
    Raises: NotFound: no such checkpoint. CheckpointError: it is invalid. ConfigError: a given value is invalid.
    """
    model_file, meta_file, step = find(path, step)
    meta = _read_meta(meta_file, step)
    state = _read_tensors(model_file)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    own = meta.get(_OWN)
    try:
        if own is None:
            config, origin = infer_config(meta.get("model_config"), shapes)
        else:
            config, origin = _own_config(own, meta.get("model_config")), "curtail"
    except ConfigError as error:
        raise CheckpointError(f"{meta_file}: {error.message}", error.remedy) from None
    config = replace(config, **{name: value for name, value in asdict(given or Given()).items() if value is not None})
    if own is None:
        state.setdefault("resid_lambdas", torch.ones(config.n_layer))
        state.setdefault("x0_lambdas", torch.zeros(config.n_layer))
        _pad_vocabulary(state, config)
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes(found, weight_shapes(config), str(model_file))
    weights = {name: tensor.to(torch.float32).numpy() for name, tensor in sorted(state.items())}
    facts = own or {"tokens": step * _batch_tokens(meta)}
    digests = (facts.get("tokenizer_digest"), facts.get("manifest_digest"))
    return Foreign(config, weights, step, facts["tokens"], *digests, origin)


def find(path: Path, step: int | None = None) -> tuple[Path, Path, int]:
    """Model file, meta file and step of a checkpoint with nanochat's file names; see `read_nanochat`.

    Raises: NotFound. CheckpointError: the file has another name.
    """
    if path.is_dir():
        steps = {int(m[1]): file for file in path.iterdir() if (m := re.fullmatch(r"model_(\d+)\.pt", file.name))}
        if not steps or (step is not None and step not in steps):
            what = "checkpoint of nanochat" if step is None else f"model_{step:06d}.pt"
            there = "give the folder with the file model_000123.pt"
            if steps:
                there = f"there are the steps {', '.join(map(str, sorted(steps)))}"
            elif (path / META_FILE).exists():
                there = "it is a checkpoint of curtail and needs no import"
            raise NotFound(f"there is no {what} in {path}", there)
        step = max(steps) if step is None else step
        model = steps[step]
    else:
        if not path.exists():
            raise NotFound(f"there is no checkpoint {path}", "give a model's folder of nanochat, or its .pt file")
        name = re.fullmatch(r"model_(\d+)\.pt", path.name)
        if not name or step not in (None, int(name[1])):
            raise CheckpointError(
                f"{path} is not called model_{step or 123:06d}.pt",
                "keep nanochat's file name: it has the step and identifies the meta file",
            )
        model, step = path, int(name[1])
    meta = model.with_name(model.stem.replace("model", "meta") + ".json")
    if not meta.is_file():
        raise NotFound(f"there is no {meta}", "it belongs to the .pt file and describes the model; fetch it, too")
    return model, meta, step


def write_nanochat(folder: Path, meta: CheckpointMeta, weights: Mapping[str, np.ndarray], disk: Disk) -> list[Path]:
    """Write a checkpoint in nanochat's form, with the version as its step. Returns: the files, meta last.

    The key `curtail` of the meta file has the values that nanochat's form lacks; nanochat ignores it.
    Purposes: EXPORT_MODEL, EXPORT_META.
    Raises: DiskError.
    """
    config, step = meta.model_config, meta.version
    own = {
        "model_config": to_dict(config),
        "tokens": meta.tokens,
        "tokenizer_digest": meta.tokenizer_digest,
        "manifest_digest": meta.manifest_digest,
    }
    values = {
        "step": step,
        "val_bpb": None,
        "model_config": their_config(config),
        "user_config": {},
        "max_seq_len": config.sequence_len,
        _OWN: own,
    }
    model_file, meta_file = folder / f"model_{step:06d}.pt", folder / f"meta_{step:06d}.json"
    temp = model_file.with_name(f".{model_file.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temp, "wb") as file:
                torch.save(to_tensors(weights), file)
        except OSError as error:
            raise disk_error("write", model_file, error) from error
        except RuntimeError as error:  # how torch's archive writer reports a full disk
            raise DiskError(f"cannot write {model_file}: {error}", "free some space there") from error
        disk.publish("EXPORT_MODEL", temp, model_file)
    finally:
        temp.unlink(missing_ok=True)
    disk.replace("EXPORT_META", meta_file, (json.dumps(values, indent=2) + "\n").encode())
    return [model_file, meta_file]


def write_safetensors(folder: Path, meta: CheckpointMeta, weights: Mapping[str, np.ndarray], disk: Disk) -> list[Path]:
    """Write one self-contained safetensors file, with the checkpoint's meta as its metadata.

    Purpose: EXPORT_MODEL.
    Raises: DiskError.
    """
    facts = {
        "format": "pt",  # other readers of safetensors expect this key
        "model_config": to_json(meta.model_config),
        "tokens": str(meta.tokens),
        "version": str(meta.version),
        "weights_digest": meta.weights_digest,
        "tokenizer_digest": meta.tokenizer_digest or "",
        "manifest_digest": meta.manifest_digest or "",
    }
    write_tensors(folder / MODEL_FILE, weights, disk, "EXPORT_MODEL", facts)
    return [folder / MODEL_FILE]


def _read_meta(path: Path, step: int) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", "check its permissions") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON", _REMEDY) from None
    if not isinstance(meta, dict) or not isinstance(meta.get("model_config"), dict):
        raise CheckpointError(f"{path} does not describe the model: model_config is missing", _REMEDY)
    if meta.get("step", step) != step:
        raise CheckpointError(f"{path} is for step {meta['step']!r}, not {step}", "use the files of one step")
    return meta


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file that torch.save wrote, by name; mapped if they need no conversion."""
    try:
        # torch does not check the CRCs, so a damaged weight would go unnoticed.
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in archive.infolist()):
                raise CheckpointError(f"{path} is not a file of torch.save", _REMEDY)
            if damaged := archive.testzip():
                raise CheckpointError(f"{path} is damaged in {damaged}", "fetch it again")
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path} is truncated or not a file of torch.save", _REMEDY) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}", "check its permissions") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # they are about types of tensors that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE as error:
        reason = str(error).split("\n")[0][:100]
        raise CheckpointError(f"{path} has other objects than tensors, or is damaged ({reason})", _REMEDY) from None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path} does not contain a model", _NO_MODEL)
    tensors = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided:
            raise CheckpointError(f"{name!r} in {path} is not a weight", _NO_MODEL)
        if tensor.dtype not in _EXACT:
            raise CheckpointError(f"{name} in {path} is {tensor.dtype}", "weights are fp32, bf16 or fp16")
        tensors[name.removeprefix("_orig_mod.")] = tensor.detach()
    return tensors


def _own_config(own: object, model_config: object) -> GPTConfig:
    """The configuration in an export of curtail, checked against nanochat's part of it."""
    kinds = {"tokens": (int,), "tokenizer_digest": (str, type(None)), "manifest_digest": (str, type(None))}
    if not isinstance(own, dict) or any(type(own.get(name)) not in allowed for name, allowed in kinds.items()):
        raise CheckpointError(f"the entry {_OWN} of the meta file is damaged", _REMEDY)
    config = from_dict(own.get("model_config"))
    assert isinstance(model_config, dict)
    if any(getattr(config, name) != model_config.get(name) for name in NUMBERS):
        raise CheckpointError("the meta file describes two different models", _REMEDY)
    return config


def _pad_vocabulary(state: dict[str, torch.Tensor], config: GPTConfig) -> None:
    for name in ("transformer.wte.weight", "lm_head.weight"):
        tensor = state.get(name)
        if tensor is not None and tensor.ndim == 2 and tensor.size(0) == config.vocab_size:
            missing = config.padded_vocab_size - config.vocab_size
            state[name] = torch.cat((tensor, tensor.new_zeros(missing, tensor.size(1)))) if missing else tensor


def _batch_tokens(meta: dict[str, Any]) -> int:
    """Tokens of one step from the meta file; 0 if it does not say."""
    arguments = meta.get("user_config")
    places = (meta, arguments if isinstance(arguments, dict) else {})
    return next((place["total_batch_size"] for place in places if type(place.get("total_batch_size")) is int), 0)
