"""Training a tokenizer: ours against PyPI `rustbpe` 0.1.0, on the same texts in the same run.

The texts are the Python standard library's sources. Both trainers get the same
list of str, the same split pattern and the same vocabulary, each run in a fresh
process, by turns; measured is the training call with the ranks it returns, in
seconds of wall time, and the peak memory of the process. The ranks are compared.
The peer has the same import name as ours, so it lives in an environment of its own:

    python -m venv /tmp/peer && /tmp/peer/bin/pip install rustbpe==0.1.0
    python benchmarks/bpe.py --peer /tmp/peer/bin/python
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SIZES = (8_192, 65_527)
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    """The standard library's sources, in the order of their paths."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    return [path.read_text("utf-8", errors="replace") for path in paths]


def measure(trainer: str, size: int) -> dict[str, Any]:
    """One training in this process."""
    import rustbpe

    texts = corpus()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if trainer == "ours":
        ranks = rustbpe.train(iter(texts), size, PATTERN)
    else:
        peer = rustbpe.Tokenizer()  # type: ignore[attr-defined]
        peer.train_from_iterator(iter(texts), size, pattern=PATTERN)
        ranks = peer.get_mergeable_ranks()
    seconds = time.perf_counter() - start
    digest = hashlib.sha256(b"".join(len(token).to_bytes(4, "big") + bytes(token) for token, _ in ranks)).hexdigest()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": seconds, "mib": grown / 1024, "digest": digest, "bytes": sum(len(t.encode()) for t in texts)}


def run(trainer: str, python: str, size: int) -> dict[str, Any]:
    """One training in a fresh process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if trainer == "ours":
        environment["PYTHONPATH"] = str(ROOT)
    command = [python, __file__, "--one", trainer, str(size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python that has rustbpe 0.1.0 from PyPI")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--one", nargs=2, metavar=("TRAINER", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]))))
        return
    pythons = {"ours": sys.executable} | ({"peer": arguments.peer} if arguments.peer else {})
    print("| vocabulary | trainer | median s | lowest s | highest s | MB/s | memory added, MiB | ranks |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        results: dict[str, list[dict[str, Any]]] = {trainer: [] for trainer in pythons}
        for _ in range(arguments.runs):
            for trainer, python in pythons.items():
                results[trainer].append(run(trainer, python, size))
        for trainer, runs in results.items():
            seconds = [result["seconds"] for result in runs]
            median, memory = statistics.median(seconds), statistics.median(result["mib"] for result in runs)
            cells = [size, trainer, f"{median:.3f}", f"{min(seconds):.3f}", f"{max(seconds):.3f}"]
            cells += [f"{runs[0]['bytes'] / 1e6 / median:.1f}", f"{memory:.0f}", runs[0]["digest"][:12]]
            print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
