"""`curtail demo`: the whole system on this machine, in minutes, without network, GPU or settings.

Decides the course of the invented signal, the size of the model and of the
rounds, and what is told at the end. Everything in between is the product
itself: a controller and three agents as processes, and their torchrun jobs.
The trace runs 60 times faster than time; energy, regimes and ages are in the
trace's time. Wall seconds are called so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curtail.disk import SystemDisk, disk_error
from curtail.errors import CurtailError, DiskError, NotFound, Unreachable, UsageError
from curtail.wire import Status

if TYPE_CHECKING:
    from curtail.local import Household
    from curtail.watch import Poll

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
BATCH = 16  # samples: about ten steps a second on one core, so a drain waits for 0.1 s
TEXT_BYTES = 8_000_000  # more than one pass needs, and imported in seconds
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "__pycache__"}
"""Folders of the standard library that are no library, or tables of numbers."""

BUDGET_SHARE = 1.0
"""Tokens of the budget per token that the cores could train if no job ever started, synchronised or waited.
They do, so the budget is not reached before the trace ends; the learning rate still falls in time."""

FREE_BYTES = 300_000_000  # text, tokens, three caches of weights, logs
LATEST_END_S = 90.0  # after the trace: a drain, a merge, and slowness

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
inner_steps = 100000
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

LEAD_WALL_S = 4.0
"""How long before the end of a window a site leaves: a heartbeat, a step, a commit."""


def run_demo(json_out: bool, keep: Path | None, seed: int) -> int:
    """Carry out `curtail demo`; returns the exit code.

    Args:
        json_out: the summary as JSON on stdout; everything live goes to stderr.
        keep: an empty or missing folder for all that is made.
    Raises: CurtailError: it could not be carried out. What was made is deleted, unless `keep` was
        given or the run had begun and its logs say more.
    """
    from curtail.local import Household, unwinding_on_signals

    began = time.monotonic()
    folder = _make_folder(keep)
    worth_keeping = keep is not None
    try:
        with unwinding_on_signals():
            seconds = prepare(folder, seed)
            household = Household(folder)
            started = time.monotonic()
            try:
                last = run(household, live=not json_out)
            except CurtailError as error:
                worth_keeping |= household.listened  # the logs tell what went wrong
                raise type(error)(error.message, error.remedy or f"the logs are in {folder}") from error
            finally:
                _say("stopping the processes")
                household.stop()
        seconds["run"] = round(time.monotonic() - started, 1)
        worth_keeping = True
        if not last.version:
            raise CurtailError("nothing was trained", f"this machine may be too slow; the logs are in {folder}")
        tell(summarise(last, time.monotonic() - began, seconds), json_out)
        return 0
    finally:
        if not worth_keeping:
            shutil.rmtree(folder, ignore_errors=True)


def _make_folder(keep: Path | None) -> Path:
    from curtail.cli import default_state

    folder = (keep or default_state() / f"demo-{datetime.now().strftime('%Y%m%d-%H%M%S')}").absolute()
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not an empty folder", "choose another one with --keep")
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise DiskError(f"{folder} is not writable", "choose another folder with --keep")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_error("create", folder, error) from error
    if free < FREE_BYTES:
        raise DiskError(
            f"{folder} has {free / 1e6:.0f} MB left, {FREE_BYTES / 1e6:.0f} are needed", "use --keep elsewhere"
        )
    return folder


def prepare(folder: Path, seed: int) -> dict[str, float]:
    """Make data, trace and run file in `folder`; returns the wall seconds of each stage."""
    from nanochat.dataset import import_texts, iterate_texts
    from nanochat.pack import prepare as pack
    from nanochat.tokenizer import Tokenizer

    seconds: dict[str, float] = {}

    def stage(name: str, text: str, began: float) -> None:
        seconds[name] = round(time.monotonic() - began, 1)
        _say(f"{text} ({seconds[name]:.1f} s)")

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


def step_rate(seconds: float = 1.5) -> float:
    """Tokens per wall second that one thread trains, by trying."""
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
    end = time.monotonic() + seconds
    report = steps(lambda _: time.monotonic() > end)
    return float(max(1.0, report.tokens / report.seconds))


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
    from curtail.synth import course, to_csv

    regions = tuple(SITES.values())
    segments = [(wall * SPEED, curtailed) for wall, curtailed in COURSE]
    return to_csv(regions, course(regions, segments, PERIOD_S, datetime(2026, 3, 1, 17, tzinfo=UTC), seed))


def run(household: Household, live: bool) -> Status:
    """Start the processes and look on until the run is over; returns the last snapshot. Ends no process."""
    import httpx

    from curtail import watch

    folder = household.folder
    url = household.start_controller(
        str(folder / "run.toml"), "--home", str(household.home), "--trace", str(folder / "trace.csv"),
        "--unit", "g/kWh", "--speed", str(SPEED), "--forecast",
    )  # fmt: skip
    for site, region in SITES.items():
        household.start_agent(site, region, url)
    began = time.monotonic()
    whole = sum(wall for wall, _ in COURSE)

    with httpx.Client(trust_env=False) as http, watch.Poll(http, url, 0.3, watch.View()) as poll:

        def title() -> str:
            return f"demo: {time.monotonic() - began:.0f} of about {whole:.0f} s; q or Ctrl-C stops it"

        def over() -> bool:
            return _look(household, poll, time.monotonic() - began, whole)

        if live and watch.is_screen(sys.stdout):
            if watch.live(lambda: poll.view, title, over):
                raise KeyboardInterrupt
        else:
            _tell_changes(poll, over, began, sys.stdout if live else sys.stderr)
        status = poll.view.status
        assert status is not None
        return status


def _look(household: Household, poll: Poll, elapsed: float, whole: float) -> bool:
    """Whether the run is over. Raises: CurtailError: a process failed, or it takes too long."""
    view = poll.view
    finished = view.status is not None and view.status.state == "FINISHED"
    household.check(finished)
    if view.status is not None and is_over(view.status):
        return True
    if view.problem is not None and time.time() - view.since > 30:
        raise Unreachable(f"the controller stopped answering ({view.problem})")
    if elapsed > whole + LATEST_END_S:
        sites = "" if view.status is None else ", ".join(f"{site.site} {site.state}" for site in view.status.sites)
        raise CurtailError(
            f"the run did not end in time ({sites})", "this machine may be too slow or too busy; try again"
        )
    return False


def is_over(status: Status) -> bool:
    """Whether nothing will be trained any more and everything that was trained is merged."""
    quiet = status.round is None and all(site.phase == "paused" for site in status.sites)
    ended = status.signal_ended and status.regime == "PAUSED"
    return quiet and (ended or status.state == "FINISHED")


def _tell_changes(poll: Poll, over: Callable[[], bool], began: float, out: Any) -> None:
    before: Status | None = None
    while True:
        ended = over()
        status = poll.view.status
        if status is not None and status is not before:
            for line in changes(before, status):
                print(f"{time.monotonic() - began:5.0f} s  {line}", file=out, flush=True)
            before = status
        if ended:
            return
        time.sleep(0.1)


def changes(before: Status | None, after: Status) -> list[str]:
    """What happened between two snapshots, one line for each thing."""
    lines = []
    if before is None or before.regime != after.regime:
        lines.append(f"{after.regime}: {after.reason}")
    if after.version != (before.version if before else 0):
        loss = f", loss {after.loss_last:.3f}" if after.loss_last is not None else ""
        lines.append(f"version {after.version} after {after.tokens:,} tokens{loss}")
    known = {site.site: site for site in before.sites} if before else {}
    for site in after.sites:
        if site.site not in known:
            lines.append(f"{site.site} joined in {site.region}")
        elif known[site.site].state != site.state:
            lines.append(f"{site.site} is {site.state.lower()}: {site.reason}")
    lines += [f"{name} left" for name in known if name not in {site.site for site in after.sites}]
    return lines


def summarise(status: Status, wall_seconds: float, seconds: dict[str, float]) -> dict[str, Any]:
    """The summary, from the last snapshot; the keys of `curtail demo --json`."""
    energy = status.energy
    return {
        "rounds": status.rounds,
        "versions": status.version,
        "tokens": status.tokens,
        "loss_first": status.loss_first,
        "loss_last": status.loss_last,
        "regime_seconds": {name: round(value, 1) for name, value in status.regime_seconds.items()},
        "energy_kwh": energy.attributed_kwh,
        "kg_co2": energy.kg_attributed,
        "kg_co2_always_on": energy.kg_always_on,
        "curtailed_energy_pct": energy.curtailed_pct,
        "checkpoint": status.checkpoint,
        "energy_standing_kwh": energy.standing_kwh,
        "kg_co2_standing": energy.kg_standing,
        "wall_seconds": round(wall_seconds, 1),
        "seconds": seconds,
    }


def tell(summary: dict[str, Any], json_out: bool) -> None:
    """Print the summary on stdout."""
    import json

    if json_out:
        print(json.dumps(summary, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    table = Table(title="What the demo did", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in summary_rows(summary):
        table.add_row(name, value)
    console.print()
    console.print(table)
    checkpoint = summary["checkpoint"]
    # printed plainly: rich would break a long path where a shell does not want it
    print(f"\nTry next:\n  curtail eval {checkpoint}\n  curtail sample {checkpoint} 'def '")


def summary_rows(summary: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """The summary for people, as names and values."""
    from curtail.status import count, duration, saved

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    regimes = ", ".join(f"{name} {duration(value)}" for name, value in summary["regime_seconds"].items())
    return (
        ("rounds", f"{summary['rounds']}, {summary['versions']} versions of the weights"),
        ("tokens", count(summary["tokens"])),
        ("loss", f"{number(summary['loss_first'])} at first, {number(summary['loss_last'])} at last"),
        ("regimes", f"{regimes} (time of the trace, {SPEED:.0f} times faster)"),
        (
            "energy",
            f"{summary['energy_kwh']:.3f} kWh for training, {summary['curtailed_energy_pct']:.1f} % of it curtailed",
        ),
        ("CO2", f"{summary['kg_co2']:.3f} kg; {saved(summary['kg_co2'], summary['kg_co2_always_on'])}"),
        ("standing by", f"{summary['energy_standing_kwh']:.3f} kWh, {summary['kg_co2_standing']:.3f} kg"),
        ("took", duration(summary["wall_seconds"])),
        ("checkpoint", summary["checkpoint"]),
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a closed terminal must not keep processes alive
        print(text, file=sys.stderr, flush=True)
