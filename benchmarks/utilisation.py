"""How much of a federated round a site spends in inner steps, and where the rest goes.

Two parts, each with a command of its own:

  python benchmarks/utilisation.py scaled     real processes: a controller, two agents, their torchrun jobs, a small
      model, and a limit on each site's link (`--link-limit`), chosen so that a transfer takes the same share of a round
      as d20's at 1 Gbit/s, 100 and 50 Mbit/s. Blocking and overlapped. Seconds of each phase from the jobs' logs.
  python benchmarks/utilisation.py d20        measured parts, computed total: hashing, coding, copying and applying
      are measured here with arrays of d20's shapes, in seconds for each layer's share, and put together with d20's
      bytes and step time into the seconds of a round.

The scale: d20 trains 100 steps of 2.73 s and moves 0.562 GB in each direction, so a transfer at 1 Gbit/s takes 3.3% of
the time of the steps. Here a round is `--round` seconds of steps, and the link is what makes its transfers 3.3%.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from curtail.config.schema import LEASE_ROUNDS
from nanochat import delta, weights
from nanochat.presets import preset, weight_shapes

ROOT = Path(__file__).resolve().parent.parent
PRESET, VOCABULARY, LENGTH, BATCH = "d4-test", 4096, 128, 2
D20_STEP_S, D20_STEPS = 2.73, 100
LINKS = (("1 Gbit/s", 125e6), ("100 Mbit/s", 12.5e6), ("50 Mbit/s", 6.25e6))
AHEAD = 9
"""Rounds' worth of samples in a lease beyond its first round: when they are used up, one round is not overlapped."""

LINE = re.compile(r"^job: round (\d+): (\d+) steps; (.*)$", re.MULTILINE)
RUN_FILE = """
[run]
name = "utilisation"
[model]
preset = "{preset}"
[data]
path = "{data}"
[training]
token_budget = 100_000_000
batch_samples = {batch}
[rounds]
inner_steps = {steps}
ahead_steps = {ahead}
length = "600 s"
grace = "60 s"
overlap = {overlap}
[policy]
permit = "60 s"
max_reading_age = "20000 s"
[fleet]
lost_after = "40 s"
[regions.A]
power_train = "2 kW"
power_idle = "500 W"
"""


STEPS = """
import sys, time, numpy as np, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import preset
from nanochat.schedule import Schedule
from nanochat.train import inner_steps
config, times = preset({preset!r}), []
model = GPT(config)
model.init_weights(1)
ids = np.random.default_rng(1).integers(0, config.vocab_size, ({batch}, {length}))
inner_steps(
    model, MuonAdamW(model, config, {tokens}), Schedule(10**9, {tokens}), iter(lambda: [(ids, ids)], None),
    tokens_before=0, tokens_per_step={tokens}, until=lambda s: times.append(time.perf_counter()) or s == {steps},
    device=torch.device("cpu"),
)
spans = sorted(b - a for a, b in zip(times[2:], times[3:]))
print(spans[len(spans) // 2])
"""


def encoded_bytes(name: str, codec: str = "int8") -> int:
    """Bytes of a delta: one byte a value and a float32 for each row; other arrays float32."""
    assert codec == "int8"
    shapes = weight_shapes(preset(name)).values()
    return sum(s[0] * s[1] + 4 * s[0] if len(s) == 2 else 4 * int(np.prod(s)) for s in shapes)


# -- real processes ------------------------------------------------------------


def step_seconds(steps: int = 12) -> float:
    """One step in each of two processes at the same time, as two sites on this machine do; median."""
    code = STEPS.format(root=str(ROOT), preset=PRESET, tokens=BATCH * LENGTH, batch=BATCH, length=LENGTH, steps=steps)
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    return statistics.mean(float(process.communicate()[0]) for process in both)


def prepare(folder: Path) -> None:
    """Data of random tokens, and a trace that never ends: neither matters to time."""
    from curtail.system.disk import SystemDisk
    from nanochat import dataset, pack
    from nanochat.tokenizer import Tokenizer

    library = Path(os.__file__).parent
    sources = sorted(path for name in ("json", "asyncio", "email", "http") for path in (library / name).glob("*.py"))
    dataset.import_texts(sources, folder / "shards", disk=SystemDisk())
    tokenizer = Tokenizer.train(dataset.iterate_texts(folder / "shards"), VOCABULARY)
    pack.prepare(folder / "shards", tokenizer, folder / "data", disk=SystemDisk(), sequence_len=LENGTH)
    start = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    rows = [f"{datetime.fromtimestamp(start + 300 * n, UTC).isoformat()},40" for n in range(300)]
    (folder / "trace.csv").write_text("point_time,A\n" + "\n".join(rows) + "\n")


