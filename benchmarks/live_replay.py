"""A whole run of hours in minutes: the real controller on a trace at speed, beside what the planner says of it.

`curtail controller start` runs as a process of its own, with its merges, on loopback HTTP. A site is a thread that
keeps to the contract with the agent's own calls: it joins, reports, checks out, tells progress, uploads a contribution
of zeros (or, alone, the weights) and commits. Its training is a clock: one inner step in each second of the trace, and
it trains on while its contribution travels, as `[rounds] overlap` lets it. What takes real time - a merge, an upload, a
step of the energy simulation, a heartbeat - takes `--speed` times as long on the trace; so the planner is asked twice:
with the costs that were asked of the sites, and with those that the controller measured.

    python benchmarks/live_replay.py --trace mci.csv --speed 600
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from agent.http import transfer
from agent.http.client import Control, open_http
from benchmarks.runs import controller, write_zeros
from controller.store import reading
from curtail import wire
from curtail.carbon.accounting import ATTRIBUTED
from curtail.commands.simulate.run import Options, simulate
from curtail.errors import CurtailError
from curtail.grid.trace import Trace, load_trace
from curtail.security.signing import AgentKey, Signer
from curtail.system.disk import SystemDisk, file_sha256
from nanochat import checkpoint, delta, weights
from nanochat.presets import preset, weight_shapes

PRESET, LENGTH = "d2-test", 16
REGIONS = ("CAISO_NORTH", "SPP_TX", "NEM_SA")
WORK, LOAD_S, STOP_S, ROUND_S = 64_025, 100.0, 15.0, 1800.0
TRAIN_W, IDLE_W = 2024.0, 468.0
BEAT_S, LOOK_S = 0.1, 0.01  # wall
RUN_FILE = f"""
[run]
name = "replay"
[model]
preset = "{PRESET}"
[data]
path = "data"
[training]
token_budget = {WORK * LENGTH}
batch_samples = 1
[rounds]
inner_steps = 3000
length = "{{length}} s"
grace = "2 s"
overlap = true
[policy]
permit = "1 s"
tokens_per_s = {{rate}}
{{policy}}
[fleet]
heartbeat = "{BEAT_S} s"
lost_after = "4 s"
"""
REGION = f'[regions.{{name}}]\npower_train = "{TRAIN_W} W"\npower_idle = "{IDLE_W} W"\n'
RUNS: tuple[tuple[str, bool, str, dict[str, float]], ...] = (
    ("as soon as possible, perfect forecast", True, "", {}),
    ("deadline 14.6 h, perfect forecast", True, 'deadline = "14.6 h"', {"deadline_h": 14.6}),
    ("no forecast, no dwell", False, "", {"enter_dwell_s": 0.0}),
)


# -- what the run needs ------------------------------------------------------------------


def write_run(folder: Path, speed: float, policy: str) -> None:
    """Run file, and tokens that are zeros."""
    write_zeros(folder, preset(PRESET).vocab_size, LENGTH)
    text = RUN_FILE.format(length=ROUND_S / speed, rate=LENGTH * speed, policy=policy)
    (folder / "run.toml").write_text(text + "".join(REGION.format(name=region) for region in REGIONS))


class Contributions:
    """What is handed in: the first weights, and for each region a delta of zeros.

    The scales of these are not zero and differ, so that the files have names of their own: what another site uploaded
    cannot be committed.
    """

    def __init__(self, folder: Path, codec: str = "int8") -> None:
        _, first = checkpoint.read_checkpoint(folder / "home" / "versions" / "v000000")
        self.exact = folder / "weights.safetensors"
        weights.write_weights(self.exact, first, SystemDisk(), "BENCHMARK")
        self.digest = weights.digest(first)
        empty = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(preset(PRESET)).items()}
        coded = delta.encode(empty, codec)
        self.zeros = {region: folder / f"zeros-{region}.safetensors" for region in REGIONS}
        for number, path in enumerate(self.zeros.values(), 1):
            scaled = {n: np.full_like(part, number) if n.endswith(":scale") else part for n, part in coded.items()}
            delta.write_delta(path, scaled, SystemDisk(), "BENCHMARK")
        self.sha = {path: file_sha256(path) for path in (self.exact, *self.zeros.values())}


# -- sites -------------------------------------------------------------------------------


class Site(threading.Thread):
    """An agent and its job that only pretend to train. Times are this process's monotonic seconds."""

    def __init__(self, region: str, url: str, token: str, files: Contributions, speed: float) -> None:
        super().__init__(name=region, daemon=True)
        self.site, self.region, self.speed, self.files = f"site-{region}", region, speed, files
        key = AgentKey()
        signer = Signer(key, time.time, 0)
        self.control = Control(open_http(url), signer=signer)
        request = wire.JoinRequest(
            wire.PROTOCOL, hashlib.sha256(region.encode()).hexdigest()[:32], self.site, region, "simulated", 1, token,
            key=key.public,
        )  # fmt: skip
        self.agent, self.fence = request.agent, self.control.join(request).fence
        signer.fence = self.fence
        self.phase, self.until, self.job, self.jobs = "paused", 0.0, None, 0
        self.work: wire.Assignment | None = None
        self.began = self.next_beat = 0.0
        self.flying: wire.Assignment | None = None  # contributed to, and the next round is waited for
        self.permit_until = self.hold_until = float("-inf")
        self.finished = False
        self.starts = self.dropped = 0
        self.failure = ""

    def run(self) -> None:
        try:
            while not (self.finished and self.phase == "paused"):
                self.step(time.monotonic())
                time.sleep(LOOK_S)
        except CurtailError as error:
            self.failure = f"{self.site}: {error}"

    def step(self, now: float) -> None:
        """All that is due."""
        if self.phase == "drain" and now >= self.until:
            self.job = None
            self.enter("paused", now)
        elif now >= self.next_beat:
            self.beat(now)
        allowed = now <= self.permit_until and not self.finished
        if self.phase == "paused" and allowed:
            self.jobs, self.starts, self.job = self.jobs + 1, self.starts + 1, f"{self.site}-{self.jobs}"
            self.enter("start", now, now + LOAD_S / self.speed)
        elif self.phase == "hold" and allowed:
            self.ask(now)
        elif self.phase in ("start", "train", "sync", "hold") and not allowed:
            self.stop(now)
        elif self.phase in ("start", "sync") and now >= self.until:
            self.ask(now)
        elif self.phase == "train":
            self.train(now)

    # -- reports ---------------------------------------------------------------------------

    def beat(self, now: float) -> None:
        state = {"paused": "IDLE", "start": "STARTING", "drain": "DRAINING", "hold": "HOLDING"}
        reply = self.control.heartbeat(wire.Heartbeat(
            self.agent, self.site, self.fence, state.get(self.phase, "TRAINING"), self.phase, self.job, None, ""
        ))  # fmt: skip
        self.next_beat, self.finished = now + BEAT_S, reply.finished
        self.permit_until = now + reply.valid_s if reply.granted else float("-inf")
        self.hold_until = now + reply.hold_s if reply.hold_s > 0 else float("-inf")

    def enter(self, phase: str, now: float, until: float = 0.0) -> None:
        self.phase, self.until = phase, until
        self.beat(now)

    # -- rounds ------------------------------------------------------------------------------

    def steps(self, now: float) -> int:
        assert self.work is not None
        return min(self.work.steps, int((now - self.began) * self.speed))

    def ask(self, now: float, closing: bool = False) -> None:
        """Ask for a round; with one under way that is the next, which begins with what was trained meanwhile."""
        assert self.job is not None
        reply = self.control.checkout(
            wire.CheckoutRequest(self.site, self.fence, self.job, None, self.files.digest, closing)
        )
        if reply.assignment is not None:
            ahead = self.flying is not None and self.began > 0
            self.work, self.flying = reply.assignment, None
            self.began = self.began if ahead else now
            if self.phase != "train" and not closing:
                self.enter("train", now)
        elif reply.kind == "leave" and not closing:
            self.leave(now)
        else:
            self.until = now + min(0.1, reply.retry_s)
            if self.phase == "hold":
                self.enter("sync", now, self.until)

    def train(self, now: float) -> None:
        if self.flying is not None:  # training ahead
            if now >= self.until:
                self.ask(now)
            return
        assert self.work is not None and self.job is not None
        done = self.steps(now)
        end = now - self.began >= self.work.train_s or done >= self.work.steps
        if not end and now >= self.until:
            self.until = now + 0.1
            end = self.control.progress(wire.Progress(
                self.site, self.fence, self.job, self.work.round, done, done * LENGTH, 2.0, LENGTH * self.speed
            )).end_round  # fmt: skip
        if end and done:
            self.commit(now, done, keep=True)
            if self.phase == "train":
                self.ask(time.monotonic())

    def commit(self, now: float, steps: int, keep: bool) -> None:
        """Hand in so many steps of the present round."""
        work = self.work
        assert work is not None and self.job is not None
        local = work.codec == "weights"
        path, began = self.files.exact if local else self.files.zeros[self.region], self.began
        sha = self.files.sha[path]
        keep = keep and work.keep and steps < work.lease_stop - work.lease_start
        # from here on the clock of the next round runs
        self.began, self.work, self.flying = (began + steps / self.speed) if keep else 0.0, None, work
        try:
            transfer.upload(self.control, path, sha)
            self.control.commit(wire.CommitRequest(
                self.site, self.fence, self.job, work.round, work.base_version, work.base_digest, steps, steps,
                steps * LENGTH, sha, work.codec, self.files.digest if local else "", 3.0, 3.0, 3.0,
                max(1e-3, steps / self.speed), keep,
            ))  # fmt: skip
        except CurtailError as error:
            self.dropped += steps
            self.failure = f"{self.site}: {error}"
        if not keep and self.phase == "train":
            self.enter("sync", time.monotonic())  # its lease is used up: this round is not overlapped

    def stop(self, now: float) -> None:
        """The permit is over: hand in what there is, then hold or leave."""
        holds = self.hold_until > now and self.phase in ("train", "sync")
        if self.phase == "train":
            self.enter("sync" if holds else "drain", now, float("inf"))  # the last step is made
            if self.flying is not None and self.began > 0:
                self.ask(now, closing=True)
            if self.work is not None and (done := self.steps(now)) > 0:
                self.commit(now, done, keep=False)
            elif self.flying is not None and self.began > 0:
                self.dropped += int((now - self.began) * self.speed)
        self.work = self.flying = None
        self.began = 0.0
        now = time.monotonic()
        if holds:
            self.enter("hold", now)
        elif self.hold_until <= now or self.phase == "drain":
            self.leave(now)

    def leave(self, now: float) -> None:
        self.work = self.flying = None
        self.began = 0.0
        self.enter("drain", now, now + STOP_S / self.speed)


