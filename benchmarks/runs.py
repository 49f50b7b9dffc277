"""What benchmarks of a whole controller have in common: tokens that are zeros, and a controller of its own.

The controller is the real one, in a process of its own, started by the command line with real HTTP on loopback.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from nanochat.manifest import MANIFEST_NAME, STREAM, Manifest, TokenFile

ROOT = Path(__file__).resolve().parent.parent


def write_zeros(folder: Path, vocab_size: int, length: int) -> None:
    """The folder `data` of a run that trains nothing: 4096 samples of `length` tokens, all of them 0."""
    data = folder / "data"
    data.mkdir(parents=True)
    files = []
    for part, samples in (("train", 4096), ("validation", 1)):
        content = bytes(2 * (samples * length + 1))
        path = data / f"{part}_00000.bin"
        path.write_bytes(content)
        files.append(TokenFile(path.name, part, len(content) // 2, hashlib.sha256(content).hexdigest(), len(content)))
    manifest = Manifest(length, vocab_size, "0" * 64, STREAM, (), tuple(files))
    (data / MANIFEST_NAME).write_text(manifest.to_json())


@contextlib.contextmanager
def controller(
    folder: Path, trace: Path, *flags: str, speed: float = 1.0, limit_s: float = 300.0
) -> Iterator[tuple[str, int]]:
    """(address, process id) of a controller for `run.toml` in `folder`, with its state in `home`; ended afterwards."""
    home, log = folder / "home", folder / "controller.log"
    command = ["-m", "curtail", "controller", "start", folder / "run.toml", "--home", home, "--trace", trace,
               "--unit", "g/kWh", "--speed", f"{speed:g}", "--port", "0", "--no-announce", *flags]  # fmt: skip
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
        )
    try:
        end = time.monotonic() + limit_s
        while not (home / "controller.json").exists():
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the controller does not start:\n{log.read_text()}")
            time.sleep(0.02)
        yield json.loads((home / "controller.json").read_text())["url"], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
