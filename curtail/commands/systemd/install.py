"""`curtail controller service install`, `curtail agent service install`: a program that systemd keeps running.

Decides where the unit lies and when nothing is written: without systemd, over a
file of somebody else, without the right to. The text is made by
`curtail.commands.systemd.units`. Nothing is started: the commands for that are printed.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from curtail.commands.systemd import units
from curtail.errors import CurtailError, Refused, UsageError
from curtail.system.disk import SystemDisk

SYSTEM_FOLDER = Path("/etc/systemd/system")
BOOTED = Path("/run/systemd/system")
"""There exactly while systemd is the first process: sd_booted(3)."""


def call(command: Sequence[str]) -> int:
    """The exit code of a command; its output goes where ours does."""
    return subprocess.run(list(command), check=False).returncode


@dataclass(frozen=True, slots=True)
class Machine:
    """What is asked of this machine; tests pass a made-up one."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    booted: Callable[[], bool] = BOOTED.is_dir
    call: Callable[[Sequence[str]], int] = call
    system_folder: Path = SYSTEM_FOLDER
    root: Callable[[], bool] = lambda: os.geteuid() == 0
    systemctl: Callable[[], str | None] = lambda: shutil.which("systemctl")

    def folder(self, system: bool) -> Path:
        """Where units lie: the system's, or this user's."""
        if system:
            return self.system_folder
        base = self.environment.get("XDG_CONFIG_HOME", "")
        return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "systemd" / "user"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    kind: units.Kind
    words: tuple[str, ...]  # the command: controller start ..., agent join ...
    name: str
    system: bool
    user: str = ""
    dry_run: bool = False


def unit_of(wanted: Wanted, folder: Path) -> str:
    """The unit's text. Raises: UsageError."""
    if not units.NAME.fullmatch(wanted.name):
        raise UsageError(f"{wanted.name!r} cannot be the name of a unit", "use letters, digits, '.', '_' and '-'")
    if wanted.user and not wanted.system:
        raise UsageError("--as names the user of a system unit", "add --system, or leave --as out")
    unit = units.Unit(
        wanted.kind,
        (sys.executable, "-m", "curtail", *wanted.words),
        folder,
        _environment(),
        wanted.system,
        wanted.user,
    )
    try:
        return units.text(unit)
    except ValueError as error:
        raise UsageError(str(error), "give other arguments") from None


def _environment() -> dict[str, str]:
    """What makes our packages be found, and no namesakes in the working folder."""
    from agent.launcher import source_folder

    source = source_folder()
    return {"PYTHONSAFEPATH": "1", **({} if source is None else {"PYTHONPATH": str(source)})}


def install(wanted: Wanted, machine: Machine | None = None) -> int:
    """Write the unit, or print it with `dry_run`; returns the exit code.

    Raises: UsageError. CurtailError: no systemd here. Refused: another's file. DiskError: no right to write it.
    """
    machine = machine or Machine()
    made = unit_of(wanted, Path.cwd())
    if wanted.dry_run:
        print(made, end="")
        return 0
    systemctl = machine.systemctl()
    if systemctl is None or not machine.booted():
        raise CurtailError(
            "this machine does not run systemd",
            "print the unit with --dry-run and let another supervisor start the command in its ExecStart",
        )
    if wanted.system and not machine.root():
        raise Refused("only root may install a unit of the system", "use sudo, or leave --system out")
    path = machine.folder(wanted.system) / f"{wanted.name}.service"
    _write(path, made)
    scope = [] if wanted.system else ["--user"]
    if machine.call([systemctl, *scope, "daemon-reload"]) != 0:
        raise CurtailError(f"{path} was written, but systemd could not be told", "run systemctl daemon-reload")
    _explain(path, wanted)
    return 0


def _write(path: Path, made: str) -> None:
    try:
        before = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        before = units.MARK
    except OSError as error:
        raise CurtailError(f"cannot read {path}: {error.strerror}", "check its owner and its mode") from None
    if not before.startswith(units.MARK):
        raise Refused(f"{path} was not written by curtail", "give another --name, or move the file away")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurtailError(f"cannot create {path.parent}: {error.strerror}", "check its owner and its mode") from None
    SystemDisk().replace("UNIT", path, made.encode())


def _explain(path: Path, wanted: Wanted) -> None:
    scope = "" if wanted.system else "--user "
    print(path)
    print(f"start it now and at every boot: systemctl {scope}enable --now {wanted.name}", file=sys.stderr)
    if not wanted.system:
        print(f"so that it runs while nobody is logged in: loginctl enable-linger {getpass.getuser()}", file=sys.stderr)
    print(f"see what it says: journalctl {scope}-u {wanted.name}", file=sys.stderr)
