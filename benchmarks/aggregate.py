"""Merging three deltas of the 561-million-parameter model: seconds, memory and bytes, against plain averaging.

Makes a base version and three contributions with random values in a temporary folder
(about 9 GB, deleted at the end), then by turns:

- `controller.aggregation.aggregate` as the controller starts it, in a process of its own: it checks
  the contributions, averages them, and writes and hashes the new version and the broadcast;
- plain averaging in a process of its own: three files of fp32 weights, as sites send them
  that send weights, loaded with `numpy.load`, averaged with weights and saved, with fsync.

Seconds are of the whole process, memory is its largest resident set. The file cache is
warm, as it is when contributions have just arrived. `--codec` is that of contributions
and broadcast. `--feedback N` instead measures what error feedback is worth: the distance
between N random steps added up exactly and as they arrive at the sites, with and without.

    python benchmarks/aggregate.py --folder /var/tmp --codec int8 --runs 3
    python benchmarks/aggregate.py --feedback 20
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from controller.aggregation.outer_step import MergeSpec, Part, spec_to_json
from curtail.system.disk import SystemDisk
from nanochat import checkpoint, codecs, delta
from nanochat.presets import preset, weight_shapes
from nanochat.tensorfile import TensorFile
from nanochat.weights import digest, read_weights

ROOT = Path(__file__).resolve().parent.parent
SITES = 3
MODEL = preset("d20-561m")
SHAPES = weight_shapes(MODEL)
DISK = SystemDisk()

PEER = """
import os, sys, numpy
*sites, out = sys.argv[1:]
total = None
for path in sites:
    with numpy.load(path) as found:
        arrays = {name: found[name] for name in found}
    if total is None:
        total = {name: array * numpy.float32(1 / len(sites)) for name, array in arrays.items()}
    else:
        for name, array in arrays.items():
            total[name] += array * numpy.float32(1 / len(sites))
with open(out, "wb") as file:
    numpy.savez(file, **total)
    file.flush()
    os.fsync(file.fileno())
"""


def random_values(seed: int, shape: tuple[int, ...], size: float) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return np.multiply(values, np.float32(size), out=np.asarray(values))


def make_base(folder: Path) -> None:
    folder.mkdir()
    layout = {name: (np.float32, shape) for name, shape in SHAPES.items()}
    with TensorFile(folder / checkpoint.MODEL_FILE, layout, DISK, "BENCHMARK") as file:
        for seed, (name, shape) in enumerate(SHAPES.items()):
            file.write(name, 0, random_values(seed, shape, 0.02))
        file.publish()
    found = digest(read_weights(folder / checkpoint.MODEL_FILE))
    meta = checkpoint.CheckpointMeta(None, MODEL, 0, 0, found, None, None, "2026-01-01T00:00:00+00:00")
    checkpoint.write_checkpoint(folder, None, meta, DISK)


def make_contribution(path: Path, site: int, codec: str) -> None:
    """A delta file; each matrix is encoded on its own, so that the model is never whole in memory."""
    parts: dict[str, np.ndarray] = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        parts |= delta.encode({name: random_values(1000 * site + seed, shape, 1e-3)}, codec)
    delta.write_delta(path, parts, DISK, "BENCHMARK")


def timed(command: list[str]) -> tuple[float, float, float]:
    """Seconds, seconds of processors and GB of the largest resident set of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{command[:4]} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def merge_once(folder: Path, codec: str) -> tuple[tuple[float, float, float], dict[str, int]]:
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    parts = tuple(Part(f"s{n}", str(folder / f"delta{n}"), codec, 52_428_800, "") for n in range(SITES))
    spec = MergeSpec(
        1, 1, str(folder / "base"), str(out), parts, codec, ((2, 1.0, 0.0),), False, 0, "2026-01-01T00:00:00+00:00"
    )
    (folder / "spec.json").write_text(spec_to_json(spec))
    answer = folder / "result.json"
    found = timed([sys.executable, "-m", "controller.aggregation.aggregate", str(folder / "spec.json"), str(answer)])
    result = json.loads(answer.read_text())
    assert len(result["accepted"]) == SITES, result["refused"]
    sizes = {"up": (folder / "delta0").stat().st_size, "down": (out / "update.safetensors").stat().st_size}
    shutil.rmtree(out)
    return found, sizes


