"""Is the folder of a controller or of an agent in order: owner, modes, room, and what is in it."""

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
"""Certificates: everybody may read them."""

AGENT_ROOM = 10_000_000_000
"""Bytes; an agent keeps token files, weights, and two states of an optimizer."""

GIGABYTE = 1_000_000_000


class Kind(StrEnum):
    """Whose folder it is."""

    CONTROLLER = "controller"
    AGENT = "agent"
    NONE = "none"


def kind_of(home: Path) -> Kind:
    """By what lies in it."""
    if (home / STORE).exists():
        return Kind.CONTROLLER
    return Kind.AGENT if (home / IDENTITY).exists() else Kind.NONE


def state(home: Path) -> list[Finding]:
    """Whose it is, and whether this user can write there."""
    if home.exists() and not home.is_dir():
        return [fail("folder", f"{home} is a file", "give the folder that is used with --home")]
    check_store_is_there(home)
    kind = kind_of(home)
    if not home.is_dir():
        return [warn("folder", f"{home} does not exist yet", "it is made at the first start; or give another --home")]
    if kind is Kind.NONE:
        return [warn("folder", f"{home} holds neither a run nor an agent", "give the folder that is used with --home")]
    owner, me = home.stat().st_uid, os.geteuid()
    if owner != me:
        remedy = f"run as user {owner}, or change the owner of everything in it"
        return [fail("folder", f"the {kind}'s folder {home} belongs to user {owner}, this is user {me}", remedy)]
    strangers = next((p for p in home.iterdir() if not p.is_symlink() and p.stat().st_uid != owner), None)
    if strangers is not None:
        return [fail("folder", f"{strangers} belongs to another user", f"chown -R {owner} {home}")]
    if not os.access(home, os.W_OK | os.X_OK):
        return [fail("folder", f"{home} cannot be written", f"chmod u+rwx {home}; is the disk mounted read-only?")]
    return [fine("folder", f"{kind} in {home}"), *_open_to_others(home)]


def _open_to_others(home: Path) -> list[Finding]:
    """A folder that others may look into, or put files into. A new one has mode 0700; an older one keeps its own."""
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o022:
        words = f"{home} has mode {mode:04o}: others can replace what is in it, keys and tokens too"
        return [fail("folder", words, f"chmod 700 {home}")]
    if mode & 0o055:
        words = f"{home} has mode {mode:04o}: other users of this machine can look into it"
        return [warn("folder", words, f"chmod 700 {home}, if nobody else needs what is in it")]
    return []


def secrets(home: Path, more: tuple[Path, ...] = ()) -> list[Finding]:
    """May only the owner read what lets somebody in? `more`: token files that were named."""
    patterns = {Kind.CONTROLLER: SECRETS, Kind.AGENT: AGENTS_SECRETS, Kind.NONE: ()}[kind_of(home)]
    files = [path for pattern in patterns for path in sorted(home.glob(pattern)) if path.name not in PUBLIC]
    files += [path for path in more if path.is_file()]
    found = []
    for path in files:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            found.append(fail("secrets", f"{path} has mode {mode:04o}: others can read it", f"chmod 600 {path}"))
    if not found and files:
        found.append(fine("secrets", f"only their owner can read the {len(files)} secret files"))
    return found


def room(home: Path, free: Callable[[Path], int] = free_bytes) -> list[Finding]:
    """Is there enough room to train on?"""
    place = next(folder for folder in (home, *home.absolute().parents) if folder.is_dir())
    left = free(place)
    if kind_of(home) is Kind.CONTROLLER:
        with reading(home / STORE) as tx:
            run, sites = tx.run(), len(tx.sites())
        low = 0
        if run is not None:
            low = low_water(file_sizes(presets.from_json(run.model), config_from_json(run.config).rounds), sites)
        if words := judge(left, low, short=False):
            return [fail("disk", words, "free space there; the run goes on by itself")]
        if left < 2 * low:
            remedy = "lower keep_versions, or move the folder: docs/guides/operations.md"
            words = f"{left / GIGABYTE:.1f} GB left; below {low / GIGABYTE:.1f} GB the run pauses"
            return [warn("disk", words, remedy)]
    elif left < AGENT_ROOM:
        return [warn("disk", f"{left / GIGABYTE:.1f} GB left", "an agent needs about 10 GB for a model of 561 million")]
    return [fine("disk", f"{left / GIGABYTE:.1f} GB left")]


def store(home: Path) -> list[Finding]:
    """Is the store sound, and does the data ledger balance? Also while its controller runs."""
    if kind_of(home) is not Kind.CONTROLLER:
        return []
    examine_file(home / STORE)
    found = [fine("store", "SQLite finds no damage")]
    broken = [f"{what}: {problem}" for what, problem in look(home, weights=False) if problem is not None]
    if broken:
        return [*found, fail("ledger", f"the data ledger does not balance: {broken[0]}", RESTORE)]
    return [*found, fine("ledger", "every sample and token has one fate")]


def running(home: Path) -> list[Finding]:
    """Does a controller run there, or was it killed?"""
    if kind_of(home) is not Kind.CONTROLLER or not was_killed(home):
        return []
    pid = process_of(home)
    if alive(pid):
        return [fine("running", f"its controller runs, process {pid}")]
    remedy = "start it again: it checks the whole store first"
    return [warn("running", "its controller did not end in order", remedy)]


def process_of(home: Path) -> int | None:
    """The process id that the controller of `home` left, if it can be read."""
    try:
        return int(json.loads((home / ADDRESS).read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def agent_of(home: Path) -> str:
    """That the agent of `home` runs, in words; "" if it does not."""
    try:
        pid = int((home / AGENT_LOCK).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return ""
    return f"the agent of this folder runs, process {pid}" if alive(pid) else ""


def alive(pid: int | None) -> bool:
    """Is there a process of that number?"""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
