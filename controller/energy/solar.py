"""The power of a region's solar panels: from a recorded CSV file, or for a clear sky.

A pure function of the time. The power is constant within slots of five minutes,
like grid readings, so that it does not split the ledger's rows further. Outside
of a recording, and where it has no value, the power is 0: energy that is not known
to be solar counts as drawn from the grid. Units: W, Unix seconds.
"""

from __future__ import annotations

import bisect
import csv
import itertools
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from curtail.config import RunConfig, SolarSection
from curtail.errors import DataError, NotFound
from curtail.grid.trace import stamped

SLOT_S = 300.0
"""Length of a slot within which the power of a clear sky is constant."""

Course = Callable[[float], float]
"""Power over time: Unix seconds -> W."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Panels from a CSV file: `shares` of `peak`, each valid until the next stamp; the last one for one period."""

    peak: float
    stamps: tuple[float, ...]
    shares: tuple[float, ...]
    period: float

    def __call__(self, now: float) -> float:
        index = bisect.bisect_right(self.stamps, now) - 1
        if index < 0 or now >= self.stamps[-1] + self.period:
            return 0.0
        return self.peak * self.shares[index]


@dataclass(frozen=True, slots=True)
class ClearSky:
    """Horizontal panels under a clear sky; an upper bound of the power at a place."""

    peak: float  # at 1000 W/m2
    latitude: float  # degrees north
    longitude: float  # degrees east

    def __call__(self, now: float) -> float:
        middle = (now // SLOT_S + 0.5) * SLOT_S
        return self.peak * min(1.0, irradiance(middle, self.latitude, self.longitude) / 1000.0)


def irradiance(now: float, latitude: float, longitude: float) -> float:
    """Clear-sky irradiance on a horizontal surface, W/m2.

    The sun's position is from Spencer's series (1971), the global irradiance from Haurwitz (1945).
    """
    moment = datetime.fromtimestamp(now, UTC)
    hour = moment.hour + moment.minute / 60 + moment.second / 3600
    angle = 2 * math.pi * (moment.timetuple().tm_yday - 1 + (hour - 12) / 24) / 365
    declination = (
        0.006918 - 0.399912 * math.cos(angle) + 0.070257 * math.sin(angle) - 0.006758 * math.cos(2 * angle)
        + 0.000907 * math.sin(2 * angle) - 0.002697 * math.cos(3 * angle) + 0.00148 * math.sin(3 * angle)
    )  # fmt: skip
    minutes = 229.18 * (
        0.000075 + 0.001868 * math.cos(angle) - 0.032077 * math.sin(angle)
        - 0.014615 * math.cos(2 * angle) - 0.040849 * math.sin(2 * angle)
    )  # fmt: skip
    turned = math.radians(15 * (hour + longitude / 15 + minutes / 60 - 12))
    north = math.radians(latitude)
    height = math.sin(north) * math.sin(declination) + math.cos(north) * math.cos(declination) * math.cos(turned)
    return 1098 * height * math.exp(-0.057 / height) if height > 0 else 0.0


def open_courses(config: RunConfig) -> Mapping[str, Course]:
    """The panels of each region that has some.

    Raises: NotFound, DataError: a recording cannot be used; the error names the file and line.
    """
    found = {name: (name, region.solar) for name, region in config.regions.items()}
    return {name: open_course(solar, name) for name, solar in found.values() if solar is not None}


def open_course(solar: SolarSection, region: str) -> Course:
    """The power of the panels of `region`.

    Raises: NotFound, DataError: as `open_courses`.
    """
    if solar.path:
        return load_course(Path(solar.path), solar.column or region, solar.peak)
    assert solar.latitude is not None and solar.longitude is not None, "checked with the run file"
    return ClearSky(solar.peak, solar.latitude, solar.longitude)


def load_course(path: Path, column: str, peak: float) -> Recorded:
    """Load a CSV file with the column `point_time` (ISO 8601 with offset) and columns of shares from 0 to 1.

    Raises: NotFound: no such file. DataError: no such column, a stamp out of order, or a value out of range.
    """
    try:
        rows = csv.reader(path.read_text(encoding="utf-8-sig").splitlines())
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path} for the panels", "correct the path in the region's [solar]") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    header = [name.strip() for name in next(rows, [])]
    if header[:1] != ["point_time"] or column not in header[1:]:
        raise DataError(
            f"{path} has no column point_time or no column {column!r}",
            "the first column must be point_time; name the other one with `column` in the region's [solar]",
        )
    place = header.index(column)
    stamps, shares = [], []
    for stamp, row, where in stamped(rows, len(header), path):
        stamps.append(stamp)
        shares.append(_share(row[place], where))
    if len(stamps) < 2:
        raise DataError(f"{path} has fewer than two rows")
    period = statistics.mode(after - before for before, after in itertools.pairwise(stamps))
    return Recorded(peak, tuple(stamps), tuple(shares), period)


def _share(text: str, where: str) -> float:
    if not text.strip():
        return 0.0
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: {text!r} is not a number") from None
    if not 0.0 <= value <= 1.0:  # also NaN
        raise DataError(
            f"{where}: {text} is not a share of the peak", "give numbers from 0 to 1: watts divided by the peak"
        )
    return value
