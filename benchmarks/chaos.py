"""Agents with real jobs and a controller, struck by faults of every kind: what is kept of the throughput?

Runs the same fleet twice, calm and struck, and compares tokens merged per second.
An inner step takes a fixed time, as on GPUs: else the sites share the cores, and
each job that starts slows all of them.
Afterwards every site must train again without anybody's help, the data ledger
must balance, every version must have the same hash everywhere, and no process
may have ended that no fault ended. See chaos.md for results.

    python benchmarks/chaos.py --seed 1 --out chaos.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.chaos_account import account, by_kind, spans  # noqa: E402
from benchmarks.chaos_faults import KINDS, Fault, plan  # noqa: E402
from benchmarks.chaos_fleet import BATCH, SEQUENCE, SPEED, START, VOCABULARY, ChaosFleet, Form  # noqa: E402
from benchmarks.chaos_machine import Machine  # noqa: E402
from controller.store import reading  # noqa: E402
from curtail import wire  # noqa: E402

LEAD_S, LEAD_OF_A_SITE_S = 45.0, 8.0
"""From the controller's start to the measured time: all jobs start, a few at a time, and warm up."""

RECOVERY_S = 120.0


@dataclass(slots=True)
class Result:
    """What one run showed."""

    seconds: float = 0.0
    tokens: float = 0.0
    versions: int = 0
    faults: list[str] = field(default_factory=list)
    recovered_after_s: float = 0.0  # from the end of the time until every site had contributed once more
    versions_seen: list[tuple[float, int]] = field(default_factory=list)  # when, from the beginning of the time
    merged: list[tuple[int, str, int]] = field(default_factory=list)  # version, site, tokens
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0


def packed(folder: Path) -> Path:
    """Packed data of some of the standard library's sources."""
    from curtail.system.disk import SystemDisk
    from nanochat import dataset, pack
    from nanochat.tokenizer import Tokenizer

    if not (folder / "data" / "manifest.json").exists():
        library, disk = Path(sysconfig.get_paths()["stdlib"]), SystemDisk()
        texts = sorted(path for name in ("json", "asyncio", "email", "http") for path in (library / name).glob("*.py"))
        dataset.import_texts(texts, folder / "shards", disk=disk)
        tokenizer = Tokenizer.train(dataset.iterate_texts(folder / "shards"), VOCABULARY)
        pack.prepare(folder / "shards", tokenizer, folder / "data", disk=disk, sequence_len=SEQUENCE)
    return folder / "data"


def trains(status: wire.Status | None, sites: Sequence[str]) -> bool:
    """Do all sites train in the open round?"""
    return status is not None and {s.site for s in status.sites if s.state == "TRAINING" and s.step > 0} >= set(sites)


class Course:
    """Tokens over time, from snapshots: versions come every few seconds, between them the course is a line."""

    def __init__(self) -> None:
        self.points: list[tuple[float, int, int]] = []
        self._before: int | None = None

    def see(self, now: float, status: wire.Status | None) -> None:
        """Note a snapshot if a version came since the one before; how old that of the first one is, nobody knows."""
        if status is None:
            return
        if self._before is not None and status.tokens > self._before:
            self.points.append((now, status.tokens, status.version))
        self._before = status.tokens

    def tokens(self, at: float) -> float:
        """Tokens at a moment between two versions."""
        before = max((p for p in self.points if p[0] <= at), default=self.points[0])
        after = min((p for p in self.points if p[0] > at), default=self.points[-1])
        if after[0] == before[0]:
            return float(before[1])
        return before[1] + (after[1] - before[1]) * (at - before[0]) / (after[0] - before[0])


