"""The two files through which an agent and its job communicate: control.json and status.json.

The agent writes `control.json`: train until a given time, or drain. The job
writes `status.json`: what it is doing. Both are replaced atomically, so a reader
never sees half a file. They are useless after the processes end, so they are not
fsynced. Times are seconds of `Clock.monotonic`, which all processes of one
machine share.
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
"""Folder for torchrun's own files, which say which rank failed and how."""


@dataclass(frozen=True, slots=True)
class JobOrders:
    """Agent -> job."""

    valid_until: float  # monotonic seconds; the permit's end
    drain: bool  # finish the step, commit, exit
    reason: str
    hold_until: float = 0.0  # monotonic seconds; after `valid_until` commit, then keep the weights until this time


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Job -> agent."""

    phase: str  # start, train, sync, hold
    round: int | None
    step: int
    loss: float | None
    tokens_per_s: float
    reason: str = ""  # why the job waits or why it ended
    exit_code: int | None = None  # set once, in the job's last status
    handing_in: float | None = None  # until when the upload of a contribution may take, monotonic seconds


Kind = TypeVar("Kind", JobOrders, JobStatus)


def write_orders(folder: Path, orders: JobOrders) -> None:
    """Write the orders for the job in `folder`.

    Raises: DiskError.
    """
    _write(folder / CONTROL, orders)


def read_orders(folder: Path) -> JobOrders | None:
    """The agent's orders; None if they cannot be read, which means drain."""
    return _read(folder / CONTROL, JobOrders)


def write_status(folder: Path, status: JobStatus) -> None:
    """Write the status of the job in `folder`.

    Raises: DiskError.
    """
    _write(folder / STATUS, status)


def read_status(folder: Path) -> JobStatus | None:
    """The job's status; None if there is none that can be read."""
    return _read(folder / STATUS, JobStatus)


def must_drain(orders: JobOrders | None, now: float) -> str | None:
    """Why the job must drain at `now`, or None if it may go on."""
    if orders is None:
        return "the agent's control file cannot be read"
    if orders.drain:
        return orders.reason or "the agent asked for it"
    if now > max(orders.valid_until, orders.hold_until):
        return "the permit expired: no new orders from the agent"
    return None


def must_hold(orders: JobOrders | None, now: float) -> str | None:
    """Why the job must not train at `now` but may keep its weights on the GPUs, or None."""
    if must_drain(orders, now) is not None or orders is None or now <= orders.valid_until:
        return None
    return orders.reason or "a short gap"


def last_log_line(folder: Path, limit: int = 300) -> str:
    """The last non-empty line of the job's log, cut to `limit` characters; empty if there is none."""
    return last_line(folder / LOG, limit)


def _write(path: Path, value: JobOrders | JobStatus) -> None:
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
    hints = hints_of(typing.cast(Any, kind))  # mypy does not see that these classes are hashable
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
