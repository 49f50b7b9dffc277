"""Installs a systemd unit: `curtail controller service install`, `curtail agent service install`.

Nothing is written without systemd, over a file that curtail did not write, or without
permission. The text of the unit comes from `curtail.commands.systemd.units`. The unit
is not started; the commands for that are printed.
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
"""Exists exactly if the machine was booted with systemd: sd_booted(3)."""


def call(command: Sequence[str]) -> int:
    """Run a command and return its exit code; its output is not captured."""
    return subprocess.run(list(command), check=False).returncode


@dataclass(frozen=True, slots=True)
class Machine:
    """The properties of this machine that matter here; tests pass a fake."""

    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    booted: Callable[[], bool] = BOOTED.is_dir
    call: Callable[[Sequence[str]], int] = call
    system_folder: Path = SYSTEM_FOLDER
    root: Callable[[], bool] = lambda: os.geteuid() == 0
    systemctl: Callable[[], str | None] = lambda: shutil.which("systemctl")

    def folder(self, system: bool) -> Path:
        """The folder for system units, or for this user's units."""
        if system:
            return self.system_folder
        base = self.environment.get("XDG_CONFIG_HOME", "")
        return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "systemd" / "user"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options of the command line."""

    kind: units.Kind
    words: tuple[str, ...]  # the command: controller start ..., agent join ...
    name: str
    system: bool
    user: str = ""
    dry_run: bool = False


def unit_of(wanted: Wanted, folder: Path) -> str:
    """The unit's text. Raises: UsageError."""
    if not units.NAME.fullmatch(wanted.name):
        raise UsageError(f"{wanted.name!r} is not a valid name of a unit", "use letters, digits, '.', '_' and '-'")
    if wanted.user and not wanted.system:
        raise UsageError("--as needs --system", "add --system, or omit --as")
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
    """Variables that make Python find our packages, and not packages of the same name in the working directory."""
    from agent.launcher import source_folder

    source = source_folder()
    return {"PYTHONSAFEPATH": "1", **({} if source is None else {"PYTHONPATH": str(source)})}


def install(wanted: Wanted, machine: Machine | None = None) -> int:
    """Write the unit, or print it with `dry_run`; returns the exit code.

    Raises: UsageError. CurtailError: no systemd. Refused: the file is not ours. DiskError: it cannot be written.
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
            "print the unit with --dry-run and run the command in its ExecStart with another supervisor",
        )
    if wanted.system and not machine.root():
        raise Refused("only root may install a system unit", "use sudo, or omit --system")
    path = machine.folder(wanted.system) / f"{wanted.name}.service"
    _write(path, made)
    scope = [] if wanted.system else ["--user"]
    if machine.call([systemctl, *scope, "daemon-reload"]) != 0:
        raise CurtailError(f"{path} was written, but systemd did not reload", "run systemctl daemon-reload")
    _explain(path, wanted)
    return 0


def _write(path: Path, made: str) -> None:
    try:
        before = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        before = units.MARK
    except OSError as error:
        raise CurtailError(f"cannot read {path}: {error.strerror}", "check its owner and permissions") from None
    if not before.startswith(units.MARK):
        raise Refused(f"{path} was not written by curtail", "give another --name, or move the file away")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CurtailError(
            f"cannot create {path.parent}: {error.strerror}", "check the owner and permissions of its parent"
        ) from None
    SystemDisk().replace("UNIT", path, made.encode())


def _explain(path: Path, wanted: Wanted) -> None:
    scope = "" if wanted.system else "--user "
    print(path)
    print(f"start it now and at every boot: systemctl {scope}enable --now {wanted.name}", file=sys.stderr)
    if not wanted.system:
        print(f"keep it running while logged out: loginctl enable-linger {getpass.getuser()}", file=sys.stderr)
    print(f"read its log: journalctl {scope}-u {wanted.name}", file=sys.stderr)
