"""Many simulated sites at one controller: rounds per hour, memory, and how long heartbeats take meanwhile.

The controller is real, in a process of its own, started by the command line; the HTTP is real, on loopback.
A site is a thread: it checks out, makes no inner steps, uploads a delta with `agent.http.transfer`,
commits, waits for the next version and downloads its update. All sites begin to upload at the same moment, the worst
case. A second process sends the heartbeats of all sites and notes how long each answer takes.

- The deltas are one int8-coded file on disk. Each contribution is this file but for its last eight values, which
  are put in as the file is read: every upload has another name, and the sites need no disk of their own.
- The first weights (as large as four deltas) are not downloaded; the update is, by `--readers` sites, and discarded.
- The tokens are zeros: nothing trains.

    python benchmarks/scale.py --sites 32 --rounds 2 --folder /var/tmp
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from agent.http import transfer
from agent.http.client import Control, open_http
from benchmarks.runs import controller, write_zeros
from controller.home.data_ledger import inspect_store
from controller.store import reading
from curtail import wire
from curtail.errors import CurtailError
from curtail.security.signing import AgentKey, Signer
from curtail.system.disk import SystemDisk
from nanochat import delta
from nanochat.presets import preset, weight_shapes

BATCH, STEPS, TAIL = 1, 1, 8
JOB = "job"
RUN_FILE = """
[run]
name = "scale"
[model]
preset = "{preset}"
[data]
path = "data"
[training]
token_budget = {budget}
batch_samples = {batch}
[rounds]
inner_steps = {steps}
length = "1200 s"
grace = "60 s"
keep_versions = 2
[policy]
max_reading_age = "3600 s"
permit = "120 s"
[fleet]
heartbeat = "{heartbeat} s"
lost_after = "60 s"
"""
REGION = '[regions.{name}]\npower_train = "2 kW"\npower_idle = "500 W"\n'


@dataclass(frozen=True)
class Span:
    """Something that took a while. Times are Unix seconds."""

    what: str
    site: str
    round: int
    begun: float
    ended: float
    bytes: int = 0


# -- what the run needs ------------------------------------------------------------------


def write_run(folder: Path, name: str, regions: list[str], heartbeat: float, rounds: int) -> None:
    """Run file, a trace that is always curtailed, and tokens that are zeros."""
    write_zeros(folder, preset(name).vocab_size, 16)
    budget = 16 * 4096 * (rounds + 2)
    text = RUN_FILE.format(preset=name, budget=budget, batch=BATCH, steps=STEPS, heartbeat=heartbeat)
    (folder / "run.toml").write_text(text + "".join(REGION.format(name=region) for region in regions))
    start = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    rows = [f"{datetime.fromtimestamp(start + 300 * n, UTC).isoformat()}" + ",40" * len(regions) for n in range(300)]
    (folder / "trace.csv").write_text("\n".join([f"point_time,{','.join(regions)}", *rows]) + "\n")


class Deltas:
    """One coded delta on disk, and the contributions that differ from it in their last `TAIL` bytes."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        parts: dict[str, np.ndarray] = {}
        for seed, (key, shape) in enumerate(weight_shapes(preset(name)).items()):
            values = np.random.default_rng(seed).standard_normal(shape, np.float32)
            parts |= delta.encode({key: np.multiply(values, np.float32(1e-3))}, "int8")
        delta.write_delta(path, parts, SystemDisk(), "BENCHMARK")
        self.size = path.stat().st_size
        self._most = hashlib.sha256()
        with open(path, "rb") as file:
            left = self.size - TAIL
            while left:
                piece = file.read(min(2**20, left))
                self._most.update(piece)
                left -= len(piece)
        self._tails: dict[str, bytes] = {}

    def make(self, number: int) -> tuple[Path, str]:
        """Path and SHA-256 of contribution `number`."""
        tail = bytes(1 + (number >> 6 * digit) % 64 for digit in range(TAIL))  # small positive int8 values
        path = self.path.with_name(f"contribution-{number}")
        path.unlink(missing_ok=True)
        os.link(self.path, path)  # for its size
        self._tails[str(path)] = tail
        digest = self._most.copy()
        digest.update(tail)
        return path, digest.hexdigest()

    def open(self, path: Path, mode: str) -> _Changed:
        """As the built-in `open`, for `agent.http.transfer`."""
        return _Changed(self.path, self._tails[str(path)], self.size)