def peer_once(folder: Path) -> tuple[float, float, float]:
    sites = [str(folder / f"site{n}.npz") for n in range(SITES)]
    found = timed([sys.executable, "-c", PEER, *sites, str(folder / "mean.npz")])
    (folder / "mean.npz").unlink()
    return found


def disk_seconds(folder: Path, size: int) -> float:
    """Seconds to write and fsync as many bytes as a merge makes, without any arithmetic."""
    block, path = os.urandom(2**24), folder / "zero"
    start = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def make_files(folder: Path, codec: str, peer: bool) -> None:
    make_base(folder / "base")
    for site in range(SITES):
        make_contribution(folder / f"delta{site}", site + 1, codec)
    if peer:
        with open(folder / "site0.npz", "wb") as file:
            np.savez(file, **read_weights(folder / "base" / checkpoint.MODEL_FILE))
        for site in range(1, SITES):  # one file by several names: it is read as often, and written only once
            os.link(folder / "site0.npz", folder / f"site{site}.npz")


def measure(folder: Path, codec: str, runs: int, peer: bool) -> None:
    # not here: a process starts with the largest resident set of the one that starts it
    maker = multiprocessing.get_context("spawn").Process(target=make_files, args=(folder, codec, peer))
    maker.start()
    maker.join()
    assert maker.exitcode == 0
    ours, theirs, disk, sizes = [], [], [], {"up": 0, "down": 0}
    written = 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    for _ in range(runs):
        found, sizes = merge_once(folder, codec)
        ours.append(found)
        disk.append(disk_seconds(folder, written + sizes["down"]))
        if peer:
            theirs.append(peer_once(folder))
    print(f"codec {codec}, {SITES} sites, {written // 4:,} parameters, {runs} runs; load {os.getloadavg()[0]:.1f}")
    for name, times in (("controller.aggregation.aggregate", ours), ("plain averaging", theirs)):
        if times:
            seconds, busy, memory = zip(*times, strict=True)
            print(f"{name}: {spread(seconds, 1)} s, {spread(busy, 1)} s of processors, {spread(memory, 2)} GB")
    print(f"disk alone, same bytes as the merge: {spread(disk, 1)} s")
    print(f"bytes of a site: up {sizes['up']:,}, down {sizes['down']:,}, both {sum(sizes.values()):,}")


def measure_feedback(rounds: int) -> None:
    """How far what arrives is from what was sent, as a share of the way, after some rounds."""
    shape = (512, 512)
    for codec in ("bf16", "int8", "int4"):
        for decay in (0.0, delta.DECAY) if codec == "int4" else (0.0,):
            exact, arrived, residual = np.zeros(shape), np.zeros(shape), None
            for seed in range(rounds):
                # half of each step is common to all rounds, half is its own
                step = (random_values(0, shape, 1.0) + random_values(1 + seed, shape, 1.0)) * np.float32(1e-3)
                encoded, residual = delta.encode_with_feedback({"m": step}, codec, residual, decay)
                exact += step
                arrived += dict(delta.decode(encoded))["m"]
            off = np.linalg.norm(exact - arrived) / np.linalg.norm(exact)
            print(f"{codec}, decay {decay}: off by {off:.5%} after {rounds} rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where to make the files, on a real disk")
    parser.add_argument("--codec", default="int8", choices=codecs.CODECS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="leave out plain averaging")
    parser.add_argument("--feedback", type=int, default=0, metavar="N", help="only measure error feedback")
    options = parser.parse_args()
    if options.feedback:
        measure_feedback(options.feedback)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="aggregate-") as folder:
        measure(Path(folder), options.codec, options.runs, not options.no_peer)


if __name__ == "__main__":
    main()
