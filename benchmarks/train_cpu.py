"""Training on a CPU: `curtail train` on two ranks, and against the simplest possible loop.

The texts are the Python standard library's sources, the model has 4 layers and a
vocabulary of 4,096 (65,536 would spend most of the time on logits). First both
recipes are trained on 2 ranks for as many steps: loss and bits per byte. Then
`curtail train` on 2 ranks of 1 thread, on 1 rank of 2 threads, and a plain loop
of the same model and optimizer with 2 threads take turns; measured is the time
between steps, in tokens per second, the first steps left out.

    python benchmarks/train_cpu.py --steps 150 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY, SEQUENCE, DEPTH, BATCH = 4096, 128, 4, 16
WARM_UP = 3
"""Steps that are left out of a speed."""


def prepare(folder: Path) -> Path:
    """Packed data of the standard library's sources."""
    from curtail.system.disk import SystemDisk
    from nanochat import dataset, pack
    from nanochat.tokenizer import Tokenizer

    library, disk = Path(sysconfig.get_paths()["stdlib"]), SystemDisk()
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
    texts = sorted(path for path in library.rglob("*.py") if not left_out & set(path.relative_to(library).parts))
    dataset.import_texts(texts, folder / "shards", disk=disk)
    tokenizer = Tokenizer.train(dataset.iterate_texts(folder / "shards"), VOCABULARY)
    manifest = pack.prepare(folder / "shards", tokenizer, folder / "data", disk=disk, sequence_len=SEQUENCE)
    print(f"{len(texts):,} files, {manifest.tokens('train'):,} tokens for training", flush=True)
    return folder / "data"


def train(data: Path, out: Path, steps: int, ranks: int, *more: str) -> list[dict[str, Any]]:
    """One run of `curtail train`; the lines of its record."""
    command = [
        *(sys.executable, "-m", "curtail", "train", "--data", str(data), "--out", str(out), "--depth", str(DEPTH)),
        *("--steps", str(steps), "--batch-samples", str(BATCH), "--save-every", "0"),
        *("--ranks", str(ranks), "--threads", str(2 // ranks), *more),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def simple_loop(data: Path, steps: int) -> list[float]:
    """The same model, optimizer and samples, with nothing around them; tokens per second of each step."""
    import torch

    from nanochat.gpt import GPT
    from nanochat.manifest import Manifest
    from nanochat.optim import MuonAdamW
    from nanochat.pack import TokenStream
    from nanochat.presets import config_for
    from nanochat.recipe import REFERENCE

    torch.set_num_threads(2)
    config = config_for("lambdas", DEPTH, VOCABULARY, SEQUENCE)
    model = GPT(config)
    model.init_weights(1)
    tokens = BATCH * SEQUENCE
    optimizer = MuonAdamW(model, config, tokens)
    schedule = REFERENCE.schedule(config, steps * tokens, tokens)
    stream = TokenStream(data, Manifest.load(data))
    rates = []
    last = time.monotonic()
    for step in range(steps):
        inputs, targets = map(torch.from_numpy, stream.batch(step * BATCH, (step + 1) * BATCH))
        loss = model(inputs, targets)
        loss.backward()
        optimizer.step(schedule.at(step * tokens))
        optimizer.zero_grad()
        loss.item()
        now = time.monotonic()
        rates.append(tokens / (now - last))
        last = now
    return rates


def curves(data: Path, folder: Path, steps: int) -> None:
    """Print the loss of both recipes, and their bits per byte at the end."""
    shown, scores = {}, {}
    for recipe in ("reference", "best"):
        lines = train(data, folder / recipe, steps, 2, "--recipe", recipe, "--eval-every", str(steps))
        losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
        scores[recipe] = next(line["val_bpb"] for line in lines if "val_bpb" in line)
        marks = sorted({1, 2, 5, 10, 20, *range(30, steps + 1, 30), steps} - set(range(steps + 1, 31)))
        # the mean of up to ten steps: single losses jump with their text
        shown[recipe] = {mark: statistics.mean(losses[n] for n in range(max(1, mark - 9), mark + 1)) for mark in marks}
        shown[recipe][1] = losses[1]
    print("\n| step | tokens | reference | best |\n|---|---|---|---|")
    for mark in shown["reference"]:
        row = " | ".join(f"{shown[recipe][mark]:.3f}" for recipe in shown)
        print(f"| {mark} | {mark * BATCH * SEQUENCE:,} | {row} |")
    row = " | ".join(f"{score:.3f}" for score in scores.values())
    print(f"| bits per byte at the end, validation | | {row} |", flush=True)


def speeds(data: Path, folder: Path, steps: int, rounds: int) -> None:
    """Print tokens per second of the three ways, by turns."""
    found: dict[str, list[list[float]]]
    found = {
        "2 ranks of 1 thread": [],
        "1 rank of 2 threads": [],
        "plain loop, 2 threads": [],
    }
    for number in range(rounds):
        for name, rates in found.items():
            if name.startswith("plain"):
                command = [sys.executable, __file__, "--simple", str(data), "--steps", str(steps)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rates.append(json.loads(done.stdout.splitlines()[-1])[WARM_UP:])
            else:
                ranks = int(name[0])
                lines = train(data, folder / f"speed-{ranks}-{number}", steps, ranks)
                rates.append([line["tok_s"] for line in lines][WARM_UP:])
    print("\n| | median tok/s | medians of the rounds | against the plain loop |\n|---|---|---|---|")
    medians = {name: [statistics.median(part) for part in rates] for name, rates in found.items()}
    plain = statistics.median(medians["plain loop, 2 threads"])
    for name, parts in medians.items():
        middle = statistics.median(parts)
        print(f"| {name} | {middle:,.0f} | {', '.join(f'{part:,.0f}' for part in parts)} | {middle / plain:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150, help="of the curves; 0: none")
    parser.add_argument("--speed-steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--simple", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if given.simple:
        print(json.dumps(simple_loop(given.simple, given.steps)))
        return
    print("load average before:", *(f"{load:.1f}" for load in os.getloadavg()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = prepare(folder)
        speeds(data, folder, given.speed_steps, given.rounds)
        if given.steps:
            curves(data, folder, given.steps)
    print("load average after:", *(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