class _Changed:
    """A file read with another end."""

    def __init__(self, path: Path, tail: bytes, size: int) -> None:
        self._file, self._tail, self._size = path.open("rb"), tail, size

    def __enter__(self) -> _Changed:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def seek(self, position: int) -> None:
        self._file.seek(position)

    def read(self, count: int) -> bytes:
        data = self._file.read(count)
        return data[:-TAIL] + self._tail if self._file.tell() == self._size and data else data


# -- sites -------------------------------------------------------------------------------


class Site:
    """One simulated site: an agent that joined, and its job."""

    def __init__(self, number: int, region: str, url: str, token: str, deltas: Deltas, reads: bool) -> None:
        self.name, self.number, self.region, self.deltas, self.reads = f"s{number:02d}", number, region, deltas, reads
        self.key = key = AgentKey()
        self.control = Control(open_http(url), signer=Signer(key, time.time))
        reply = self.control.join(
            wire.JoinRequest(
                protocol=wire.PROTOCOL,
                agent=f"{number:032x}",
                site=self.name,
                region=region,
                machine="simulated",
                devices=1,
                token=token,
                key=key.public,
            )
        )
        self.fence = reply.fence
        self.control.signer.fence = self.fence
        self.held: tuple[int, str] | None = None
        self.spans: list[Span] = []
        self.failure: str | None = None

    def ask(self, job: str = JOB) -> wire.CheckoutReply:
        """One question for work."""
        version, digest = self.held or (None, None)
        return self.control.checkout(
            wire.CheckoutRequest(
                site=self.name, fence=self.fence, job=job, held_version=version, held_digest=digest, closing=False
            )
        )

    def checkout(self, limit_s: float) -> wire.Assignment:
        """Ask until there is work. Raises: CurtailError: it must leave, or there is none for too long."""
        end = time.monotonic() + limit_s
        while True:
            reply = self.ask()
            if reply.assignment is not None:
                return reply.assignment
            if reply.kind == "leave" or time.monotonic() > end:
                raise CurtailError(f"{self.name} got no work: {reply.reason}")
            time.sleep(reply.retry_s)

    def run(self, rounds: int, together: threading.Barrier, limit_s: float) -> None:
        """Contribute to so many rounds; at last take the version that the last one made."""
        try:
            for number in range(rounds + 1):
                began = time.time()
                work = self.checkout(limit_s)
                self.note("checkout", work.round, began)
                self._fetch(work)
                if number < rounds:
                    path, sha256 = self.deltas.make(rounds * self.number + number)
                    together.wait(limit_s)
                    self._hand_in(work, path, sha256)
        except (CurtailError, threading.BrokenBarrierError, OSError) as error:
            self.failure = f"{self.name}: {type(error).__name__} {error}"
            together.abort()

    def _fetch(self, work: wire.Assignment) -> None:
        if work.fetch == "update" and self.reads:
            began, got = time.time(), 0
            path = wire.BLOB.format(sha256=work.blob)
            with self.control.stream("GET", path, timeout_s=transfer.SILENCE_S) as response:
                for chunk in response.iter_bytes():
                    got += len(chunk)
            self.note("download", work.round, began, got)
        self.held = (work.base_version, work.base_digest)

    def _hand_in(self, work: wire.Assignment, path: Path, sha256: str) -> None:
        began = time.time()
        sent = transfer.upload(self.control, path, sha256)
        path.unlink()
        self.note("upload", work.round, began, sent)
        began, samples = time.time(), work.steps * BATCH
        self.control.commit(
            wire.CommitRequest(
                site=self.name,
                fence=self.fence,
                job=JOB,
                round=work.round,
                base_version=work.base_version,
                base_digest=work.base_digest,
                steps=work.steps,
                samples=samples,
                tokens=samples * 16,
                blob=sha256,
                codec=work.codec,
                digest="",
                loss_first=3.0,
                loss_mean=3.0,
                loss_last=3.0,
                seconds=1.0,
                keep=False,
            )
        )
        self.note("commit", work.round, began)

    def note(self, what: str, number: int, began: float, count: int = 0) -> None:
        self.spans.append(Span(what, self.name, number, began, time.time(), count))


