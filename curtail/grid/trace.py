"""Recorded MCI traces (CSV files) as a source of readings and of perfect forecasts.

The first column is `point_time` (ISO 8601 with offset); each further column is a
region. The caller gives the unit; it is never guessed. A value holds from its
timestamp for one period (the most common interval between timestamps). An empty cell
is unknown, and so is everything after the end of the trace. Times are Unix seconds.
"""

from __future__ import annotations

import bisect
import csv
import itertools
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from curtail.errors import DataError, NotFound
from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, check_value, to_g_per_kwh, unknown


@dataclass(frozen=True, slots=True)
class Trace:
    """Values of several regions at common timestamps; `None` where the file has no value."""

    name: str
    stamps: tuple[float, ...]
    values: dict[str, tuple[float | None, ...]]  # gCO2/kWh
    period: float

    @property
    def start(self) -> float:
        return self.stamps[0]

    @property
    def end(self) -> float:
        """The end of the last value's validity."""
        return self.stamps[-1] + self.period

    def reading(self, column: str, region: str, now: float) -> Reading:
        """The reading of `region` at `now`, from `column`."""
        source = f"trace {self.name}"
        if now >= self.end:
            return unknown(region, now, source, f"the trace {self.name} ended at {utc_minute(self.end)}")
        index = bisect.bisect_right(self.stamps, now) - 1
        if index < 0:
            return unknown(region, now, source, f"the trace {self.name} starts at {utc_minute(self.start)}")
        value = self.values[column][index]
        point = self.stamps[index]
        if value is None:
            return unknown(region, now, source, f"the trace {self.name} has no value for {utc_minute(point)}")
        return Reading(region, value, point, point + self.period, source)

    def forecast(self, column: str, region: str, now: float, horizon: float) -> Forecast:
        """A perfect forecast: the trace's own values from `now` to the forecast horizon `now + horizon`.

        Unknown values, and everything after the end of the trace, count as infinite.
        """
        first = max(0, bisect.bisect_right(self.stamps, now) - 1)
        last = bisect.bisect_right(self.stamps, now + horizon)
        column_values = self.values[column]
        points: list[tuple[float, float]] = []
        for index in range(first, last):
            value = column_values[index]
            points.append((self.stamps[index], math.inf if value is None else value))
        if now + horizon < self.end:
            return Forecast(region, tuple(points), now + horizon)
        return Forecast(region, (*points, (self.end, math.inf)))


def load_trace(path: Path, unit: str, columns: Iterable[str] | None = None) -> Trace:
    """Read the trace in the CSV file at `path`, restricted to `columns`; None: all of them.

    Raises:
        NotFound: no such file.
        DataError: no such column, a timestamp without offset or out of order, a value that is not a number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NotFound(f"the trace file {path} does not exist", "give the path of a CSV file") from error
    except (OSError, UnicodeDecodeError) as error:
        words = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the trace file {path}: {words}") from error
    rows = csv.reader(text.splitlines())
    header = next(rows, None)
    if not header or header[0].strip() != "point_time":
        raise DataError(
            f"{path} is not a trace",
            "the first column must be named point_time; `curtail trace import` converts other formats",
        )
    names = [name.strip() for name in header]
    if len(set(names)) != len(names) or not all(names):
        raise DataError(
            f"{path} has a column without a name, or two columns with the same name", "give each region a unique name"
        )
    wanted = names[1:] if columns is None else list(dict.fromkeys(columns))
    for column in wanted:
        if column not in names[1:]:
            raise DataError(
                f"the trace {path} has no column {column!r}",
                f"it has {', '.join(names[1:])}; choose one with `column` in that region of the run file",
            )
    stamps: list[float] = []
    values: dict[str, list[float | None]] = {column: [] for column in wanted}
    for stamp, row, where in stamped(rows, len(names), path):
        stamps.append(stamp)
        for column in wanted:
            values[column].append(value_of(row[names.index(column)], unit, where))
    if len(stamps) < 2:
        raise DataError(f"the trace {path} has fewer than two rows", "a trace needs at least two readings")
    distances = [after - before for before, after in itertools.pairwise(stamps)]
    period = statistics.mode(distances)
    return Trace(path.name, tuple(stamps), {c: tuple(v) for c, v in values.items()}, period)


def stamped(rows: Iterable[list[str]], width: int, path: Path) -> Iterator[tuple[float, list[str], str]]:
    """The rows of a CSV file after its header, each as (Unix seconds, cells, location for error messages).

    Raises: DataError: a row without exactly `width` cells, or an invalid or non-increasing time.
    """
    before = -math.inf
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        where = f"{path} line {number}"
        if len(row) != width:
            raise DataError(f"{where} has {len(row)} columns, the header has {width}")
        stamp = stamp_of(row[0], where)
        if stamp <= before:
            raise DataError(f"{where}: the time {row[0]} is not later than that of the previous line")
        before = stamp
        yield stamp, row, where


def stamp_of(text: str, where: str) -> float:
    """Parse a time as Unix seconds. Raises: DataError: invalid, or without offset; the message begins with `where`."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise DataError(
            f"{where}: {text!r} is not a time", "write ISO 8601 with offset, for example 2026-01-11 17:00:00+00:00"
        ) from None
    if moment.tzinfo is None:
        raise DataError(f"{where}: {text!r} has no time zone", "write the offset, for example +00:00")
    return moment.timestamp()


def value_of(text: str, unit: str, where: str) -> float | None:
    """Parse a value as gCO2/kWh; None if empty. Raises: DataError: not a number, or not plausible in `unit`."""
    if text.strip() == "" or text.strip().lower() == "nan":
        return None
    try:
        value = to_g_per_kwh(float(text), unit)
    except ValueError:
        raise DataError(f"{where}: {text!r} is not a number") from None
    problem = check_value(value)
    if problem:
        raise DataError(f"{where}: {problem}", "check --unit")
    return value


def utc_minute(moment: float) -> str:
    """A time for display, in UTC, to the minute."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%MZ")
