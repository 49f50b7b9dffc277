"""A recorded MCI trace as a source of readings.

The file is CSV: first column `point_time` (ISO 8601 with offset), one further
column per region; the unit is given by the caller, never guessed. A value
holds from its stamp for one period (the commonest distance of stamps). An
empty cell is unknown; after the end of the trace everything is unknown. The
trace's own future can serve as a perfect forecast. Times are Unix seconds.
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
    """Values of several regions at common stamps; `None` where the file says nothing."""

    name: str
    stamps: tuple[float, ...]
    values: dict[str, tuple[float | None, ...]]  # gCO2/kWh
    period: float

    @property
    def start(self) -> float:
        return self.stamps[0]

    @property
    def end(self) -> float:
        """The first moment about which the trace says nothing any more."""
        return self.stamps[-1] + self.period

    def reading(self, column: str, region: str, now: float) -> Reading:
        """What is known of `region` at `now`."""
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
        """The trace's own values from the one that holds at `now` to `now + horizon`, the end of what is known.

        Unknown ones, and all that comes after the trace, count as infinitely dirty.
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
    """The trace in the CSV file at `path`, reduced to `columns`; None: all of them.

    Raises:
        NotFound: no such file.
        DataError: no such column, a stamp without offset or out of order, a value that is no number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise NotFound(f"there is no trace file {path}", "give the path of a CSV file") from error
    except (OSError, UnicodeDecodeError) as error:
        words = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the trace file {path}: {words}") from error
    rows = csv.reader(text.splitlines())
    header = next(rows, None)
    if not header or header[0].strip() != "point_time":
        raise DataError(
            f"{path} is no trace",
            "the first column must be called point_time; `curtail trace import` brings other forms into this one",
        )
    names = [name.strip() for name in header]
    if len(set(names)) != len(names) or not all(names):
        raise DataError(f"{path} has a column without a name, or two of one name", "give each region a name of its own")
    wanted = names[1:] if columns is None else list(dict.fromkeys(columns))
    for column in wanted:
        if column not in names[1:]:
            raise DataError(
                f"the trace {path} has no column {column!r}",
                f"it has {', '.join(names[1:])}; name one with `column` in the run file's region",
            )
    stamps: list[float] = []
    values: dict[str, list[float | None]] = {column: [] for column in wanted}
    for stamp, row, where in stamped(rows, len(names), path):
        stamps.append(stamp)
        for column in wanted:
            values[column].append(value_of(row[names.index(column)], unit, where))
    if len(stamps) < 2:
        raise DataError(f"the trace {path} has fewer than two rows")
    distances = [after - before for before, after in itertools.pairwise(stamps)]
    period = statistics.mode(distances)
    return Trace(path.name, tuple(stamps), {c: tuple(v) for c, v in values.items()}, period)


def stamped(rows: Iterable[list[str]], width: int, path: Path) -> Iterator[tuple[float, list[str], str]]:
    """The rows of a CSV file after its header: time as Unix seconds, cells, and the words for where that is.

    Raises: DataError: another number of cells than `width`, or a time that is none or not after the one before.
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
            raise DataError(f"{where}: {row[0]} does not come after the line before it")
        before = stamp
        yield stamp, row, where


def stamp_of(text: str, where: str) -> float:
    """A cell of time as Unix seconds. Raises: DataError: no time, or one without offset; `where` says which cell."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise DataError(
            f"{where}: {text!r} is no time", "write ISO 8601 with offset, 2026-01-11 17:00:00+00:00"
        ) from None
    if moment.tzinfo is None:
        raise DataError(f"{where}: {text!r} has no time zone", "write the offset, for example +00:00")
    return moment.timestamp()


def value_of(text: str, unit: str, where: str) -> float | None:
    """A cell of a value in gCO2/kWh, None if it is empty. Raises: DataError: no number, or not plausible in `unit`."""
    if text.strip() == "" or text.strip().lower() == "nan":
        return None
    try:
        value = to_g_per_kwh(float(text), unit)
    except ValueError:
        raise DataError(f"{where}: {text!r} is no number") from None
    problem = check_value(value)
    if problem:
        raise DataError(f"{where}: {problem}", "check --unit")
    return value


def utc_minute(moment: float) -> str:
    """A moment for people, to the minute."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%MZ")
