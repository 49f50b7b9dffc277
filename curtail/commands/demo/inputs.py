"""What the demo feeds the system: text, tokenizer, tokens, an invented trace and a run file.

Decides the course of the signal and the size of the model, the rounds and the
budget, so that the whole takes minutes on two cores. The trace runs 60 times
faster than time: durations of the course are in wall seconds, everything in
the files is in the trace's time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from curtail.errors import CurtailError, NotFound
from curtail.system.disk import SystemDisk

SITES = {"caiso": "CAISO_NORTH", "spp": "SPP_TX", "nem": "NEM_SA"}
"""Site and region: California, Texas, South Australia. Their readings here are invented."""

SPEED = 60.0
"""A reading, five minutes of the trace, takes 5 s: long enough to be seen, short enough to wait for."""

PERIOD_S = 300.0

COURSE: tuple[tuple[float, tuple[str, ...]], ...] = (
    (10, ()),  # the agents join
    (40, ("CAISO_NORTH",)),  # a job needs 10 to 15 s to start here, the rest is training alone
    (40, ("CAISO_NORTH", "SPP_TX")),
    (50, ("CAISO_NORTH", "SPP_TX", "NEM_SA")),
    (15, ("NEM_SA",)),  # two leave, one goes on with what all three learned
    (10, ()),  # the last one hands in its work before the trace ends
)
"""Wall seconds, and the regions that are curtailed meanwhile."""

PRESET, VOCABULARY, SEQUENCE = "d2-demo", 2048, 128
BATCH = 8  # samples: some eight steps a second on one core, so a drain is short and the model learns quickly
TEXT_BYTES = 8_000_000  # more than one pass needs, and imported in seconds
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"}
"""Folders of the standard library that are no library, or tables of numbers."""

BUDGET_SHARE = 0.85
"""Tokens of the budget per token that the cores could train if no job ever started, synchronised or waited.
They do, so the budget is not reached before the trace ends; the learning rate still falls in time."""

RUN_FILE = """\
[run]
name = "demo"
seed = {seed}

[model]
preset = "{preset}"

[data]
path = "data"

[training]
token_budget = {budget}
batch_samples = {batch}

[rounds]
inner_steps = 400
length = "8 s"
grace = "8 s"

[policy]
threshold = "100 g/kWh"
max_reading_age = "900 s"
leave_lead = "{lead:.0f} s"  # a site hands in its work before its window ends
permit = "6 s"

