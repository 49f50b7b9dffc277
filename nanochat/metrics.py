"""Writes the metrics of a training run: one JSON line per step, and optionally W&B.

OUT/metrics.jsonl has each step once, in order, also after a kill and a resume: lines
after the checkpoint from which the run resumes are dropped. Lines are written at once
but not fsynced, because training can produce them again. Units are in the names of the
fields; losses are in nats per token.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import IO, Any

from curtail.errors import CurtailError, UsageError
from curtail.system.disk import Disk, disk_error

METRICS_FILE = "metrics.jsonl"


WANDB_FOLDER = "wandb"
"""Folder in OUT for all files that W&B writes on this machine."""


def require_wandb() -> None:
    """Raises: UsageError: the package wandb is not installed."""
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # without origin it is only a folder `wandb`, left by an earlier run
        raise UsageError(
            "--wandb needs the package wandb, which is not installed",
            f"install it with `pip install wandb`, or leave out --wandb: {METRICS_FILE} is always written",
        )


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, oldest first, without an incomplete last line."""
    try:
        lines = (out / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise disk_error("read", out / METRICS_FILE, error) from error
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            found.append(value)
    return found


class Metrics:
    """Writes the metrics of a run; on rank 0 only.

    Args:
        after: the step from which the run resumes; later lines are dropped.
        wandb: also send everything to W&B, with `settings` as the run's configuration.
    Raises: DiskError. UsageError: wandb is requested and not installed. CurtailError: W&B refuses the run.
    """

    def __init__(self, out: Path, after: int, disk: Disk, *, wandb: bool, settings: dict[str, Any]) -> None:
        self._path = out / METRICS_FILE
        self._run: Any = None
        if wandb:
            require_wandb()
            self._run = _wandb_run(out.resolve(), settings)
        kept = [line for line in read_metrics(out) if line["step"] <= after]
        disk.replace("METRICS", self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file: IO[str] = self._open()

    def _open(self) -> IO[str]:
        try:
            return open(self._path, "a", encoding="utf-8")
        except OSError as error:
            raise disk_error("write", self._path, error) from error

    def write(self, line: dict[str, Any]) -> None:
        """Add a line; a number that is not finite becomes null. Raises: DiskError."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise disk_error("write", self._path, error) from error
        if self._run is not None:
            self._run.log({k: v for k, v in clean.items() if v is not None}, step=line["step"])

    def close(self) -> None:
        """Close the file, and the W&B run."""
        self._file.close()
        if self._run is not None:
            self._run.finish()


def _wandb_run(out: Path, settings: dict[str, Any]) -> Any:
    """A new W&B run that gets only the lines and `settings`, unless the environment says otherwise.

    Its local files are in OUT/wandb. WANDB_MODE=offline sends nothing.
    Raises: CurtailError: W&B refuses the run.
    """
    kept = out / WANDB_FOLDER
    modest = {
        "WANDB_CACHE_DIR": str(kept / "cache"),
        "WANDB_DATA_DIR": str(kept / "data"),
        "WANDB_ARTIFACT_DIR": str(kept / "artifacts"),
        "WANDB_ERROR_REPORTING": "false",  # reports of W&B's own errors to its developers
        "WANDB_DISABLE_CODE": "true",
        "WANDB_DISABLE_GIT": "true",
        "WANDB_CONSOLE": "off",
    }
    for name, value in modest.items():
        os.environ.setdefault(name, value)  # W&B reads them once, when it is imported
    module: Any = importlib.import_module("wandb")
    try:
        return module.init(project="curtail", name=out.name, config=settings, dir=str(out))
    except module.errors.Error as error:
        raise CurtailError(
            f"W&B refuses this run: {error}", "run `wandb login`, set WANDB_MODE=offline, or leave out --wandb"
        ) from error
