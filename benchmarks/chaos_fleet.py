"""The processes of a chaos run: a controller and agents with real jobs, started again when they die, and struck.

Each agent reaches the controller through a proxy of its own. What systemd would
do is done here: a process that ended is started again after a second. Linux
only: processes are found by a mark in their environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from benchmarks.chaos_faults import CONTROLLER, Fault, stale
from benchmarks.chaos_proxy import Proxy, Weather
from curtail import wire

ROOT = Path(__file__).resolve().parent.parent
MARK = "CURTAIL_CHAOS"
PRESET, VOCABULARY, SEQUENCE, BATCH = "d2-test", 512, 64, 4
SPEED, PERIOD_S = 60.0, 60.0
"""Trace seconds per second, and between two readings: a reading a second."""

START = datetime(2026, 3, 1, 10, tzinfo=UTC).timestamp()
RESTART_S = 1.0
SLACK = 1.1
"""Deadline of a round over what its steps take at their pace."""

CLOSE_S = 45.0
"""All agents, and then the controller, have so long to end in order."""

AT_ONCE = 3
"""Sites that start at the same time at the beginning."""
DISK_BYTES = 512 * 1024 * 1024
SLOW_BYTES_S, FLIP_EVERY = 20_000.0, 2_000
JUMPS_S = (-7200.0, -60.0, 45.0, 3600.0)

RUN_FILE = """\
[run]
name = "chaos"
seed = 7
[model]
preset = "{preset}"
[data]
path = "{data}"
[training]
token_budget = {budget}
batch_samples = {batch}
[rounds]
length = "{length:g} s"
inner_steps = {steps}
grace = "{grace:g} s"
overlap = {overlap}
[policy]
threshold = "100 g/kWh"
max_reading_age = "3600 s"
permit = "30 s"
[fleet]
heartbeat = "{heartbeat:g} s"
lost_after = "{lost_after:g} s"
"""
REGION = """
[regions.{region}]
power_train = "2 kW"
power_idle = "500 W"
"""


@dataclass(frozen=True, slots=True)
class Form:
    """How the sites train. Seconds."""

    pace_s: float = 0.0  # of an inner step; 0: as fast as the cores can
    length_s: float = 10.0  # of a round; where steps are paced, what its steps take
    overlap: bool = False
    heartbeat_s: float = 0.5
    lost_after_s: float = 6.0
    grace_s: float = 8.0
    lead_s: float = 60.0  # from the controller's start to the measured time, by the clock of the trace

    @classmethod
    def as_by_default(cls, pace_s: float, length_s: float, overlap: bool, lead_s: float) -> Form:
        """The times of the fleet and the grace as a run file has them that does not name them."""
        return cls(pace_s, length_s, overlap, 2.0, 15.0, 30.0, lead_s)

    @property
    def steps(self) -> int:
        """Most inner steps of a round; paced they end it, not its length: leases are used up and leave no pieces."""
        return 10_000 if self.pace_s <= 0 else max(1, round(self.length_s / self.pace_s))

    @property
    def deadline_s(self) -> float:
        """What the run file calls the length of a round."""
        return self.length_s * (SLACK if self.pace_s > 0 else 1.0)


@dataclass(slots=True)
class Process:
    """One process that is started again when it ends."""

    name: str
    command: list[str]
    variables: dict[str, str]
    popen: subprocess.Popen[bytes] | None = None
    ended: float | None = None  # monotonic
    starts: int = 0
    may_end: int = 0  # how often a fault ended it


class ChaosFleet:
    """A controller and one agent for each of `sites`; every site has a region of its own name in capitals."""

    def __init__(self, folder: Path, data: Path, sites: Sequence[str], faults: Sequence[Fault], form: Form) -> None:
        self.folder, self.sites, self.mark, self.form = folder, tuple(sites), uuid.uuid4().hex, form
        self.home = folder / "controller"
        self.processes: dict[str, Process] = {}
        self.proxies: dict[str, Proxy] = {}
        self.mounts: list[Path] = []
        self.unwatched: list[str] = []  # ends of processes that no fault explains
        self.port = 0
        # what is looked at is on loopback and holds no secret
        self._http = httpx.Client(trust_env=False, timeout=2.0, verify=False)
        folder.mkdir(parents=True)
        self._write(data, faults)

    # -- what they read ----------------------------------------------------------

    def _write(self, data: Path, faults: Sequence[Fault]) -> None:
        regions, form, lead_s = [site.upper() for site in self.sites], self.form, self.form.lead_s
        text = RUN_FILE.format(
            preset=PRESET, data=data, budget=10**8 * BATCH * SEQUENCE, batch=BATCH, length=form.deadline_s,
            steps=form.steps, overlap=str(form.overlap).lower(), heartbeat=form.heartbeat_s,
            lost_after=form.lost_after_s, grace=form.grace_s,
        )  # fmt: skip
        (self.folder / "run.toml").write_text(text + "".join(REGION.format(region=region) for region in regions))
        last = max((fault.at + fault.seconds for fault in faults), default=0.0) + lead_s + 3600.0
        rows = [f"point_time,{','.join(regions)}"]
        for number in range(int(last * SPEED / PERIOD_S)):
            at = number * PERIOD_S / SPEED - lead_s
            cells = ("" if stale(faults, site, at) else "40" for site in self.sites)
            rows.append(",".join([datetime.fromtimestamp(START + number * PERIOD_S, UTC).isoformat(), *cells]))
        (self.folder / "trace.csv").write_text("\n".join(rows) + "\n")

    # -- start, supervise, end ------------------------------------------------------

    def start(self) -> None:
        """Start the controller, then the agents, each behind its proxy, a few at a time: starts need cores."""
        url = self._start_controller()
        self.port = httpx.URL(url).port or 0
        for number, site in enumerate(self.sites):
            self.wait(f"site {site} may start", lambda number=number: self._training() > number - AT_ONCE, 120.0)
            proxy = self.proxies[site] = Proxy(("127.0.0.1", self.port))
            home = self.disk(self.folder / f"agent-{site}")
            command = [
                "agent", "join", f"{httpx.URL(url).scheme}://127.0.0.1:{proxy.port}", "--site", site, "--region",
                site.upper(), "--home", str(home), "--ranks", "1", "--threads", "1",
                "--token-file", str(self.home / "join-token"),
            ]  # fmt: skip
            self._spawn(site, command)

    def _training(self) -> int:
        status = self.status()
        return 0 if status is None else sum(site.state == "TRAINING" for site in status.sites)

    def _start_controller(self) -> str:
        self.disk(self.home)
        command = [
            "controller", "start", str(self.folder / "run.toml"), "--home", str(self.home), "--trace",
            str(self.folder / "trace.csv"), "--unit", "g/kWh", "--speed", f"{SPEED:g}", "--port", "0", "--no-announce",
            "--tls",
        ]  # fmt: skip
        self._spawn(CONTROLLER, command)
        address = self.home / "controller.json"
        self.wait("the controller listens", address.exists, 120.0)
        url = str(json.loads(address.read_text())["url"])
        # after this it is always the same port, as on a real machine
        command[command.index("--port") + 1] = str(httpx.URL(url).port)
        return url

    def disk(self, folder: Path) -> Path:
        """`folder` on a small file system of its own, where this machine permits it."""
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "curtail-chaos", folder], capture_output=True
        )
        if done.returncode == 0:
            self.mounts.append(folder)
        return folder

    def _spawn(self, name: str, command: list[str]) -> None:
        variables = {
            MARK: self.mark, "CURTAIL_CHAOS_CLOCK": str(self.clock(name)), "CURTAIL_CHAOS_PACE": f"{self.form.pace_s:g}"
        }  # fmt: skip
        process = self.processes.setdefault(name, Process(name, command, variables))
        keep = {key: value for key, value in os.environ.items() if not key.startswith("CURTAIL_")}
        paths = {"PYTHONPATH": f"{ROOT / 'benchmarks' / 'chaos_clock'}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"}
        with open(self.log(name), "ab") as output:
            process.popen = subprocess.Popen(
                [sys.executable, "-m", "curtail", *process.command], env={**keep, **paths, **variables},
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        process.starts, process.ended = process.starts + 1, None

    def supervise(self) -> None:
        """Start again what ended a second ago."""
        for name, process in self.processes.items():
            assert process.popen is not None
            if process.popen.poll() is None:
                continue
            if process.ended is None:
                process.ended = time.monotonic()
                if process.may_end > 0:
                    process.may_end -= 1
                else:
                    self.unwatched.append(f"{name or 'controller'} ended with {process.popen.returncode}")
            elif time.monotonic() - process.ended >= RESTART_S:
                self._spawn(name, process.command)

    def wait(self, what: str, condition: Callable[[], object], seconds: float) -> None:
        """Supervise until `condition` holds. Raises: TimeoutError: it does not in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"{seconds:.0f} s passed before {what}; see the logs in {self.folder}")
            self.supervise()
            time.sleep(0.1)

    def close(self) -> list[str]:
        """End everything in order; what is left afterwards that nothing answers for."""
        for names in (self.sites, (CONTROLLER,)):  # the jobs still hand in what they have
            living = [p.popen for name, p in self.processes.items() if name in names and p.popen is not None]
            for popen in living:
                popen.send_signal(signal.SIGCONT)
                popen.send_signal(signal.SIGTERM)
            end = time.monotonic() + CLOSE_S
            for popen in living:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(max(0.1, end - time.monotonic()))
                popen.kill()
                popen.wait()
        for proxy in self.proxies.values():
            proxy.close()
        self._http.close()
        time.sleep(1.0)  # what its parent's death should end has a moment for it
        left = [f"{pid}: {line}" for pid, line in self.marked()]
        for pid, _ in self.marked():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return left

    def unmount(self) -> None:
        """Give the small file systems back, with what they hold."""
        for folder in self.mounts:
            subprocess.run(["umount", "-l", folder], check=False)

    # -- what is struck ---------------------------------------------------------------

    def strike(self, fault: Fault, index: int) -> Callable[[], None] | None:
        """Make `fault` happen; what undoes it, or None if nothing needs to be."""
        target = self.processes[fault.target]
        assert target.popen is not None
        match fault.kind:
            case "kill agent" | "kill controller":
                target.may_end += target.popen.poll() is None
                target.popen.kill()
            case "kill job":
                _send(self.job(fault.target), signal.SIGKILL)
            case "stop agent" | "stop controller":
                return _stopped([target.popen.pid])
            case "stop job":
                return _stopped(self.job(fault.target))
            case "partition":
                return self._weather(fault.target, Weather(cut=True))
            case "slow link":
                return self._weather(fault.target, Weather(bytes_per_s=SLOW_BYTES_S))
            case "corrupt bytes":
                return self._weather(fault.target, Weather(flip_every=FLIP_EVERY))
            case "disk full":
                return self._fill(fault.target)
            case "clock jump":
                path = self.clock(fault.target)
                path.write_text(f"{JUMPS_S[index % len(JUMPS_S)]}")
                return lambda: path.unlink(missing_ok=True)
            case "stale signal":
                pass  # stands in the trace
        return None

    def _weather(self, site: str, weather: Weather) -> Callable[[], None]:
        proxy = self.proxies[site]
        proxy.set(weather)
        return lambda: proxy.set(Weather())

    def _fill(self, name: str) -> Callable[[], None] | None:
        folder = self.home if name == CONTROLLER else self.folder / f"agent-{name}"
        if folder not in self.mounts:
            return None
        path = folder / "filled-by-chaos"
        with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
            while True:
                file.write(bytes(64 * 1024))
        return lambda: path.unlink(missing_ok=True)

    # -- looking on ----------------------------------------------------------------------

    def clock(self, name: str) -> Path:
        """The file that holds by how much the wall clock of a process is off."""
        return self.folder / f"clock-{name or 'controller'}"

    def log(self, name: str) -> Path:
        """Where a process writes."""
        return self.folder / f"{name or 'controller'}.log"

    def status(self) -> wire.Status | None:
        """The present snapshot; None while the controller does not answer."""
        address = self.home / "controller.json"
        try:
            url = json.loads(address.read_text())["url"]
            return wire.decode(wire.Status, self._http.get(url + wire.STATUS).content)
        except (httpx.HTTPError, OSError, ValueError):
            return None

    def marked(self, *more: bytes) -> Iterator[tuple[int, str]]:
        """Living processes of this fleet whose environment holds `more`: pid, command line."""
        wanted = {f"{MARK}={self.mark}".encode(), *more}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone meanwhile
                if wanted <= set((entry / "environ").read_bytes().split(b"\0")):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if line:
                        yield int(entry.name), line

    def job(self, site: str) -> list[int]:
        """The processes of the site's job."""
        return [pid for pid, _ in self.marked(f"CURTAIL_SITE={site}".encode())]

    def texts(self) -> Iterator[tuple[str, str]]:
        """All logs: of the controller, the agents and their jobs."""
        for path in [*self.folder.glob("*.log"), *self.folder.glob("agent-*/jobs/*/job.log")]:
            yield str(path.relative_to(self.folder)), path.read_text(errors="replace")

    def count(self, pattern: str) -> int:
        """How many lines of the logs match."""
        return sum(len(re.findall(pattern, text)) for _, text in self.texts())


def _send(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _stopped(pids: Sequence[int]) -> Callable[[], None]:
    _send(pids, signal.SIGSTOP)
    return lambda: _send(pids, signal.SIGCONT)
