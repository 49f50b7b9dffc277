"""`curtail report`: a run as one HTML file, and its figures as JSON.

Reads the controller's store at one moment, also while the controller runs, and
never writes to it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from controller.store import reading
from curtail import __version__
from curtail.disk import Disk, SystemDisk
from curtail.errors import UsageError
from curtail.reportfigures import Figures, collect
from curtail.reportpage import page

STORE = "state.db"


def run_report(home: Path, out: Path, json_file: Path | None, disk: Disk | None = None) -> int:
    """Write the report of the run in the folder `home`; returns the exit code.

    Raises: NotFound: there is no run. UsageError: both files are one. CurtailError: the store
        cannot be read, or a file not written.
    """
    if json_file is not None and json_file.absolute() == out.absolute():
        raise UsageError("--out and --json name the same file", "give two names")
    if STORE in (out.name, "" if json_file is None else json_file.name):
        raise UsageError(f"a report cannot be called {STORE}", "that is the name of a controller's store")
    figures = look(home)
    disk = disk or SystemDisk()
    disk.replace("report", out, page(figures, __version__).encode())
    if json_file is not None:
        disk.replace("report-json", json_file, as_json(figures).encode())
    print(f"the report of {figures.name} is in {out}", file=sys.stderr)
    return 0


def look(home: Path) -> Figures:
    """The figures of the run in the folder `home`, as it is now.

    Raises: NotFound: there is no run. CurtailError: its store is damaged or of another schema.
    """
    with reading(home / STORE) as tx:
        return collect(tx)


def as_json(figures: Figures) -> str:
    """The figures of the page, and all rounds. Times in Unix seconds, kWh, kg, gCO2/kWh."""
    return json.dumps(asdict(figures), allow_nan=False) + "\n"
