"""Starts and stops a controller and its agents as local processes.

Stopping ends the agents first, so that they upload their contributions, then the
controller, then anything left over. Each process has a marker variable in its
environment that its jobs inherit, so that leftover processes are found even if the
agent that started them is gone. Durations in seconds of wall time.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from agent.launcher import SystemProcess, source_folder, system_spawn
from curtail.errors import CurtailError
from curtail.system.home_files import ADDRESS, JOIN_TOKEN

MARK = "CURTAIL_LOCAL"
"""Environment variable that marks all processes of one `Household`."""

START_S = 90.0
"""Timeout for the controller to listen; its imports take about 5 s on a slow machine."""

AGENTS_STOP_S = 20.0
CONTROLLER_STOP_S = 15.0
LOOK_S = 0.1


class Household:
    """The processes of one run on this machine.

    Args: folder: for the controller's home, the agents' homes and all logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "controller"
        self.mark = secrets.token_hex(8)
        self.listened = False  # whether the controller came up
        self._controller: SystemProcess | None = None
        self._agents: dict[str, SystemProcess] = {}

    def start_controller(self, *arguments: str) -> str:
        """Start the controller on a free port and wait until it listens; returns its URL.

        Raises: CurtailError: it ended, or did not listen in time.
        """
        # A reused home holds the address of the previous controller.
        with contextlib.suppress(FileNotFoundError):
            (self.home / ADDRESS).unlink()
        self._controller = self._spawn("controller", "controller", "start", *arguments, "--port", "0", "--no-announce")
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            self.check(finished=False)
            if url := self._address():
                self.listened = True
                return url
            time.sleep(LOOK_S)
        raise CurtailError(f"the controller did not listen within {START_S:.0f} s", f"see {self.log('controller')}")

    def start_agent(self, site: str, region: str, url: str) -> None:
        """Start the agent of one site, with one rank and one thread."""
        self._agents[site] = self._spawn(
            site, "agent", "join", url, "--site", site, "--region", region,
            "--home", str(self.folder / f"agent-{site}"), "--token-file", str(self.home / JOIN_TOKEN),
            "--ranks", "1", "--threads", "1",
        )  # fmt: skip

    def check(self, finished: bool) -> None:
        """Raise CurtailError if a process ended too early; agents may end once the run is `finished`."""
        running = {"controller": self._controller, **({} if finished else self._agents)}
        for name, process in running.items():
            code = None if process is None else process.poll()
            if code is not None:
                what = name if name == "controller" else f"agent of site {name}"
                raise CurtailError(f"the {what} ended with exit code {code} ({self.last_line(name)})")

    def stop(self) -> None:
        """End all processes gracefully; Ctrl-C in the meantime kills them at once."""
        try:
            _end(list(self._agents.values()), AGENTS_STOP_S)
            _end([self._controller] if self._controller else [], CONTROLLER_STOP_S)
        except KeyboardInterrupt:
            pass
        finally:
            for process in [*self._agents.values(), *([self._controller] if self._controller else [])]:
                process.signal_group(signal.SIGKILL)
            for pid in marked(self.mark):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            # reap them, so that none stays a zombie while this process lives on
            _wait([*self._agents.values(), *([self._controller] if self._controller else [])], 5.0)

    def log(self, name: str) -> Path:
        """The log file of the process `name` (controller, or a site)."""
        return self.folder / f"{name}.log"

    def last_line(self, name: str) -> str:
        """The last line of a log, without the prefix `curtail: `."""
        try:
            lines = self.log(name).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "no log was written"
        last = next((line.strip() for line in reversed(lines) if line.strip()), "its log is empty")
        return last.removeprefix("curtail: ")[:300]

    def _spawn(self, name: str, *arguments: str) -> SystemProcess:
        env = {key: value for key, value in os.environ.items() if key not in ("CURTAIL_URL", "CURTAIL_TOKEN")}
        env |= {MARK: self.mark, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        if source := source_folder():
            env["PYTHONPATH"] = str(source)
        return system_spawn([sys.executable, "-m", "curtail", *arguments], env, self.folder, self.log(name))

    def _address(self) -> str | None:
        try:
            found = json.loads((self.home / ADDRESS).read_text(encoding="utf-8"))
            return str(found["url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # not written yet


def marked(mark: str) -> Iterator[int]:
    """Process ids with `mark` in their environment, except this process. Linux only; none elsewhere."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's process, or it just ended
            if int(entry.parent.name) != os.getpid() and wanted in entry.read_bytes().split(b"\0"):
                yield int(entry.parent.name)


def _end(processes: list[SystemProcess], patience: float) -> None:
    for process in processes:
        process.signal_group(signal.SIGTERM)
    _wait(processes, patience)


def _wait(processes: list[SystemProcess], patience: float, sleep: Callable[[float], None] = time.sleep) -> None:
    deadline = time.monotonic() + patience
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        sleep(LOOK_S)
