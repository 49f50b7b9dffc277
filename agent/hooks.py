"""Runs the user's on_pause and on_resume commands when the machine pauses and resumes.

Decides which command is due and stores that across restarts of the agent.
on_pause counts as run once it is started, on_resume only once it succeeded. So
on_pause does not run twice for one pause, and on_resume is never skipped.
`agent.lifecycle` decides when a machine pauses. A shell runs the commands in the
agent's folder, started through the injected `Spawn`. Each command has a timeout.
Units: seconds of `Clock.monotonic`.
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
"""Default timeout of a command."""

TERMINATE_S = 10.0
"""Time from SIGTERM to SIGKILL."""

UNREACHABLE_S = 30.0
"""A machine without a permit pauses once the controller has been unreachable for this long."""


class Condition(StrEnum):
    """The last known condition of the machine; the value is stored in the file."""

    UNKNOWN = "unknown"  # nothing is known, or on_resume was started and has not succeeded
    AWAKE = "awake"  # on_resume succeeded
    PAUSED = "paused"  # on_pause was started


class Hook(StrEnum):
    """The two commands; the value is the name of the option."""

    ON_PAUSE = "on_pause"
    ON_RESUME = "on_resume"


@dataclass(frozen=True, slots=True)
class Commands:
    """The commands that the user gave; an empty string means none."""

    on_pause: str = ""
    on_resume: str = ""
    limit_s: float = LIMIT_S

    def __bool__(self) -> bool:
        return bool(self.on_pause or self.on_resume)

    def of(self, hook: Hook) -> str:
        """The command of `hook`."""
        return self.on_pause if hook is Hook.ON_PAUSE else self.on_resume


@dataclass(frozen=True, slots=True)
class HookResult:
    """How a command ended."""

    hook: Hook
    failed: bool
    words: str  # its exit code or what else happened, and the last line it printed


class Hooks:
    """The commands of one machine; at most one runs at a time.

    Args:
        folder: the agent's folder; holds `hooks.json` and `hooks/NAME.log`.
        variables: the environment of each command, to which the reason and the hook's name are added.
    """

    def __init__(
        self, commands: Commands, folder: Path, variables: Mapping[str, str], disk: Disk, clock: Clock, spawn: Spawn
    ) -> None:
        self.commands = commands
        self.running: Hook | None = None
        self.ended: HookResult | None = None  # how the command ended, until `take` consumes it
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
        """Must on_pause run before this machine counts as paused?"""
        return bool(self.commands.on_pause) and self.condition is not Condition.PAUSED

    @property
    def resume_due(self) -> bool:
        """Must on_resume run before this machine may train?"""
        return bool(self.commands.on_resume) and self.condition is not Condition.AWAKE

    def pause_idle(self) -> None:
        """Note that the machine pauses if there is no on_pause, so that on_resume is due before the next job."""
        if self.commands and not self.commands.on_pause and self.condition is not Condition.PAUSED:
            try:
                self._note(Condition.PAUSED)
            except CurtailError as error:
                self.note = str(error)

    def wake(self) -> None:
        """Note that a job starts if there is no on_resume, so that on_pause is due after it. Raises: DiskError."""
        self.note = ""
        if self.commands and not self.commands.on_resume and self.condition is not Condition.AWAKE:
            self._note(Condition.AWAKE)

    def begin(self, hook: Hook, reason: str) -> None:
        """Start the command. `look` reports an error of the start, like any other end."""
        self.running, self.ended, self._began = hook, None, self._clock.monotonic()
        self._process, self._failure, self._terminated, self._killed = None, None, False, False
        log = self._log(hook)
        env = self._variables | {"CURTAIL_REASON": reason, "CURTAIL_HOOK": hook.value}
        try:
            # Written before the command starts, so that on_resume is not skipped after a crash.
            self._note(Condition.PAUSED if hook is Hook.ON_PAUSE else Condition.UNKNOWN)
            _empty(log)
            self._process = self._spawn(["/bin/sh", "-c", self.commands.of(hook)], env, self._folder, log)
        except CurtailError as error:
            self._failure = str(error)

    def observe(self) -> None:
        """Poll the command and store how it ended."""
        if self.ended is None:
            self.ended = self.poll()

    @property
    def failed(self) -> bool | None:
        """Did the command fail? None while it runs."""
        return None if self.ended is None else self.ended.failed

    def consume(self) -> HookResult:
        """Consume the end of the command; counts failures of on_resume."""
        ended, self.ended = self.ended, None
        assert ended is not None, "the end of a command is consumed only after `observe` stored it"
        self.note = ended.words if ended.failed else ""
        if ended.hook is Hook.ON_RESUME:
            self.failures = self.failures + 1 if ended.failed else 0
        return ended

    def poll(self) -> HookResult | None:
        """How the command ended; None while it runs. After its timeout it gets SIGTERM, then SIGKILL."""
        hook = self.running
        if hook is None:
            return None
        if self._process is None:
            return self._over(HookResult(hook, True, f"{hook} could not be run: {self._failure}"))
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
            except CurtailError as error:  # it will run again after a restart, which is harmless
                said = f"{said}; {error}" if said else str(error)
        return self._over(HookResult(hook, failed, f"{what}: {said}" if said else what))

    def kill(self) -> None:
        """Kill the command, if one runs."""
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

    def _over(self, ended: HookResult) -> HookResult:
        self.running, self._process = None, None
        return ended

    def _log(self, hook: Hook) -> Path:
        return self._folder / "hooks" / f"{hook}.log"

    def _stored(self) -> Condition:
        try:
            return Condition(json.loads((self._folder / "hooks.json").read_text(encoding="utf-8"))["condition"])
        except (OSError, ValueError, TypeError, KeyError):
            return Condition.UNKNOWN  # then both commands are due

    def _note(self, condition: Condition) -> None:
        self._disk.replace("HOOKS", self._folder / "hooks.json", json.dumps({"condition": condition.value}).encode())
        self.condition = condition


def hook_variables(site: str, region: str, url: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of the commands: the agent's without secrets, plus site, region and URL."""
    env = {name: value for name, value in inherited.items() if name not in WITHHELD_VARIABLES}
    return env | {"CURTAIL_SITE": site, "CURTAIL_REGION": region, "CURTAIL_URL": url}


def _empty(log: Path) -> None:
    """Create or empty the command's log. Raises: DiskError."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
    except OSError as error:
        raise disk_error("write", log, error) from error