[fleet]
heartbeat = "500 ms"
lost_after = "8 s"
"""

REGION = """
[regions.{region}]
power_train = "2.024 kW"
power_idle = "468 W"
"""

LEAD_WALL_S = 5.0
"""How long before the end of a window a site leaves: a heartbeat, a step, a commit, on a busy machine."""


def prepare(folder: Path, seed: int) -> dict[str, float]:
    """Make data, trace and run file in `folder`; returns the wall seconds of each stage."""
    from nanochat.dataset import import_texts, iterate_texts
    from nanochat.pack import prepare as pack
    from nanochat.tokenizer import Tokenizer

    seconds: dict[str, float] = {}

    def stage(name: str, text: str, began: float) -> None:
        seconds[name] = round(time.monotonic() - began, 1)
        say(f"{text} ({seconds[name]:.1f} s)")

    disk = SystemDisk()
    began = time.monotonic()
    library = Path(sysconfig.get_paths()["stdlib"])
    report = import_texts(choose_texts(library), folder / "shards", disk=disk, validation_fraction=0.03)
    stage("import", f"imported {report.bytes / 1e6:.1f} MB of Python's own sources from {library}", began)

    began = time.monotonic()
    tokenizer = Tokenizer.train(iterate_texts(folder / "shards"), VOCABULARY)
    stage("tokenizer", f"trained a tokenizer of {VOCABULARY} ids", began)

    began = time.monotonic()
    manifest = pack(folder / "shards", tokenizer, folder / "data", disk=disk, sequence_len=SEQUENCE)
    shutil.rmtree(folder / "shards")
    stage("prepare", f"packed {manifest.tokens('train') / 1e6:.2f} M tokens", began)

    began = time.monotonic()
    rate = step_rate()
    stage("measure", f"one core trains {rate:,.0f} tokens per second", began)
    disk.replace("RUN_FILE", folder / "run.toml", run_file(token_budget(rate, _cores()), seed).encode())
    disk.replace("TRACE", folder / "trace.csv", trace(seed).encode())
    return seconds


def choose_texts(library: Path, most: int = TEXT_BYTES) -> list[Path]:
    """Sources of the standard library, about `most` bytes, the same ones every time.

    Raises: NotFound: this Python comes without its sources.
    """
    found = [path for path in library.rglob("*.py") if not LEFT_OUT & set(path.relative_to(library).parts)]
    # Sorted by name, ignoring folders: else the cap would cut off whole packages.
    chosen, size = [], 0
    for path in sorted(found, key=lambda path: (path.name, path)):
        if size >= most:
            break
        size += path.stat().st_size
        chosen.append(path)
    if size < most // 8:
        raise NotFound(
            f"Python's own sources are not in {library}", "use a Python that has its standard library as files"
        )
    return chosen


def step_rate(slices: int = 5, seconds: float = 0.4) -> float:
    """Tokens per wall second that one thread trains: the best of some slices, since other programs only slow it."""
    try:
        import numpy as np
        import torch

        from nanochat.gpt import GPT
        from nanochat.optim import MuonAdamW
        from nanochat.presets import preset
        from nanochat.schedule import Schedule
        from nanochat.train import inner_steps
    except ImportError as error:
        raise CurtailError(f"torch cannot be imported: {error}", "install curtail again with ./install.sh") from error

    torch.set_num_threads(1)
    config = preset(PRESET)
    model = GPT(config)
    model.init_weights(1)
    batch = BATCH * config.sequence_len
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (BATCH, config.sequence_len))
    optimizer = MuonAdamW(model, config, batch)
    schedule = Schedule(token_budget=10**9, batch_tokens=batch)

    def steps(until: Callable[[int], bool]) -> Any:
        endless = iter(lambda: [(ids, ids)], None)
        return inner_steps(
            model, optimizer, schedule, endless, tokens_before=0, tokens_per_step=batch, until=until,
            device=torch.device("cpu"),
        )  # fmt: skip

    steps(lambda step: step == 2)  # the first steps allocate
    best = 1.0
    for _ in range(slices):
        report = steps(_for_seconds(seconds))
        best = max(best, report.tokens / report.seconds)
    return best


def _for_seconds(seconds: float) -> Callable[[int], bool]:
    end = time.monotonic() + seconds
    return lambda step: step > 0 and time.monotonic() > end


def token_budget(rate: float, cores: int) -> int:
    """The budget that the course does not quite reach, in whole batches; `rate` as `step_rate` gives it."""
    core_seconds = sum(seconds * min(len(curtailed), cores) for seconds, curtailed in COURSE)
    batch = BATCH * SEQUENCE
    return max(1, round(BUDGET_SHARE * rate * core_seconds / batch)) * batch


def run_file(budget: int, seed: int) -> str:
    """The text of the demo's run file."""
    text = RUN_FILE.format(preset=PRESET, batch=BATCH, budget=budget, seed=seed, lead=LEAD_WALL_S * SPEED)
    return text + "".join(REGION.format(region=region) for region in SITES.values())


def trace(seed: int) -> str:
    """The text of the demo's MCI trace."""
    from curtail.commands.trace.synth import course, to_csv

    regions = tuple(SITES.values())
    segments = [(wall * SPEED, curtailed) for wall, curtailed in COURSE]
    return to_csv(regions, course(regions, segments, PERIOD_S, datetime(2026, 3, 1, 17, tzinfo=UTC), seed))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(text: str) -> None:
    """One line of progress on stderr."""
    with contextlib.suppress(OSError):  # a closed terminal must not keep processes alive
        print(text, file=sys.stderr, flush=True)
