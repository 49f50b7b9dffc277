"""Checks of a controller's or agent's folder: owner, permissions, free space, store and ledger."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from controller.files.disk_space import file_sizes, free_bytes, judge, low_water
from controller.home.backup import SECRETS
from controller.home.data_ledger import look
from controller.home.home import check_store_is_there
from controller.home.housekeeping import was_killed
from controller.store import reading
from controller.store.sqlite_file import RESTORE, examine_file
from curtail.commands.doctor.finding import Finding, fail, fine, warn
from curtail.config import config_from_json
from curtail.system.home_files import ADDRESS, AGENT_LOCK, IDENTITY, STORE
from nanochat import presets

AGENTS_SECRETS = ("credential", IDENTITY, "key.pem")
PUBLIC = ("ca.pem", "controller.pem")
"""Certificates, which anyone may read."""

AGENT_ROOM = 10_000_000_000
"""Bytes that an agent needs for token files, weights and two optimizer states."""

GIGABYTE = 1_000_000_000


class Kind(StrEnum):
    """Kind of process that the folder belongs to."""

    CONTROLLER = "controller"
    AGENT = "agent"
    NONE = "none"


def kind_of(home: Path) -> Kind:
    """The kind of the folder, from the files in it."""
    if (home / STORE).exists():
        return Kind.CONTROLLER
    return Kind.AGENT if (home / IDENTITY).exists() else Kind.NONE


def state(home: Path) -> list[Finding]:
    """Check that the folder is one of ours, its owner and its permissions."""
    if home.exists() and not home.is_dir():
        return [fail("folder", f"{home} is a file", "give the same folder as --home of the controller or agent")]
    check_store_is_there(home)
    kind = kind_of(home)
    if not home.is_dir():
        return [
            warn("folder", f"{home} does not exist yet", "the first start creates it; otherwise give another --home")
        ]
    if kind is Kind.NONE:
        remedy = "give the same folder as --home of the controller or agent"
        return [warn("folder", f"{home} holds neither a run nor an agent", remedy)]
    owner, me = home.stat().st_uid, os.geteuid()
    if owner != me:
        remedy = f"run as user {owner}, or change the owner of everything in it"
        words = f"the {kind}'s folder {home} belongs to user {owner}, but the doctor runs as user {me}"
        return [fail("folder", words, remedy)]
    foreign = next((p for p in home.iterdir() if not p.is_symlink() and p.stat().st_uid != owner), None)
    if foreign is not None:
        return [fail("folder", f"{foreign} belongs to another user", f"chown -R {owner} {home}")]
    if not os.access(home, os.W_OK | os.X_OK):
        remedy = f"chmod u+rwx {home}; check whether the disk is mounted read-only"
        return [fail("folder", f"{home} is not writable", remedy)]
    return [fine("folder", f"{kind} in {home}"), *_open_to_others(home)]


def _open_to_others(home: Path) -> list[Finding]:
    """Findings on a folder that other users can read or write. New folders have mode 0700; older ones keep theirs."""
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o022:
        words = f"{home} has mode {mode:04o}: other users can replace files in it, including keys and tokens"
        return [fail("folder", words, f"chmod 700 {home}")]
    if mode & 0o055:
        words = f"{home} has mode {mode:04o}: other users of this machine can list its files"
        return [warn("folder", words, f"chmod 700 {home}, unless other users need its files")]
    return []


def secrets(home: Path, more: tuple[Path, ...] = ()) -> list[Finding]:
    """Check that only the owner can read keys and tokens. `more`: token files given on the command line."""
    patterns = {Kind.CONTROLLER: SECRETS, Kind.AGENT: AGENTS_SECRETS, Kind.NONE: ()}[kind_of(home)]
    files = [path for pattern in patterns for path in sorted(home.glob(pattern)) if path.name not in PUBLIC]
    files += [path for path in more if path.is_file()]
    found = []
    for path in files:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            found.append(fail("secrets", f"{path} has mode {mode:04o}: other users can read it", f"chmod 600 {path}"))
    if not found and files:
        found.append(fine("secrets", f"only the owner can read the {len(files)} secret files"))
    return found


def room(home: Path, free: Callable[[Path], int] = free_bytes) -> list[Finding]:
    """Check the free disk space."""
    place = next(folder for folder in (home, *home.absolute().parents) if folder.is_dir())
    left = free(place)
    if kind_of(home) is Kind.CONTROLLER:
        with reading(home / STORE) as tx:
            run, sites = tx.run(), len(tx.sites())
        low = 0
        if run is not None:
            low = low_water(file_sizes(presets.from_json(run.model), config_from_json(run.config).rounds), sites)
        if words := judge(left, low, short=False):
            return [fail("disk", words, "free some space there; the run then continues by itself")]
        if left < 2 * low:
            remedy = "lower keep_versions, or move the folder: docs/guides/operations.md"
            words = f"{left / GIGABYTE:.1f} GB free; below {low / GIGABYTE:.1f} GB the run pauses"
            return [warn("disk", words, remedy)]
    elif left < AGENT_ROOM:
        remedy = "free some space: an agent needs about 10 GB for a model with 561 million parameters"
        return [warn("disk", f"{left / GIGABYTE:.1f} GB free", remedy)]
    return [fine("disk", f"{left / GIGABYTE:.1f} GB free")]


def store(home: Path) -> list[Finding]:
    """Check the integrity of the store and of the data ledger, even while the controller runs."""
    if kind_of(home) is not Kind.CONTROLLER:
        return []
    examine_file(home / STORE)
    found = [fine("store", "SQLite finds no damage")]
    broken = [f"{what}: {problem}" for what, problem in look(home, weights=False) if problem is not None]
    if broken:
        return [*found, fail("ledger", f"the data ledger does not balance: {broken[0]}", RESTORE)]
    return [*found, fine("ledger", "every sample and token is accounted for exactly once")]


def running(home: Path) -> list[Finding]:
    """Check whether the controller is running or was killed."""
    if kind_of(home) is not Kind.CONTROLLER or not was_killed(home):
        return []
    pid = process_of(home)
    if alive(pid):
        return [fine("running", f"the controller is running, process {pid}")]
    remedy = "start it again; it will check the whole store first"
    return [warn("running", "the controller did not shut down cleanly", remedy)]


def process_of(home: Path) -> int | None:
    """The process id in the controller's file in `home`, if it can be read."""
    try:
        return int(json.loads((home / ADDRESS).read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def agent_of(home: Path) -> str:
    """The running agent of `home`, for display; "" if it does not run."""
    try:
        pid = int((home / AGENT_LOCK).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return ""
    return f"the agent of this folder runs, process {pid}" if alive(pid) else ""


def alive(pid: int | None) -> bool:
    """Whether there is a process with this id."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