def enter_together(sites: list[Site], limit_s: float = 60.0) -> None:
    """Have all jobs known before the first round that counts, so that all of them are in it.

    A sole site would begin a LOCAL round; another job of the same site takes over and ends it without a contribution.
    """
    first, *others = sites
    end = time.monotonic() + limit_s
    while sum(site.granted for site in first.control.status().sites) < len(sites):
        if time.monotonic() > end:
            reasons = {site.reason for site in first.control.status().sites if not site.granted}
            raise SystemExit(f"not every site got a permit: {'; '.join(sorted(reasons))}")
        time.sleep(0.1)
    first.ask("first-job")
    for site in others:
        site.ask()
    first.ask()


# -- heartbeats, in a process of their own -------------------------------------------------


class Beats:
    """The heartbeats of all sites, sent by another process until `stop`."""

    def __init__(self, url: str, sites: list[Site], period: float, out: Path) -> None:
        self.out = out
        told = [[site.name, site.fence, site.number, site.control.credential, site.key.pem.decode()] for site in sites]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--beats", str(out)], stdin=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"url": url, "period": period, "sites": told}) + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """End the process: its input ends. Again does nothing."""
        self._process.communicate()

    def stop(self) -> list[dict[str, Any]]:
        """Every heartbeat: when it was sent, how many seconds the answer took, and what went wrong or ""."""
        self.close()
        return [json.loads(line) for line in self.out.read_text().splitlines()]


def send_beats(out: Path) -> None:
    """What the second process does."""
    order, over, lines = json.loads(sys.stdin.readline()), threading.Event(), []

    def beat(name: str, fence: int, number: int, credential: str, pem: str) -> None:
        signer = Signer(AgentKey(pem.encode()), time.time, fence)
        control = Control(open_http(order["url"]), credential, signer=signer)
        message = wire.Heartbeat(
            agent=f"{number:032x}", site=name, fence=fence, state="RUNNING", phase="train", job=JOB, watts=None, note=""
        )
        due = time.monotonic() + order["period"] * random.random()
        while not over.wait(max(0.0, due - time.monotonic())):
            due = max(due + order["period"], time.monotonic())
            at, began, wrong = time.time(), time.perf_counter(), ""
            try:
                if not (reply := control.heartbeat(message, timeout_s=60.0)).granted:
                    wrong = f"no permit: {reply.reason}"
            except CurtailError as error:
                wrong = str(error)
            lines.append({"at": at, "seconds": time.perf_counter() - began, "site": name, "wrong": wrong})

    threads = [threading.Thread(target=beat, args=site) for site in order["sites"]]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    out.write_text("\n".join(json.dumps(line) for line in lines))


# -- looking on ----------------------------------------------------------------------------


class Watch(threading.Thread):
    """Memory of the controller and of its merge, in GB, sampled a few times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.over = pid, threading.Event()
        self.controller = self.merge_all = self.merge_own = 0.0
        self.busy: list[tuple[float, float]] = []  # seconds of processors that the controller has used
        self.merging: list[float] = []  # when a merge process was seen
        self.load: list[tuple[float, float]] = []

    def run(self) -> None:
        while not self.over.wait(0.25):
            now = time.time()
            self.load.append((now, os.getloadavg()[0]))
            self.busy.append((now, processors(self.pid)))
            self.controller = max(self.controller, sum(memory(self.pid)))
            for child in children(self.pid):
                own, files = memory(child)
                if own + files:
                    self.merging.append(now)
                    self.merge_all, self.merge_own = max(self.merge_all, own + files), max(self.merge_own, own)


