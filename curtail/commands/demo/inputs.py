"""Inputs of the demo: text, tokenizer, tokens, a synthetic trace and a run file.

The course of the signal and the sizes of model, rounds and budget are chosen so that
the demo takes minutes on two cores. The trace is replayed 60 times faster than real
time: durations of the course are in wall seconds, all times in the files are in trace
time.
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
"""Site -> region: California, Texas, South Australia. Their readings here are synthetic."""

SPEED = 60.0
"""Seconds of the trace per wall second: a reading (five minutes) then takes 5 s, long enough to follow on screen."""

PERIOD_S = 300.0

COURSE: tuple[tuple[float, tuple[str, ...]], ...] = (
    (10, ()),  # the agents join
    (40, ("CAISO_NORTH",)),  # a job takes 10 to 15 s to start, then it trains alone
    (40, ("CAISO_NORTH", "SPP_TX")),
    (50, ("CAISO_NORTH", "SPP_TX", "NEM_SA")),
    (15, ("NEM_SA",)),  # two sites stop, one continues from the merged weights
    (10, ()),  # the last site uploads its contribution before the trace ends
)
"""(wall seconds, regions that are curtailed during that time)."""

PRESET, VOCABULARY, SEQUENCE = "d2-demo", 2048, 128
BATCH = 8  # samples: about eight steps per second on one core, so draining is quick and the model learns fast
TEXT_BYTES = 8_000_000  # more than one epoch needs, and imported in seconds
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"}
"""Folders of the standard library that are left out: third-party packages, tests and tables of numbers."""

BUDGET_SHARE = 0.85
"""Token budget as a share of what the cores could train without starting, synchronising or waiting. With these the
budget is not reached before the trace ends, and the learning rate still decays in time."""

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
leave_lead = "{lead:.0f} s"  # a site uploads its contribution before its window ends
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
"""Wall seconds before the end of a window at which a site stops: a heartbeat, a step and a commit on a busy machine."""


def prepare(folder: Path, seed: int) -> dict[str, float]:
    """Create data, trace and run file in `folder`; returns the wall seconds of each stage."""
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
    """Source files of the standard library, about `most` bytes, always the same ones.

    Raises: NotFound: this Python comes without its sources.
    """
    found = [path for path in library.rglob("*.py") if not LEFT_OUT & set(path.relative_to(library).parts)]
    # Sorted by file name, ignoring folders: otherwise the limit would leave out whole packages.
    chosen, size = [], 0
    for path in sorted(found, key=lambda path: (path.name, path)):
        if size >= most:
            break
        size += path.stat().st_size
        chosen.append(path)
    if size < most // 8:
        raise NotFound(
            f"Python's own sources are not in {library}", "use a Python installation with its standard library as files"
        )
    return chosen


def step_rate(slices: int = 5, seconds: float = 0.4) -> float:
    """Tokens per wall second that one thread trains: the best of several measurements, to ignore other load."""
    try:
        import numpy as np
        import torch

        from nanochat.gpt import GPT
        from nanochat.optim import MuonAdamW
        from nanochat.presets import preset
        from nanochat.schedule import Schedule
        from nanochat.train import inner_steps
    except ImportError as error:
        raise CurtailError(f"torch cannot be imported: {error}", "reinstall curtail with ./install.sh") from error

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
    """Token budget that the demo does not quite reach, in whole batches; `rate`: from `step_rate`."""
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
    """Print one line of progress on stderr."""
    with contextlib.suppress(OSError):  # a closed terminal must not prevent stopping the processes
        print(text, file=sys.stderr, flush=True)