def run(folder: Path, data: Path, steps: int, overlap: bool, link: float, rounds: int, limit_s: float) -> list[dict]:
    """Phase seconds of both sites' rounds, the first two of each left out."""
    folder.mkdir()
    text = RUN_FILE.format(preset=PRESET, data=data / "data", batch=BATCH, steps=steps, ahead=AHEAD * steps,
                           overlap=str(overlap).lower())  # fmt: skip
    (folder / "run.toml").write_text(text)
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: object) -> None:
        with open(folder / f"{name}.log", "wb") as log:
            env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            argv = [sys.executable, "-m", "curtail", *map(str, arguments)]
            started.append(subprocess.Popen(argv, stdout=log, stderr=log, env=env, start_new_session=True))

    home = folder / "home"
    try:
        start("controller", "controller", "start", folder / "run.toml", "--home", home, "--trace", data / "trace.csv",
              "--unit", "g/kWh", "--port", 0, "--no-announce")  # fmt: skip
        end = time.monotonic() + limit_s
        while not (home / "controller.json").exists():
            if time.monotonic() > end:
                raise SystemExit(f"the controller did not start, see {folder}")
            time.sleep(0.1)
        url = json.loads((home / "controller.json").read_text())["url"]
        for site in ("one", "two"):
            start(site, "agent", "join", url, "--site", site, "--region", "A", "--home", folder / site,
                  "--token-file", home / "join-token", "--ranks", 1, "--threads", 1,
                  "--link-limit", f"{link / 1e3:.3f}kB/s")  # fmt: skip
        while time.monotonic() < end:
            found = {site: rounds_of(folder / site) for site in ("one", "two")}
            if all(len(lines) >= rounds + 2 for lines in found.values()):
                break
            time.sleep(0.5)
        else:
            raise SystemExit(f"{rounds} rounds did not end in {limit_s:.0f} s, see {folder}")
    finally:
        # The agents first: their jobs would wait for a controller that is gone, to hand in what they have.
        for group in (started[1:], started[:1]):
            for process in group:
                process.send_signal(signal.SIGTERM)
            for process in group:
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    return [phases for lines in found.values() for phases in lines[2 : rounds + 2]]


def rounds_of(home: Path) -> list[dict[str, float]]:
    """The phases of each round that the jobs of one site have logged."""
    logs = sorted(home.glob("jobs/*/job.log"), key=lambda path: path.stat().st_mtime)
    found = [match[3] for log in logs for match in LINE.finditer(log.read_text())]
    return [{name: float(number) for name, number in (part.split() for part in line.split(", "))} for line in found]


def scaled(options: argparse.Namespace) -> None:
    step = step_seconds()
    steps = max(2, round(options.round / step))
    sent = encoded_bytes(PRESET)
    print(f"model {PRESET}: {sent / 1e6:.2f} MB a delta, {step:.3f} s a step, rounds of {steps} steps")
    names = ("total", "step", "snapshot", "idle", "apply", "encode", "keep", "upload", "wait", "fetch")
    print("| link of d20 | here | mode | share of steps | " + " | ".join(names) + " |")
    print("|" + "---|" * (len(names) + 4))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for words, rate in LINKS:
            if options.links and words not in options.links:
                continue
            here = sent / (steps * step) / (encoded_bytes("d20-561m") / (D20_STEPS * D20_STEP_S)) * rate
            for overlap in (False, True):
                mode = "overlapped" if overlap else "blocking"
                made = run(folder / f"{rate:.0f}-{mode}", folder, steps, overlap, here, options.rounds, options.limit)
                mean = {key: statistics.mean(phases.get(key, 0.0) for phases in made) for key in names}
                cells = [f"{words}", f"{here * 8 / 1e6:.1f} Mbit/s", mode, f"{mean['step'] / mean['total']:.1%}"]
                print("| " + " | ".join([*cells, *(f"{mean[key]:.2f}" for key in names)]) + " |", flush=True)


# -- computed for d20 ------------------------------------------------------------