def memory(pid: int) -> tuple[float, float]:
    """GB of a process's resident set: its own, and that of mapped files."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0, 0.0
    found = {key: int(value) / 1e6 for key, value in re.findall(r"^(Rss\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return found.get("RssAnon", 0.0), found.get("RssFile", 0.0) + found.get("RssShmem", 0.0)


def processors(pid: int) -> float:
    """Seconds of processors a process has used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += [int(child) for child in path.read_text().split()]
    return found


@dataclass
class Result:
    """Everything that was seen. Times are Unix seconds, memory in GB."""

    sites: int
    delta_bytes: int
    quiet: float  # when the first round began; heartbeats before count as quiet
    rounds: list[dict[str, float]]
    spans: list[Span]
    beats: list[dict[str, Any]]
    failures: list[str]
    controller_gb: float
    merge_gb: float
    merge_own_gb: float
    loads: list[tuple[float, float]]
    busy: list[tuple[float, float]]

    def processors(self, row: dict[str, float], what: str) -> float:
        """Share of a processor that the controller used in a phase."""
        inside = [pair for pair in self.busy if row[f"{what}_begun"] <= pair[0] <= row[f"{what}_ended"]]
        if len(inside) < 2:
            return float("nan")
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])

    def during(self, what: str) -> list[float]:
        """Seconds of the heartbeats under way at any moment of a phase, sorted."""
        if what == "quiet":
            return sorted(b["seconds"] for b in self.beats if b["at"] + b["seconds"] < self.quiet)
        spans = [(r[f"{what}_begun"], r[f"{what}_ended"]) for r in self.rounds]
        return sorted(
            b["seconds"] for b in self.beats if any(b["at"] < e and b["at"] + b["seconds"] > s for s, e in spans)
        )


def simulate(folder: Path, options: argparse.Namespace) -> Result:
    """A whole run in `folder`."""
    regions = [f"R{n}" for n in range(options.regions)]
    write_run(folder, options.preset, regions, options.heartbeat, options.rounds)
    (folder / "out").mkdir()
    with contextlib.ExitStack() as stack:
        url, pid = stack.enter_context(controller(folder, folder / "trace.csv"))
        deltas = Deltas(folder / "out" / "delta", options.preset)
        vars(transfer)["open"] = deltas.open
        stack.callback(vars(transfer).pop, "open")
        token = (folder / "home" / "join-token").read_text().strip()
        readers = options.sites if options.readers is None else options.readers
        sites = [Site(n, regions[n % len(regions)], url, token, deltas, n < readers) for n in range(options.sites)]
        for site in sites:
            stack.callback(site.control.http.close)
        beats, watch = Beats(url, sites, options.heartbeat, folder / "beats"), Watch(pid)
        stack.callback(beats.close)  # before its folder goes, also when no round begins
        watch.start()
        time.sleep(options.quiet)
        quiet = time.time()
        enter_together(sites)
        together = threading.Barrier(len(sites))
        threads = [threading.Thread(target=site.run, args=(options.rounds, together, options.limit)) for site in sites]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        watch.over.set()
        told = beats.stop()
    spans = [span for site in sites for span in site.spans]
    failures = [site.failure for site in sites if site.failure]
    failures += [beat["wrong"] for beat in told if beat["wrong"]]
    failures += [f"ledger: {problem}" for _, problem in inspect_store(folder / "home", weights=True) if problem]
    return Result(
        len(sites), deltas.size, quiet, phases(folder / "home", spans, watch.merging), spans, told, failures,
        watch.controller, watch.merge_all, watch.merge_own, watch.load, watch.busy,
    )  # fmt: skip


