"""A thousand agents without torch at one controller, for an hour: do memory, files, the log and the answers stay flat?

The controller is real, started by the command line, with real HTTP on loopback. An agent
here is an identity with a key and a credential: it joins, sends its heartbeats, and
now and then leaves and joins again; views read the status. The trace replays 30 times
as fast as time, so that every ten seconds all sites get a reading and a row each in
the ledger, and regions open and close. Every ten seconds the controller's memory, open files,
threads and the size of its write-ahead log are noted, and how long heartbeats took.

    python benchmarks/soak.py --agents 1000 --seconds 3600 --heartbeat 10 --out soak.jsonl
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import httpx  # noqa: E402

from agent.http.client import Control  # noqa: E402
from benchmarks.runs import controller  # noqa: E402
from benchmarks.scale import write_run  # noqa: E402
from controller.home.data_ledger import inspect_store  # noqa: E402
from curtail import wire  # noqa: E402
from curtail.security.signing import AgentKey, Signer  # noqa: E402

REGIONS, SPEED, PERIOD_S = 10, 30.0, 300.0
SAMPLE_S = 10.0
LANES = 16
"""Requests under way at once."""

REJOIN_EVERY = 200
"""One heartbeat in so many is a farewell, and the agent joins anew."""


@dataclass(slots=True)
class Sample:
    """The controller at a moment; bytes, seconds."""

    at: float
    memory: int
    files: int
    threads: int
    wal: int
    store: int
    beats: int
    p50: float
    p99: float
    status_s: float
    failures: int


class Agent:
    """One identity."""

    def __init__(self, number: int, http: httpx.Client, token: str) -> None:
        self.number, self.site, self.region = number, f"s{number:04d}", f"R{number % REGIONS}"
        key = AgentKey()
        self.key, self.token = key.public, token
        self.control = Control(http, signer=Signer(key, time.time))
        self.fence, self.beats = 0, 0

    def join(self) -> None:
        """Be admitted. Raises: CurtailError."""
        request = wire.JoinRequest(
            wire.PROTOCOL, f"{self.number:032x}", self.site, self.region, "simulated", 1, self.token, key=self.key
        )
        self.fence = self.control.join(request).fence
        assert self.control.signer is not None
        self.control.signer.fence = self.fence

    def beat(self) -> None:
        """Say hello, or farewell and hello. Raises: CurtailError."""
        self.beats += 1
        if (self.beats + self.number) % REJOIN_EVERY == 0:
            self.control.leave(wire.LeaveRequest(f"{self.number:032x}", self.site, self.fence, "the soak"))
            self.join()
            return
        self.control.heartbeat(
            wire.Heartbeat(f"{self.number:032x}", self.site, self.fence, "IDLE", "paused", None, None, "")
        )


class Soak:
    """All agents, their heartbeats in time, and what was seen."""

    def __init__(self, url: str, pid: int, home: Path, agents: int, heartbeat: float) -> None:
        limits = httpx.Limits(max_connections=LANES + 4, max_keepalive_connections=LANES + 4)
        self.http = httpx.Client(base_url=url, trust_env=False, timeout=30.0, limits=limits)
        token = (home / "join-token").read_text().strip()
        self.pid, self.home, self.heartbeat = pid, home, heartbeat
        self.agents = [Agent(number, self.http, token) for number in range(agents)]
        self.samples: list[Sample] = []
        self.failures: list[str] = []
        self._took: list[float] = []
        self._lock = threading.Lock()

    def join_all(self) -> float:
        """Seconds that it took all agents to join."""
        began = time.monotonic()
        with ThreadPoolExecutor(LANES) as lanes:
            list(lanes.map(Agent.join, self.agents))
        return time.monotonic() - began

    def run(self, seconds: float) -> None:
        """Heartbeats for so long, spread evenly."""
        began = time.monotonic()
        gap = self.heartbeat / len(self.agents)
        due = [(began + gap * index, index) for index in range(len(self.agents))]
        sampled = began
        with ThreadPoolExecutor(LANES) as lanes:
            while (now := time.monotonic()) < began + seconds:
                if now >= sampled:
                    self._sample(now - began)
                    sampled += SAMPLE_S
                moment, index = due[0]
                if moment > now:
                    time.sleep(min(moment - now, 0.05))
                    continue
                heapq.heapreplace(due, (moment + self.heartbeat, index))
                lanes.submit(self._beat, self.agents[index])
        self._sample(time.monotonic() - began)

    def _beat(self, agent: Agent) -> None:
        began = time.monotonic()
        try:
            agent.beat()
        except Exception as error:  # a bug of this script, too, would go down with its lane in silence
            with self._lock:
                self.failures.append(f"{agent.site}: {type(error).__name__}: {error}")
        with self._lock:
            self._took.append(time.monotonic() - began)

    def _sample(self, at: float) -> None:
        began = time.monotonic()
        self.http.get(wire.STATUS).raise_for_status()
        status_s = time.monotonic() - began
        with self._lock:
            took, self._took = sorted(self._took), []
            failures = len(self.failures)
        facts = dict(
            line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines() if ":" in line
        )
        self.samples.append(
            Sample(
                at=round(at, 1),
                memory=int(facts["VmRSS"].split()[0]) * 1024,
                files=len(os.listdir(f"/proc/{self.pid}/fd")),
                threads=int(facts["Threads"]),
                wal=_size(self.home / "state.db-wal"),
                store=_size(self.home / "state.db"),
                beats=len(took),
                p50=took[len(took) // 2] if took else 0.0,
                p99=took[int(0.99 * (len(took) - 1))] if took else 0.0,
                status_s=status_s,
                failures=failures,
            )
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def verdict(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """First against last quarter of the time after the first tenth, medians: what grew, and by what factor."""
    later = samples[max(1, len(samples) // 10) :] or samples
    quarter = max(1, len(later) // 4)
    found: dict[str, dict[str, float]] = {}
    for name in ("memory", "files", "threads", "wal", "p50", "p99", "status_s"):
        first = statistics.median(getattr(sample, name) for sample in later[:quarter])
        last = statistics.median(getattr(sample, name) for sample in later[-quarter:])
        found[name] = {"first": first, "last": last, "factor": last / first if first else 1.0}
    return found


def trace(path: Path, seconds: float) -> None:
    """Ten regions that open and close in turns, until well after the end."""
    rows, start = [f"point_time,{','.join(f'R{n}' for n in range(REGIONS))}"], datetime(2026, 3, 1, tzinfo=UTC)
    for number in range(int((seconds + 600.0) * SPEED / PERIOD_S) + 2):
        cells = (str(40 + n if (number // 6 + n) % 3 else 400 + n) for n in range(REGIONS))
        at = datetime.fromtimestamp(start.timestamp() + number * PERIOD_S, UTC).isoformat()
        rows.append(f"{at},{','.join(cells)}")
    path.write_text("\n".join(rows) + "\n")


def soak(folder: Path, agents: int, seconds: float, heartbeat: float) -> dict[str, object]:
    """One soak in `folder`; all that was seen."""
    write_run(folder, "d2-test", [f"R{n}" for n in range(REGIONS)], heartbeat, 1)
    trace(folder / "trace.csv", seconds)
    with controller(folder, folder / "trace.csv", speed=SPEED) as (url, pid):
        all_agents = Soak(url, pid, folder / "home", agents, heartbeat)
        joined_s = all_agents.join_all()
        all_agents.run(seconds)
        all_agents.http.close()
    problems = [problem for _, problem in inspect_store(folder / "home", weights=False) if problem is not None]
    return {
        "agents": agents, "seconds": seconds, "heartbeat_s": heartbeat, "joined_s": round(joined_s, 1),
        "beats": sum(sample.beats for sample in all_agents.samples), "failures": all_agents.failures[:20],
        "failed": len(all_agents.failures), "ledger": problems, "verdict": verdict(all_agents.samples),
        "samples": [asdict(sample) for sample in all_agents.samples], "load": os.getloadavg()[0],
    }  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--heartbeat", type=float, default=10.0, help="seconds between two of one agent")
    parser.add_argument("--out", type=Path, help="a line of JSON is appended to it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="curtail-soak-") as name:
        result = soak(Path(name), asked.agents, asked.seconds, asked.heartbeat)
    if asked.out is not None:
        with open(asked.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    return 1 if result["failed"] or result["ledger"] else 0


if __name__ == "__main__":
    sys.exit(main())