def play(fleet: ChaosFleet, faults: Sequence[Fault], seconds: float, result: Result) -> None:
    """Measure for `seconds`, with the faults at their times; then wait until all is well again."""
    course, undo, lead_s = Course(), [(0.0, lambda: None)], fleet.form.lead_s
    fleet.wait("all sites train", lambda: trains(fleet.status(), fleet.sites), 300.0)
    result.facts["all sites trained after"] = ready = round(_clock(fleet), 1)
    if ready > lead_s and any(fault.kind == "stale signal" for fault in faults):
        result.problems.append(f"the sites were ready after {ready:.0f} s, stale signals count from {lead_s:.0f} s")

    def begins() -> bool:
        course.see(time.monotonic(), fleet.status())
        return bool(course.points) and _clock(fleet) >= lead_s

    fleet.wait("the measured time begins", begins, lead_s + 60.0)
    began, left, machine = time.monotonic(), list(enumerate(faults)), Machine()
    look = began
    while (now := time.monotonic()) < began + seconds or len(course.points) < 2:
        while left and now - began >= left[0][1].at:
            index, fault = left.pop(0)
            print(fault, file=sys.stderr, flush=True)
            if (back := fleet.strike(fault, index)) is not None:
                undo.append((now + fault.seconds, back))
        undo = _undone(undo, now)
        fleet.supervise()
        if now >= look:
            course.see(now, fleet.status())
            machine.look()
            look = now + 0.25
        time.sleep(0.05)
    _undone(undo, float("inf"))
    result.facts |= machine.facts()
    _finish(fleet, course, began + seconds, result)
    result.seconds = seconds
    result.tokens = course.tokens(began + seconds) - course.tokens(began)
    result.versions = sum(began < now <= began + seconds for now, _, _ in course.points)
    result.versions_seen = [(now - began, version) for now, _, version in course.points]


def _finish(fleet: ChaosFleet, course: Course, end: float, result: Result) -> None:
    healed, before = time.monotonic(), fleet.status()

    def well() -> bool:
        status = fleet.status()
        course.see(time.monotonic(), status)
        if status is not None and before is not None and not result.recovered_after_s:
            had = {site.site: site.tokens for site in before.sites}
            if all(site.tokens > had[site.site] for site in status.sites):
                result.recovered_after_s = time.monotonic() - healed
        return result.recovered_after_s > 0 and trains(status, fleet.sites) and course.points[-1][0] > end

    fleet.wait("all sites train again and have contributed", well, RECOVERY_S)


def _undone(undo: list[tuple[float, Callable[[], None]]], now: float) -> list[tuple[float, Callable[[], None]]]:
    for moment, back in undo:
        if moment <= now:
            back()
    return [entry for entry in undo if entry[0] > now]


def _clock(fleet: ChaosFleet) -> float:
    status = fleet.status()
    return 0.0 if status is None else (status.now - START) / SPEED


def judge(fleet: ChaosFleet, left: Sequence[str], result: Result) -> None:
    """What must hold after every run, whatever happened in it."""
    for command in (["ledger", "check", "--weights"], ["ledger", "verify"]):
        done = subprocess.run(
            [sys.executable, "-m", "curtail", *command, str(fleet.home)], capture_output=True, text=True, cwd=ROOT
        )
        result.facts[" ".join(command)] = (done.stdout + done.stderr).strip().splitlines()[-1:]
        if done.returncode != 0:
            result.problems.append(f"curtail {' '.join(command)}: {(done.stdout + done.stderr).strip()}")
    result.problems += [f"left running: {line}" for line in left]
    result.problems += fleet.unwatched
    wrong = "are not what the controller says|weights differ from the controller's"
    with reading(fleet.home / "state.db") as tx:
        rows = [row for number in range(tx.next_round()) for row in tx.members(number)]
    result.merged = [(row.version, row.site, row.tokens) for row in rows if row.state == "MERGED" and row.version]
    if found := fleet.count(wrong):
        result.problems.append(f"{found} versions had another hash at a site")
    # torchrun spills one of its own when a rank was killed
    spilt = [name for name, text in fleet.texts() if "Traceback (most" in text and "ChildFailedError" not in text]
    result.problems += [f"{name} holds a traceback" for name in spilt]
    result.facts["starts"] = {name or "controller": process.starts for name, process in fleet.processes.items()}
    result.facts["bits flipped"] = sum(proxy.flipped for proxy in fleet.proxies.values())
    result.facts["small disks"] = bool(fleet.mounts)


