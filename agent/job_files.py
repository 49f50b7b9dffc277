"""The folder through which an agent and its job talk: two small files.

`control.json` is the agent's word to the job: train until a moment, or drain.
`status.json` is the job's word to the agent: what it is doing. Both are
replaced whole, so a reader sees an old or a new one, never half. They live no
longer than the processes, so nothing is fsynced. Moments are seconds of
`Clock.monotonic`, which all processes of one machine share.
"""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from curtail.system.disk import disk_error, last_line
from curtail.wire import hints_of

CONTROL = "control.json"
STATUS = "status.json"
LOG = "job.log"
OF_TORCHRUN = "torchrun"
"""A folder for torchrun's own files: which rank failed, and how."""


@dataclass(frozen=True, slots=True)
class Orders:
    """Agent -> job."""

    valid_until: float  # monotonic seconds; the permit's end
    drain: bool  # finish the step, commit, exit
    reason: str
    hold_until: float = 0.0  # monotonic seconds; after `valid_until` commit, and wait until then with the weights


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Job -> agent."""

    phase: str  # start, train, sync, hold
    round: int | None
    step: int
    loss: float | None
    tokens_per_s: float
    reason: str = ""  # why the job waits or why it ended
    exit_code: int | None = None  # set once, as the job's last word
    handing_in: float | None = None  # until when a finished contribution may need, monotonic seconds


Kind = TypeVar("Kind", Orders, JobStatus)


def write_orders(folder: Path, orders: Orders) -> None:
    """Tell the job in `folder`.

    Raises: DiskError.
    """
    _write(folder / CONTROL, orders)


def read_orders(folder: Path) -> Orders | None:
    """What the agent says; None if that cannot be read, which means drain."""
    return _read(folder / CONTROL, Orders)


def write_status(folder: Path, status: JobStatus) -> None:
    """Tell the agent of `folder`.

    Raises: DiskError.
    """
    _write(folder / STATUS, status)


def read_status(folder: Path) -> JobStatus | None:
    """What the job says; None if it has not said anything readable."""
    return _read(folder / STATUS, JobStatus)


def must_drain(orders: Orders | None, now: float) -> str | None:
    """Why the job must drain at `now`, or None if it may go on."""
    if orders is None:
        return "the agent's control file cannot be read"
    if orders.drain:
        return orders.reason or "the agent asked for it"
    if now > max(orders.valid_until, orders.hold_until):
        return "the permit lapsed: no word from the agent"
    return None


def must_hold(orders: Orders | None, now: float) -> str | None:
    """Why the job must not train at `now` but may keep its weights on the GPUs, or None."""
    if must_drain(orders, now) is not None or orders is None or now <= orders.valid_until:
        return None
    return orders.reason or "a short gap"


def last_log_line(folder: Path, limit: int = 300) -> str:
    """The last non-empty line of the job's log, cut to `limit` characters; empty if there is none."""
    return last_line(folder / LOG, limit)


def _write(path: Path, value: Orders | JobStatus) -> None:
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temp.write_text(json.dumps(dataclasses.asdict(value)), encoding="utf-8")
        os.replace(temp, path)
    except OSError as error:
        raise disk_error("write", path, error) from error


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    hints = hints_of(typing.cast(Any, kind))  # a class can be hashed, which mypy doubts of these
    if not isinstance(value, dict) or set(value) != set(hints):
        return None
    if not all(_fits(hint, value[name]) for name, hint in hints.items()):
        return None
    return kind(**value)


def _fits(hint: Any, value: Any) -> bool:
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))
