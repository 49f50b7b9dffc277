"""`curtail trace import`: converts MCI traces from other programs to curtail's trace format.

There are three input formats: wide (`point_time` and one column per region), the long
format of WattTime's own package (`point_time,value`, one file per region, named
REGION_co2_moer_START_END.csv), and Vessim's (seconds since a start, and columns). The
caller always gives the unit; times must have a time zone. The output is wide, in
g/kWh and UTC; a cell is empty where a region has no value.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from math import isfinite
from pathlib import Path

from curtail.errors import DataError, NotFound, UsageError
from curtail.grid.trace import stamp_of, value_of
from curtail.system.disk import SystemDisk

LONG_NAME = re.compile(r"(?P<region>.+?)_(?P<signal>co2_moer|co2_aoer|health_damage)(_.*)?\.csv")
"""File names of WattTime's package."""

Series = dict[float, float | None]
"""Unix time -> gCO2/kWh; None where the file has an empty value."""


@dataclass(frozen=True, slots=True)
class Table:
    """A CSV file before its format is detected."""

    path: Path
    names: list[str]
    rows: list[tuple[int, list[str]]]  # (line number, cells)


def import_traces(files: Sequence[Path], unit: str, out: Path, start: str | None, regions: Sequence[str]) -> int:
    """Run `curtail trace import`; returns the exit code.

    Args:
        start: ISO 8601; the time of second 0, for Vessim's format only.
        regions: each NAME=COLUMN, to select and rename; none: all columns. For a long file COLUMN is its region.
    Raises: UsageError, NotFound, DataError, DiskError.
    """
    began = None if start is None else _start(start)
    found: dict[str, Series] = {}
    for path in files:
        for name, series in read_any(path, unit, began).items():
            _join(found.setdefault(name, {}), series, name, path)
    if start is not None and not any(_form(_table(path)) == "offset" for path in files):
        raise UsageError("--start is only for files with times in seconds, and none is given", "omit --start")
    chosen = _choose(found, regions)
    period = _check_periods(chosen)
    SystemDisk().replace("TRACE", out, to_csv(chosen).encode())
    moments = {at for series in chosen.values() for at in series}
    print(f"{len(moments)} readings of {len(chosen)} regions, every {period:.0f} s, in {out}, in g/kWh")
    return 0


def read_any(path: Path, unit: str, start: float | None = None) -> dict[str, Series]:
    """Read the regions of one file in any of the three formats, in gCO2/kWh.

    Raises: NotFound, DataError, UsageError: times in seconds without `start`.
    """
    table = _table(path)
    form = _form(table)
    if form == "offset" and start is None:
        raise UsageError(f"the times in {path} are in seconds", "give the time of second 0 with --start")
    names = table.names[1:] if form != "long" else [_region(path)]
    series: dict[str, Series] = {name: {} for name in names}
    before = float("-inf")
    for number, cells in table.rows:
        where = f"{path} line {number}"
        if len(cells) < len(table.names) if form == "long" else len(cells) != len(table.names):
            raise DataError(f"{where} has {len(cells)} columns, the header has {len(table.names)}")
        at = _seconds(cells[0], start or 0.0, where) if form == "offset" else stamp_of(cells[0], where)
        if at <= before:
            raise DataError(f"{where}: the time {cells[0]} is not later than that of the previous line")
        before = at
        values = cells[1:] if form != "long" else [cells[table.names.index("value")]]
        for name, text in zip(names, values, strict=True):
            series[name][at] = value_of(text, unit, where)
    return series


def to_csv(series: Mapping[str, Series]) -> str:
    """The wide format: `point_time,REGION,...`; values with all their digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["point_time", *series])
    for at in sorted({at for column in series.values() for at in column}):
        stamp = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
        values = [column.get(at) for column in series.values()]
        writer.writerow([stamp, *("" if value is None else repr(value) for value in values)])
    return out.getvalue()


def _table(path: Path) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NotFound(f"the file {path} does not exist", "give the paths of CSV files") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    lines = [(number, row) for number, row in enumerate(csv.reader(text.splitlines()), 1) if row]
    if len(lines) < 3:
        raise DataError(f"{path} has fewer than two rows below its header", "a trace needs at least two readings")
    names = [name.strip() for name in lines[0][1]]
    if len(names) < 2 or len(set(names)) != len(names) or not all(names[1:]):
        raise DataError(
            f"{path} has no header with a name for each column", "write the names of the columns into the first line"
        )
    return Table(path, names, lines[1:])


def _form(table: Table) -> str:
    if table.names[0] == "point_time":
        return "long" if "value" in table.names and LONG_NAME.fullmatch(table.path.name) else "wide"
    try:
        float(table.rows[0][1][0])
    except ValueError:
        raise DataError(
            f"{table.path}: the first column is neither point_time nor a number of seconds",
            "name the column of times point_time",
        ) from None
    return "offset"


def _region(path: Path) -> str:
    match = LONG_NAME.fullmatch(path.name)
    assert match is not None
    if match["signal"] != "co2_moer":
        raise DataError(
            f"{path} holds {match['signal']}, which is not a marginal intensity", "use a file with co2_moer"
        )
    return match["region"]


def _start(text: str) -> float:
    try:
        return stamp_of(text, "--start")
    except DataError as error:
        raise UsageError(error.message, error.remedy) from None


def _seconds(text: str, start: float, where: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise DataError(f"{where}: {text!r} is not a number of seconds") from None
    if not isfinite(seconds):
        raise DataError(f"{where}: {text!r} is not a number of seconds")
    return start + seconds


def _join(known: Series, more: Series, name: str, path: Path) -> None:
    for at, value in more.items():
        if at in known and known[at] != value:
            stamp = datetime.fromtimestamp(at, UTC).isoformat()
            raise DataError(
                f"{path} contradicts the files before it: another value for {name} at {stamp}", "omit one of the files"
            )
    known.update(more)


def _choose(found: Mapping[str, Series], regions: Sequence[str]) -> dict[str, Series]:
    chosen: dict[str, Series] = {}
    for text in regions:
        name, sign, column = text.partition("=")
        column = column if sign else name
        if column not in found:
            raise UsageError(f"the files have no region {column!r}", f"they have {', '.join(found)}")
        if not name or name in chosen:
            raise UsageError(
                f"the name in --region {text} is empty or used twice", "write NAME=COLUMN, each name only once"
            )
        chosen[name] = found[column]
    return chosen or dict(found)


def _check_periods(series: Mapping[str, Series]) -> float:
    periods = {}
    for name, column in series.items():
        steps = [after - before for before, after in pairwise(sorted(column))]
        if not steps:
            raise DataError(f"{name} has fewer than two values", "a trace needs at least two readings per region")
        periods[name] = statistics.mode(steps)
    if len(set(periods.values())) > 1:
        listed = ", ".join(f"{name} {period:.0f} s" for name, period in periods.items())
        raise DataError(f"the regions have different periods: {listed}", "import them into separate files")
    return next(iter(periods.values()))