def phases(home: Path, spans: list[Span], merging: list[float]) -> list[dict[str, float]]:
    """Begin and end of each phase of each merged round."""
    found = []
    with reading(home / "state.db") as tx:
        rows = [row for n in range(1, tx.next_round()) if (row := tx.round(n)) is not None and row.version is not None]
        members = {row.round: tx.members(row.round) for row in rows}
    for row in rows:
        begun = min(s.begun for s in spans if s.what == "upload" and s.round == row.round)
        arrived = max(s.ended for s in spans if s.what == "commit" and s.round == row.round)
        after = [s for s in spans if s.round > row.round]
        known = min((s.ended for s in after if s.what == "checkout"), default=arrived)
        seen = [at for at in merging if arrived - 1 <= at <= known]
        computed = max(seen, default=known)
        following = min(s.round for s in after) if after else 0
        read = [s for s in after if s.what == "download" and s.round == following]
        found.append({
            "members": sum(m.version == row.version for m in members[row.round]),
            "upload_begun": begun, "upload_ended": arrived,
            "merge_begun": arrived, "merge_ended": computed,
            "publish_begun": computed, "publish_ended": known,
            "download_begun": known, "download_ended": max((s.ended for s in read), default=known),
        })  # fmt: skip
    return found


PHASES = ("upload", "merge", "publish", "download")


def at(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted values lie."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def report(result: Result) -> None:
    print(f"{result.sites} sites, {result.delta_bytes:,} bytes a delta")
    print("\n| round | merged | upload | merge | publish | download | whole | load |\n|" + "---|" * 8)
    for number, row in enumerate(result.rounds, 1):
        seconds = [row[f"{phase}_ended"] - row[f"{phase}_begun"] for phase in PHASES]
        loads = [load for when, load in result.loads if row["upload_begun"] <= when <= row["download_ended"]]
        cells = [f"{value:.1f}" for value in [*seconds, sum(seconds)]]
        print(f"| {number} | {row['members']} | " + " | ".join(cells) + f" | {max(loads, default=0):.1f} |")
    whole = sum(row["download_ended"] - row["upload_begun"] for row in result.rounds)
    if result.rounds:
        print(f"\n{3600 * len(result.rounds) / whole:.1f} rounds per hour without inner steps")
    for phase in PHASES:
        shares = [result.processors(row, phase) for row in result.rounds]
        print(f"processors used by the controller, {phase}: " + " ".join(f"{share:.2f}" for share in shares))
    print(f"memory: controller {result.controller_gb:.2f} GB, merge {result.merge_gb:.2f} GB,")
    print(f"of which its own {result.merge_own_gb:.2f} GB and the rest mapped files")
    print("\n| heartbeats | number | p50, s | p99, s | max, s |\n|" + "---|" * 5)
    for phase in ("quiet", *PHASES):
        values = result.during(phase)
        print(f"| {phase} | {len(values)} | " + " | ".join(f"{at(values, q):.3f}" for q in (0.5, 0.99, 1.0)) + " |")
    print(f"\n{len(result.failures)} failures" + "".join(f"\n- {text}" for text in result.failures[:10]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--regions", type=int, default=4)
    parser.add_argument("--preset", default="d20-561m")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where to make the files, on a real disk")
    parser.add_argument("--readers", type=int, help="how many sites download the update; default: all")
    parser.add_argument("--heartbeat", type=float, default=2.0, help="seconds between the heartbeats of a site")
    parser.add_argument("--quiet", type=float, default=20.0, help="seconds of heartbeats alone before the rounds")
    parser.add_argument("--limit", type=float, default=1200.0, help="longest wait of a site, s")
    parser.add_argument("--json", type=Path, help="write everything that was seen there")
    parser.add_argument("--beats", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.beats:
        send_beats(options.beats)
        return 0
    weights = 4 * sum(int(np.prod(shape)) for shape in weight_shapes(preset(options.preset)).values())
    needed = options.sites * weights // 4 + 5 * weights
    if (free := shutil.disk_usage(options.folder).free) < 1.1 * needed:
        raise SystemExit(f"{options.folder} has {free / 1e9:.0f} GB left, {1.1 * needed / 1e9:.0f} are needed")
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="scale-") as folder:
        result = simulate(Path(folder), options)
    if options.json:
        options.json.write_text(json.dumps(asdict(result)))
    report(result)
    return 1 if result.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
