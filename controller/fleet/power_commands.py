"""Runs a site's on_pause and on_resume commands from the run file, on the controller's machine.

`controller.fleet.power_states` decides when. A command has its own session and a
timeout. It continues if the controller ends, because half of a machine's shutdown
would be worse. Each site and command has a log file with the output of the latest
run. Nothing here blocks: commands are started, and polled later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import last_line

LAST_LINE = 300
"""Most characters of the last line of a command's output that are reported."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """How a command ended."""

    failed: bool
    words: str  # its exit code or what else happened, and the last line it printed


class Runner(Protocol):
    """Runs commands; tests pass a fake."""

    def begin(self, site: str, hook: str, command: str, env: Mapping[str, str], limit_s: float) -> None:
        """Start a command. `ended` reports an error of the start, like any other end."""
        ...

    def ended(self, site: str) -> CommandResult | None:
        """How the site's command ended, reported once; None while it runs, or if none was started."""
        ...


@dataclass(slots=True)
class _Running:
    hook: str
    log: Path
    process: subprocess.Popen[bytes]
    until: float
    limit_s: float
    late: bool = False


class SystemRunner:
    """Runs commands as processes of this machine; used from the store's thread only.

    Args: folder: for the logs; created if missing.
    """

    def __init__(self, folder: Path, clock: Clock | None = None, inherited: Mapping[str, str] | None = None) -> None:
        self._folder, self._clock = folder, clock or SystemClock()
        self._inherited = dict(os.environ if inherited is None else inherited)
        self._running: dict[str, _Running] = {}
        self._refused: dict[str, CommandResult] = {}

    def begin(self, site: str, hook: str, command: str, env: Mapping[str, str], limit_s: float) -> None:
        log = self._folder / f"{site}.{hook}.log"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(log, "wb") as output:
                process = subprocess.Popen(
                    ["/bin/sh", "-c", command],
                    env=self._inherited | dict(env),
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            self._refused[site] = CommandResult(True, f"{hook} could not be run: {error.strerror or error}")
            return
        self._running[site] = _Running(hook, log, process, self._clock.monotonic() + limit_s, limit_s)

    def ended(self, site: str) -> CommandResult | None:
        if site in self._refused:
            return self._refused.pop(site)
        running = self._running.get(site)
        if running is None:
            return None
        code = running.process.poll()
        if code is None:
            if self._clock.monotonic() >= running.until and not running.late:
                running.late = True
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.process.pid, signal.SIGKILL)
            return None
        del self._running[site]
        said = last_line(running.log, LAST_LINE)
        what = f"{running.hook} ended with {code}"
        if running.late:
            what = f"{running.hook} did not end within {running.limit_s:.0f} s"
        return CommandResult(running.late or code != 0, f"{what}: {said}" if said else what)
