"""Writes the report of a run: one HTML file, optionally its figures as JSON and its charts as PNG.

Reads one snapshot of the controller's store, even while the controller runs, and
never writes to it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from controller.store import reading
from curtail import __version__
from curtail.commands.report.collect.figures import Figures, collect
from curtail.commands.report.render.page import page
from curtail.commands.report.render.plots import pictures
from curtail.errors import UsageError
from curtail.plotting.figure import alone, file_names
from curtail.plotting.png import to_png
from curtail.system.disk import Disk, SystemDisk, disk_error
from curtail.system.home_files import STORE


def run_report(
    home: Path, out: Path, json_file: Path | None, png_folder: Path | None = None, disk: Disk | None = None
) -> int:
    """Write the report of the run in the folder `home`; returns the exit code.

    Args: png_folder: for the charts; created if missing.
    Raises: NotFound: there is no run. UsageError: both files have the same name. CurtailError: the store
        cannot be read, a file cannot be written, or a library is missing.
    """
    if json_file is not None and json_file.absolute() == out.absolute():
        raise UsageError("--out and --json name the same file", "give two different names")
    if STORE in (out.name, "" if json_file is None else json_file.name):
        raise UsageError(f"a report must not be named {STORE}", "that is the name of a controller's store")
    figures = look(home)
    disk = disk or SystemDisk()
    drawn = [] if png_folder is None else draw(figures)  # this may fail, so it comes before any file is written
    disk.replace("REPORT", out, page(figures, __version__).encode())
    if json_file is not None:
        disk.replace("REPORT_JSON", json_file, as_json(figures).encode())
    if png_folder is not None:
        _write_all(disk, png_folder, drawn)
    print(f"the report of {figures.name} is in {out}", file=sys.stderr)
    return 0


def draw(figures: Figures) -> list[tuple[str, bytes]]:
    """Every picture of the page as (file name, PNG).

    Raises: CurtailError: the library is missing.
    """
    found = pictures(figures)
    return [(name, to_png(alone([one]))) for one, name in zip(found, file_names(found, "png"), strict=True)]


def _write_all(disk: Disk, folder: Path, files: list[tuple[str, bytes]]) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise disk_error("make the folder", folder, error) from error
    for name, data in files:
        disk.replace("REPORT_PNG", folder / name, data)
    print(f"{len(files)} pictures are in {folder}", file=sys.stderr)


def look(home: Path) -> Figures:
    """The present figures of the run in the folder `home`.

    Raises: NotFound: there is no run. CurtailError: the store is damaged or has another schema.
    """
    with reading(home / STORE) as tx:
        return collect(tx)


def as_json(figures: Figures) -> str:
    """All figures as JSON, including all rounds. Times in Unix seconds, kWh, kg, gCO2/kWh."""
    return json.dumps(asdict(figures), allow_nan=False) + "\n"