# -- a run, and what came of it ----------------------------------------------------------------


def play(
    folder: Path, trace: Path, speed: float, forecast: bool, policy: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures of one run, and the costs that its controller measured (medians over the sites)."""
    write_run(folder, speed, policy)
    flags = ("--forecast",) if forecast else ()
    with controller(folder, trace, *flags, speed=speed) as (url, _):
        files = Contributions(folder)
        token = (folder / "home" / "join-token").read_text().strip()
        sites = [Site(region, url, token, files, speed) for region in REGIONS]
        for site in sites:
            site.start()
        for site in sites:
            site.join(1.2 * 18 * 3600.0 / speed + 10.0)
            if site.is_alive():
                raise SystemExit(f"{site.site} does not end: {site.phase} {site.failure}\n{site.control.status()}")
        status = sites[0].control.status()
        time.sleep(0.5)
    for site in sites:
        if site.failure or site.dropped:
            print(f"{site.site}: {site.dropped} steps were dropped; {site.failure}", file=sys.stderr)
    with reading(folder / "home" / "state.db") as tx:
        train = sum(e.t1 - e.t0 for e in tx.entries() if e.phase == "train")
        print(f"{train:.0f} s of training, {tx.merged_rounds()} merged rounds", file=sys.stderr)
    measured = {
        name: statistics.median(getattr(site.costs, name) for site in status.sites if site.costs is not None)
        for name in ("start_s", "stop_s", "sync_s")
    }
    return figures(folder, load_trace(trace, "g/kWh", REGIONS), sum(site.starts for site in sites)), measured


def figures(folder: Path, trace: Trace, starts: int) -> dict[str, float]:
    """From the rows of the ledger; carbon by the trace itself, integrated directly, and as it was booked."""
    with reading(folder / "home" / "state.db") as tx:
        rows = [entry for entry in tx.entries() if entry.phase in ATTRIBUTED and entry.t1 > entry.t0]
    kwh = sum(row.kwh for row in rows)
    kg = clean = dirty = 0.0
    for row in rows:
        at = row.t0
        while at < row.t1:
            index = bisect_right(trace.stamps, at) - 1
            stop = min(row.t1, trace.stamps[index] + trace.period)
            mci, part = trace.values[row.region][index] or 0.0, row.kwh * (stop - at) / (row.t1 - row.t0)
            kg += part * mci / 1000.0
            clean += part if mci < 100.0 else 0.0
            dirty += stop - at if mci >= 100.0 and row.phase == "train" else 0.0
            at = stop
    return {
        "h": (max(row.t1 for row in rows) - trace.start) / 3600.0, "kWh": kwh, "kg": kg,
        "kg booked": sum(row.kg or 0.0 for row in rows), "curtailed %": 100.0 * clean / kwh, "dirty s": dirty,
        "starts": starts,
    }  # fmt: skip


def planned(trace: Trace, forecast: bool, costs: dict[str, float], **more: float) -> dict[str, float]:
    expected = "perfect" if forecast else "none"
    options = Options(
        Path("t"), "g/kWh", REGIONS, WORK, TRAIN_W, IDLE_W, load_s=costs["start_s"], stop_s=costs["stop_s"],
        sync_s=costs["sync_s"], round_s=ROUND_S, forecast=expected,
    )  # fmt: skip
    found: dict[str, Any] = simulate(replace(options, **more), trace, expected)[0]
    return {
        "h": found["runtime_h"], "kWh": found["energy_kwh"], "kg": found["kg_attributed"],
        "kg booked": found["kg_attributed"], "curtailed %": found["curtailed_energy_pct"],
        "dirty s": found["dirty_train_s"], "starts": found["starts"],
    }  # fmt: skip


def row(name: str, found: dict[str, float]) -> str:
    return (
        f"| {name} | {found['h']:.3f} | {found['kWh']:.2f} | {found['kg']:.3f} | {found['kg booked']:.3f} |"
        f" {found['curtailed %']:.2f} | {found['dirty s']:.0f} | {found['starts']:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, required=True, help="MCI in g/kWh with the columns of the prototype")
    parser.add_argument("--speed", type=float, default=600.0)
    parser.add_argument("--only", type=int, help="number of one run, from 0")
    given = parser.parse_args()
    trace = load_trace(given.trace, "g/kWh", REGIONS)
    print("| run | h | kWh | kg | kg booked | curtailed % | dirty s | starts |\n|---|---|---|---|---|---|---|---|")
    for number, (name, forecast, policy, more) in enumerate(RUNS):
        if given.only not in (None, number):
            continue
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            live, measured = play(Path(folder), given.trace.resolve(), given.speed, forecast, policy)
            took = time.monotonic() - began
        asked = {"start_s": LOAD_S, "stop_s": STOP_S, "sync_s": 0.0}
        print(row(f"{name}: live, {took:.0f} s of wall time", live), flush=True)
        print(row("planner, costs as asked", planned(trace, forecast, asked, **more)))
        told = ", ".join(f"{cost.removesuffix('_s')} {seconds:.0f} s" for cost, seconds in measured.items())
        print(row(f"planner, costs as measured ({told})", planned(trace, forecast, measured, **more)), flush=True)


if __name__ == "__main__":
    main()