def run(folder: Path, data: Path, sites: Sequence[str], faults: Sequence[Fault], seconds: float, form: Form) -> Result:
    """One run, calm if there are no faults. The folder keeps its logs."""
    result = Result(faults=[str(fault) for fault in faults])
    fleet = ChaosFleet(folder, data, sites, faults, form)
    try:
        try:
            fleet.start()
            play(fleet, faults, seconds, result)
        finally:
            left = fleet.close()
        judge(fleet, left, result)
    finally:
        _keep_logs(fleet)
        fleet.unmount()
    return result


def _keep_logs(fleet: ChaosFleet) -> None:
    kept = fleet.folder / "logs"
    kept.mkdir()
    for name, text in fleet.texts():
        (kept / name.replace(os.sep, "_")).write_text(text)


def summary(form: Form, sites: Sequence[str], faults: Sequence[Fault], rate: float, struck: Result) -> dict[str, Any]:
    """What both runs say together: what was kept, and which fault cost how much. `rate`: of the calm run, tokens/s."""
    costs, left = account(spans(struck.versions_seen, struck.merged), sites, faults, rate / len(sites), struck.seconds)
    replica_s = len(sites) * struck.seconds
    return {
        "form": asdict(form), "sites": len(sites), "seconds": struck.seconds,
        "replica_s_per_fault": replica_s / len(faults) if faults else None,
        "calm_pct_of_pace": 100 * rate * form.pace_s / (len(sites) * BATCH * SEQUENCE) if form.pace_s else None,
        "calm_tokens_per_s": rate, "struck_tokens_per_s": struck.rate, "kept_pct": 100 * struck.rate / rate,
        "costs": {cost.fault: [round(cost.own_s, 1), round(cost.others_s, 1)] for cost in costs},
        "by_kind": by_kind(costs), "near_no_fault_s": left,
    }  # fmt: skip


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="measured time of each of the two runs")
    parser.add_argument("--sites", type=int, default=24)
    parser.add_argument("--faults", type=int, default=16)
    parser.add_argument("--pace", type=float, default=1.0, help="seconds of an inner step; 0: as fast as it goes")
    parser.add_argument("--length", type=float, default=15.0, help="seconds of a round")
    parser.add_argument(
        "--overlap", action=argparse.BooleanOptionalAction, default=True, help="[rounds] overlap of the run file"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which kinds of faults, separated by commas")
    parser.add_argument("--folder", type=Path, help="where everything is kept; default: a temporary folder")
    parser.add_argument("--out", type=Path, help="a line of JSON is appended to it")
    parser.add_argument("--calm", type=float, help="tokens per second of a calm run made before; none is made then")
    asked = parser.parse_args()
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="curtail-chaos-"))).resolve()
    sites = [f"s{number:02d}" for number in range(asked.sites)]
    lead_s = LEAD_S + LEAD_OF_A_SITE_S * len(sites)
    form = Form(lead_s=lead_s)
    if asked.pace > 0:
        form = Form.as_by_default(asked.pace, asked.length, asked.overlap, lead_s)
    faults = plan(asked.seed, sites, asked.seconds, asked.faults, asked.kinds.split(","))
    data = packed(folder / "data")
    calm = None if asked.calm else run(folder / "calm", data, sites, [], asked.seconds, form)
    if calm is not None:
        print(f"calm: {calm.rate:,.0f} tokens/s, {calm.versions} versions, {calm.facts}", file=sys.stderr, flush=True)
    struck = run(folder / "struck", data, sites, faults, asked.seconds, form)
    rate = asked.calm or (calm.rate if calm else 0.0)
    line = summary(form, sites, faults, rate, struck) | {
        "seed": asked.seed, "calm": asdict(calm) if calm else None, "struck": asdict(struck),
        "load": os.getloadavg()[0],
    }  # fmt: skip
    shown = {key: value for key, value in line.items() if key not in ("calm", "struck")}
    print(json.dumps(shown | {"facts": struck.facts, "problems": struck.problems}, indent=1))
    if asked.out is not None:
        with open(asked.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    problems = struck.problems + (calm.problems if calm else [])
    if asked.folder is None and not problems:
        shutil.rmtree(folder)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
