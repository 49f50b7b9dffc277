"""The commands that a person gives for a machine that pauses and resumes: on_pause and on_resume.

Decides which of them is due, and remembers across restarts of the agent what was
begun: on_pause counts as run from the moment it is started, on_resume only once
it succeeded, so that no pause is answered twice and no on_resume is forgotten.
When a machine pauses is decided by `agent.lifecycle`. Commands are run by a shell in
the agent's folder, through the agent's own way to start processes; each has a
time limit. Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agent.launcher import WITHHELD_VARIABLES, Process, Spawn
from curtail.errors import CurtailError
from curtail.system.clock import Clock
from curtail.system.disk import Disk, disk_error, last_line

LIMIT_S = 300.0
"""How long a command may take if nothing else was said."""

TERMINATE_S = 10.0
"""From SIGTERM to SIGKILL."""

UNREACHABLE_S = 30.0
"""A machine without a permit pauses although nobody says so, once the controller was not reached for so long."""


class Condition(StrEnum):
    """What the machine is known to be; the value is what the file holds."""

    UNKNOWN = "unknown"  # nothing is known, or on_resume was begun and has not succeeded
    AWAKE = "awake"  # on_resume succeeded
    PAUSED = "paused"  # on_pause was begun


class Hook(StrEnum):
    """The commands, by the names of their options."""

    ON_PAUSE = "on_pause"
    ON_RESUME = "on_resume"


@dataclass(frozen=True, slots=True)
class Commands:
    """What a person gave; an empty text is no command."""

    on_pause: str = ""
    on_resume: str = ""
    limit_s: float = LIMIT_S

    def __bool__(self) -> bool:
        return bool(self.on_pause or self.on_resume)

    def of(self, hook: Hook) -> str:
        """The command of `hook`."""
        return self.on_pause if hook is Hook.ON_PAUSE else self.on_resume


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    hook: Hook
    failed: bool
    words: str  # its exit code or what else happened, and the last line it printed


class Hooks:
    """The commands of one machine, of which at most one runs at a time.

    Args:
        folder: the agent's own; holds `hooks.json` and `hooks/NAME.log`.
        variables: what each command finds in its environment besides the agent's own.
    """

    def __init__(
        self, commands: Commands, folder: Path, variables: Mapping[str, str], disk: Disk, clock: Clock, spawn: Spawn
    ) -> None:
        self.commands = commands
        self.running: Hook | None = None
        self.ended: Ended | None = None  # the command that ran, until that is taken in
        self.note = ""  # how the latest command failed, until one succeeds or a job starts
        self.failures = 0  # of on_resume, in a row
        self._folder, self._variables = folder, dict(variables)
        self._disk, self._clock, self._spawn = disk, clock, spawn
        self._process: Process | None = None
        self._failure: str | None = None  # why the command could not be started
        self._began = 0.0
        self._terminated = self._killed = False
        self.condition = self._stored()

    @property
    def pause_due(self) -> bool:
        """Is a machine that is to pause still to run on_pause?"""
        return bool(self.commands.on_pause) and self.condition is not Condition.PAUSED

    @property
    def resume_due(self) -> bool:
        """Is a machine that may train still to run on_resume?"""
        return bool(self.commands.on_resume) and self.condition is not Condition.AWAKE

    def rest(self) -> None:
        """The machine pauses, and there is no on_pause to run: on_resume is due before the next job."""
        if self.commands and not self.commands.on_pause and self.condition is not Condition.PAUSED:
            try:
                self._note(Condition.PAUSED)
            except CurtailError as error:
                self.note = str(error)

    def wake(self) -> None:
        """A job starts. If there is no on_resume, this is what makes on_pause due after it. Raises: DiskError."""
        self.note = ""
        if self.commands and not self.commands.on_resume and self.condition is not Condition.AWAKE:
            self._note(Condition.AWAKE)

    def begin(self, hook: Hook, reason: str) -> None:
        """Start the command; what goes wrong here is told by `look`, as everything else."""
        self.running, self.ended, self._began = hook, None, self._clock.monotonic()
        self._process, self._failure, self._terminated, self._killed = None, None, False, False
        log = self._log(hook)
        env = self._variables | {"CURTAIL_REASON": reason, "CURTAIL_HOOK": hook.value}
        try:
            # Written before the command is started: whatever happens then, on_resume is not forgotten.
            self._note(Condition.PAUSED if hook is Hook.ON_PAUSE else Condition.UNKNOWN)
            _empty(log)
            self._process = self._spawn(["/bin/sh", "-c", self.commands.of(hook)], env, self._folder, log)
        except CurtailError as error:
            self._failure = str(error)

    def observe(self) -> None:
        """Take notice if the command has ended."""
        if self.ended is None:
            self.ended = self.look()

    @property
    def failed(self) -> bool | None:
        """How the command ended; None while it runs."""
        return None if self.ended is None else self.ended.failed

    def take(self) -> Ended:
        """The end of the command, once; counts failures of on_resume."""
        ended, self.ended = self.ended, None
        assert ended is not None, "the end of a command is taken in only once it was seen"
        self.note = ended.words if ended.failed else ""
        if ended.hook is Hook.ON_RESUME:
            self.failures = self.failures + 1 if ended.failed else 0
        return ended

    def look(self) -> Ended | None:
        """Has the command ended? One that takes too long is ended here, first politely."""
        hook = self.running
        if hook is None:
            return None
        if self._process is None:
            return self._over(Ended(hook, True, f"{hook} could not be run: {self._failure}"))
        code = self._process.poll()
        if code is None:
            self._press(self._process)
            return None
        said = last_line(self._log(hook))
        if self._terminated:
            what = f"{hook} did not end within {self.commands.limit_s:.0f} s"
        else:
            what = f"{hook} ended with {code}"
        failed = self._terminated or code != 0
        if not failed and hook is Hook.ON_RESUME:
            try:
                self._note(Condition.AWAKE)
            except CurtailError as error:  # it would be run again after a restart, which does no harm
                said = f"{said}; {error}" if said else str(error)
        return self._over(Ended(hook, failed, f"{what}: {said}" if said else what))

    def kill(self) -> None:
        """End the command at once, if one runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.signal_group(signal.SIGKILL)

    def _press(self, process: Process) -> None:
        taken = self._clock.monotonic() - self._began
        if taken >= self.commands.limit_s and not self._terminated:
            self._terminated = True
            process.signal_group(signal.SIGTERM)
        elif taken >= self.commands.limit_s + TERMINATE_S and not self._killed:
            self._killed = True
            process.signal_group(signal.SIGKILL)

    def _over(self, ended: Ended) -> Ended:
        self.running, self._process = None, None
        return ended

    def _log(self, hook: Hook) -> Path:
        return self._folder / "hooks" / f"{hook}.log"

    def _stored(self) -> Condition:
        try:
            return Condition(json.loads((self._folder / "hooks.json").read_text(encoding="utf-8"))["condition"])
        except (OSError, ValueError, TypeError, KeyError):
            return Condition.UNKNOWN  # both commands are due then

    def _note(self, condition: Condition) -> None:
        self._disk.replace("HOOKS", self._folder / "hooks.json", json.dumps({"condition": condition.value}).encode())
        self.condition = condition


def hook_variables(site: str, region: str, url: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a machine's commands: the agent's own without secrets, and what the machine is."""
    env = {name: value for name, value in inherited.items() if name not in WITHHELD_VARIABLES}
    return env | {"CURTAIL_SITE": site, "CURTAIL_REGION": region, "CURTAIL_URL": url}


def _empty(log: Path) -> None:
    """Make the log of the latest run ready. Raises: DiskError."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    except OSError as error:
        raise disk_error("write", log, error) from error
