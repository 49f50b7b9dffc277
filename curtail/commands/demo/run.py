"""`curtail demo`: runs the whole system on this machine, detects the end, and prints a summary.

The inputs come from `curtail.commands.demo.inputs`; everything else is the real
system: a controller, three agents and their torchrun jobs. Energy and regimes are in
trace time, which runs faster; elapsed time is wall time.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curtail.commands.demo.inputs import COURSE, SITES, SPEED, prepare, say
from curtail.errors import CurtailError, DiskError, Unreachable, UsageError
from curtail.system.disk import disk_error
from curtail.wire import Status

if TYPE_CHECKING:
    from curtail.commands.demo.processes import Household
    from curtail.commands.status.watch import Poll

FREE_BYTES = 300_000_000  # text, tokens, three caches of weights, logs
JOBS_MUST_RUN_S = 45.0  # by then the first job has started, or failed more than once
LATEST_END_S = 90.0  # after the end of the trace: a drain, a merge, and a slow machine


def run_demo(json_out: bool, keep: Path | None, seed: int) -> int:
    """Run `curtail demo`; returns the exit code.

    Args:
        json_out: print the summary as JSON on stdout, and progress on stderr.
        keep: an empty or missing folder for all files.
    Raises: CurtailError: the demo failed. Its files are deleted, unless `keep` was given or the run had
        begun, because then its logs show the cause.
    """
    from curtail.commands.demo.processes import Household
    from curtail.system.process import unwinding_on_signals

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
                worth_keeping |= household.listened  # the logs say what went wrong
                raise type(error)(error.message, error.remedy or f"the logs are in {folder}") from error
            finally:
                say("stopping the processes")
                household.stop()
        seconds["run"] = round(time.monotonic() - started, 1)
        worth_keeping = True
        if not last.version:
            raise CurtailError("nothing was trained", f"this machine may be too slow; the logs are in {folder}")
        if keep is None:  # the sites' caches are of no further use
            for site in SITES:
                shutil.rmtree(folder / f"agent-{site}", ignore_errors=True)
        tell(summarise(last, time.monotonic() - began, seconds), json_out)
        return 0
    finally:
        if not worth_keeping:
            shutil.rmtree(folder, ignore_errors=True)


def _make_folder(keep: Path | None) -> Path:
    from curtail.commands.options import default_state

    folder = (keep or default_state() / f"demo-{datetime.now().strftime('%Y%m%d-%H%M%S')}").absolute()
    made = not folder.exists()
    try:
        if not made and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not an empty folder", "choose another one with --keep")
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise DiskError(f"{folder} is not writable", "choose another folder with --keep")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_error("use the folder", folder, error) from error
    if free < FREE_BYTES:
        if made:
            folder.rmdir()
        raise DiskError(
            f"{folder} has {free / 1e6:.0f} MB of free space, the demo needs {FREE_BYTES / 1e6:.0f} MB",
            "choose another folder with --keep",
        )
    return folder


def run(household: Household, live: bool) -> Status:
    """Start the processes and watch them until the run is over; returns the last status. It does not end them."""
    import httpx

    from curtail.commands.status import watch

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
            return f"demo: {time.monotonic() - began:.0f} of about {whole:.0f} s; press q or Ctrl-C to stop"

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
    """Whether the run is over. Raises: CurtailError: a process failed, or the run took too long."""
    view = poll.view
    finished = view.status is not None and view.status.state == "FINISHED"
    household.check(finished)
    if view.status is not None and is_over(view.status):
        return True
    if view.status is not None and elapsed > JOBS_MUST_RUN_S and (failure := jobs_fail(view.status)):
        raise CurtailError(f"the training jobs failed ({failure})")
    if view.problem is not None and time.time() - view.since > 30:
        raise Unreachable(f"the controller stopped answering ({view.problem})")
    if elapsed > whole + LATEST_END_S:
        sites = "" if view.status is None else ", ".join(f"{site.site} {site.state}" for site in view.status.sites)
        raise CurtailError(
            f"the run did not end in time ({sites})", "this machine may be too slow or too busy; try again"
        )
    return False


def jobs_fail(status: Status) -> str | None:
    """The reason of a failed job if nothing has been trained yet, else None."""
    failed = [site.reason for site in status.sites if site.state == "BACKOFF"]
    return failed[0] if failed and not status.tokens else None


def is_over(status: Status) -> bool:
    """Whether training has ended and all of it is merged."""
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
    """Changes between two snapshots, one line each."""
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
    """The summary from the last snapshot, with the keys of `curtail demo --json`."""
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
    with console.capture() as captured:
        console.print(table)
    checkpoint = summary["checkpoint"]
    print("", *(line.rstrip() for line in captured.get().splitlines()), sep="\n")
    # not through rich, which would wrap a long path
    print(f"checkpoint   {checkpoint}")
    print(f"\nTry next:\n  curtail eval {checkpoint}\n  curtail sample {checkpoint} 'def '")


def summary_rows(summary: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """The summary for display, as names and values."""
    from curtail.commands.status.view import count, duration, saved

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    regimes = ", ".join(f"{name} {duration(value)}" for name, value in summary["regime_seconds"].items())
    return (
        ("rounds", f"{summary['rounds']}, {summary['versions']} versions of the weights"),
        ("tokens", count(summary["tokens"])),
        ("loss", f"{number(summary['loss_first'])} at first, {number(summary['loss_last'])} at last, smoothed"),
        ("regimes", f"{regimes} (time of the trace, {SPEED:.0f} times faster)"),
        (
            "energy",
            f"{summary['energy_kwh']:.3f} kWh for training, {summary['curtailed_energy_pct']:.1f} % of it curtailed",
        ),
        ("CO2", f"{summary['kg_co2']:.3f} kg; {saved(summary['kg_co2'], summary['kg_co2_always_on'])}"),
        ("standing by", f"{summary['energy_standing_kwh']:.3f} kWh, {summary['kg_co2_standing']:.3f} kg"),
        ("took", duration(summary["wall_seconds"])),
    )