def timed(work, repeat: int = 3) -> float:
    """Seconds of the fastest of some calls: other programs only slow it."""
    best = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def parts(folder: Path) -> dict[str, float]:
    """Seconds for d20 of what does not depend on the link, from one block and one embedding measured here."""
    shapes = weight_shapes(preset("d20-561m"))
    chosen = {n: s for n, s in shapes.items() if n.startswith("transformer.h.0.") or n.startswith("lm_head")}
    share = sum(int(np.prod(s)) for s in shapes.values()) / sum(int(np.prod(s)) for s in chosen.values())
    rng = np.random.default_rng(1)
    base = {n: rng.standard_normal(s, dtype=np.float32) for n, s in chosen.items()}
    local = {n: a + rng.standard_normal(a.shape, dtype=np.float32) * np.float32(0.01) for n, a in base.items()}
    encoded = delta.encode(delta.difference(base, local), "int8")
    out = {n: a.copy() for n, a in base.items()}
    scratch = {n: np.empty_like(a) for n, a in base.items()}
    path = folder / "delta"

    def write() -> None:
        from curtail.system.disk import SystemDisk

        delta.write_delta(path, encoded, SystemDisk(), "BENCH")

    write()
    size = path.stat().st_size
    data = path.read_bytes()

    def copy() -> None:
        for n, array in base.items():
            np.copyto(scratch[n], array)

    def add() -> None:
        for n, array in base.items():
            scratch[n] += array - local[n]

    seconds = {
        "copy": timed(copy),
        "finite and digest": timed(lambda: delta.all_finite(local)) + timed(lambda: weights.digest(local)),
        "difference and encode": timed(lambda: delta.encode(delta.difference(base, local), "int8")),
        "write delta": timed(write),
        "hash delta": timed(lambda: hashlib.sha256(data).digest()),
        "decode and apply": timed(lambda: delta.apply_update(base, delta.decode(encoded), out=out)),
        "digest": timed(lambda: weights.digest(out)),
        "add": timed(add),
    }
    return {name: value * share for name, value in seconds.items()} | {"delta GB": size * share / 1e9}


def d20(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        measured = parts(Path(name))
    print("| part, d20 | seconds |\n|---|---|")
    for key, value in measured.items():
        print(f"| {key} | {value:.2f} |")
    sent, steps = encoded_bytes("d20-561m"), options.steps * D20_STEP_S
    # Weights (2.24 GB) and the optimizer's state (2.91 GB) go from the device to the host; new weights go back.
    snapshot, back = (2.24 + 2.91) / options.device_rate, 2.24 / options.device_rate
    encode = measured["finite and digest"] + measured["difference and encode"] + measured["write delta"]
    encode += measured["hash delta"]
    receive = measured["hash delta"] + measured["decode and apply"] + measured["digest"]
    add, load = measured["add"] + back, back
    print(
        "\n| link | mode | steps | snapshot | encode | upload | merge | download | receive | apply | beside | share |"
    )
    print("|" + "---|" * 12)
    for words, rate in LINKS:
        move = sent / rate
        beside = encode + move + options.merge + move + receive
        wholes: dict[str, float] = {}
        for mode in ("blocking", "overlapped"):
            last = load if mode == "blocking" else add
            idle = beside if mode == "blocking" else max(0.0, beside - steps)
            wholes[mode] = steps + snapshot + idle + last
            share = steps / wholes[mode]
            row = [steps, snapshot, encode, move, options.merge, move, receive, last, beside]
            print(f"| {words} | {mode} | " + " | ".join(f"{value:.1f}" for value in row) + f" | {share:.1%} |")
        # A lease of several sites lasts for so many rounds, and the last one cannot be overlapped.
        share = LEASE_ROUNDS * steps / ((LEASE_ROUNDS - 1) * wholes["overlapped"] + wholes["blocking"])
        print(f"| {words} | one of {LEASE_ROUNDS} blocking |" + " |" * 9 + f" {share:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    real = commands.add_parser("scaled")
    real.add_argument("--round", type=float, default=10.0, help="seconds of inner steps in a round")
    real.add_argument("--rounds", type=int, default=3, help="rounds of each site that count")
    real.add_argument("--limit", type=float, default=400.0, help="longest time of one series, s")
    real.add_argument("--links", nargs="*", choices=[words for words, _ in LINKS], help="only these")
    real.set_defaults(go=scaled)
    computed = commands.add_parser("d20")
    computed.add_argument("--merge", type=float, default=9.0, help="seconds of the controller's merge")
    computed.add_argument("--steps", type=int, default=D20_STEPS, help="inner steps of a round")
    computed.add_argument("--device-rate", type=float, default=2.0, help="GB/s between device and host; not measured")
    computed.set_defaults(go=d20)
    options = parser.parse_args()
    options.go(options)


if __name__ == "__main__":
    main()
