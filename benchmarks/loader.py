"""Reading batches: token files through memmap against packing token by token, and what reading costs a training step.

First part, in one run and by turns: `TokenStream.batch` on token files of random
ids, packed as a stream and as rows, against the loop that puts documents (lists of
ids, tokenised already) into a deque and takes them out token by token, which is how
a loader without token files packs. Both give int64 inputs and targets of shape
(8, 2048). Second part: the time of a step of `StepBatches`, with the next batch read
meanwhile and without, for a step that waits (as for a GPU) and one that computes.

    python benchmarks/loader.py
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from nanochat.manifest import Manifest, TokenFile
from nanochat.stream import TokenStream
from nanochat.train import StepBatches

ROWS, LENGTH = 8, 2048
VOCABULARY = 65_536
DOCUMENT = 1000  # tokens of a document on average
Batches = Callable[[int], None]


def token_files(folder: Path, packing: str, samples: int) -> TokenStream:
    """A part of `samples` samples, in files of 50 M tokens at most."""
    width = LENGTH + 1 if packing == "bestfit" else LENGTH
    total, most = samples * width + (packing == "stream"), 50_000_000 // width * width
    generator = np.random.default_rng(1)
    files = []
    for number, start in enumerate(range(0, total, most)):
        data = generator.integers(0, VOCABULARY, min(most, total - start), np.uint16).astype("<u2").tobytes()
        name = f"train_{number:05d}.bin"
        (folder / name).write_bytes(data)
        files.append(TokenFile(name, "train", len(data) // 2, hashlib.sha256(data).hexdigest(), len(data)))
    return TokenStream(folder, Manifest(LENGTH, VOCABULARY, "0" * 64, packing, (), tuple(files)))


def documents() -> Iterator[list[int]]:
    """Documents of 1 to 1999 tokens, over and over; made before the clock runs."""
    generator = np.random.default_rng(2)
    made = [generator.integers(0, VOCABULARY, generator.integers(1, 2 * DOCUMENT)).tolist() for _ in range(2000)]
    while True:
        yield from made


def token_by_token() -> Batches:
    """Batches from a deque."""
    source, waiting = documents(), deque[int]()
    next(source)
    needed = ROWS * LENGTH + 1

    def read(count: int) -> None:
        for _ in range(count):
            while len(waiting) < needed:
                waiting.extend(next(source))
            tokens = torch.tensor([waiting.popleft() for _ in range(needed)], dtype=torch.int64)
            tokens[:-1].view(ROWS, LENGTH), tokens[1:].view(ROWS, LENGTH)

    return read


def memory_mapped(stream: TokenStream) -> Batches:
    """Batches from token files, one after the other."""
    at = 0

    def read(count: int) -> None:
        nonlocal at
        for _ in range(count):
            stream.batch(at, at + ROWS)
            at += ROWS

    return read


def timed(read: Batches, count: int) -> float:
    """Seconds of one batch."""
    start = time.perf_counter()
    read(count)
    return (time.perf_counter() - start) / count


def repeated(work: Callable[[], object]) -> Batches:
    """`work` again and again."""

    def run(count: int) -> None:
        for _ in range(count):
            work()

    return run


def step_seconds(stream: TokenStream, rows: int, prefetch: bool, work: Callable[[], object], steps: int) -> float:
    """Seconds of one step of `rows` samples with `work` in it."""
    batches = StepBatches(
        stream, start=0, stop=(steps + 1) * rows, batch_samples=rows, device_batch=ROWS, prefetch=prefetch
    )
    source = iter(batches)
    next(source)
    start = time.perf_counter()
    for _ in source:
        work()
    return (time.perf_counter() - start) / steps


class Slow:
    """A stream behind a slow disk: each batch waits first."""

    def __init__(self, stream: TokenStream, seconds: float) -> None:
        self.stream, self.seconds = stream, seconds

    def batch(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(self.seconds)
        return self.stream.batch(start, stop)


def spread(values: list[float], digits: int) -> str:
    """Median (lowest..highest)."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--samples", type=int, default=48_000, help="in the token files; 48,000 are 98 M tokens")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        streams = {}
        for packing in ("stream", "bestfit"):
            (Path(scratch) / packing).mkdir()
            streams[packing] = token_files(Path(scratch) / packing, packing, arguments.samples)
        readers: dict[str, tuple[Batches, int]] = {
            "deque, token by token": (token_by_token(), 40),
            "memmap, stream": (memory_mapped(streams["stream"]), 400),
            "memmap, bestfit": (memory_mapped(streams["bestfit"]), 400),
        }
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(arguments.runs + 1):
            for name, (read, count) in readers.items():
                rate = ROWS * LENGTH / timed(read, count) / 1e6
                if turn:  # the first is for warming up
                    rates[name].append(rate)
        slowest = statistics.median(rates["deque, token by token"])
        print("| batches of 8 x 2048 | M tokens/s, median (lowest..highest) | against the deque |\n|---|---|---|")
        for name, values in rates.items():
            print(f"| {name} | {spread(values, 1)} | {statistics.median(values) / slowest:.1f}x |")

        square = torch.randn(768, 768)
        kinds: list[tuple[str, Callable[[], object]]] = [
            ("waits 20 ms", lambda: time.sleep(0.02)),
            ("computes (matrix products)", lambda: [square @ square for _ in range(2)]),
        ]
        sources: list[tuple[str, Any, int]] = [
            ("memmap", streams["stream"], 256),
            ("memmap with 10 ms of waiting", Slow(streams["stream"], 0.01), 8),
        ]
        print("\n| step | source, samples in a step | without reading, ms | read ahead, ms | read in between, ms |")
        print("|---|---|---|---|---|")
        for kind, work in kinds:
            for name, stream, rows in sources:
                times: dict[str, list[float]] = {"alone": [], "ahead": [], "between": []}
                for _ in range(arguments.runs):
                    times["alone"].append(1e3 * timed(repeated(work), 30))
                    times["ahead"].append(1e3 * step_seconds(stream, rows, True, work, 30))
                    times["between"].append(1e3 * step_seconds(stream, rows, False, work, 30))
                print(f"| {kind} | {name}, {rows} | " + " | ".join(spread(times[key], 1) for key in times) + " |")


if __name__ == "__main__":
    main()
