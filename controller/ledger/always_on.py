"""Computes the always-on comparison of a live run incrementally.

The result equals `curtail.carbon.accounting.always_on_kg`: the carbon of the same
training without waiting. It depends on all readings from the run's start to a time
that usually moves forward. So the sums over a region's readings are kept, and only
later readings are read. The time moves back when a site joins, and a reading may
arrive late. Then the sums go back to a mark before it, and the rest is read again.
Methods run inside one transaction on the store's thread. Units: seconds of the
controller's clock, gCO2/kWh, W, kg.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from controller.store import Transaction
from curtail.grid.reading import JOULES_PER_KWH

MARKS = 256
"""Most marks per region; beyond that, every second one is dropped."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A known reading that was included, and the integral up to it."""

    number: int  # index among the region's known readings: 0, 1, 2, ...
    point: float  # time of the reading
    mci: float
    since: float  # when it takes effect: not before the run's start; the first one exactly then
    total: float  # integral of the readings from the run's start to `since`, gCO2/kWh x s


class Course:
    """The integral of one region's readings from `started` on; each reading holds until the next."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._marks: list[Mark] = []  # every `_every`th, and the last one
        self._every = 1

    @property
    def last(self) -> float:
        """The time of the last included reading; before all others if there is none."""
        return self._marks[-1].point if self._marks else -inf

    def back(self, point: float) -> None:
        """Drop the readings for `point` and later."""
        while self._marks and self._marks[-1].point >= point:
            self._marks.pop()

    def on(self, readings: Iterable[tuple[float, float]], stop: float) -> None:
        """Include the `readings` before `stop`, and the first one always. They are after `last`, ascending."""
        to_come = iter(readings)
        if not self._marks:
            first = next(to_come, None)
            if first is None:
                return
            self._marks.append(Mark(0, *first, self._started, 0.0))
        last = self._marks.pop()
        number, point, mci, since, total = last.number, last.point, last.mci, last.since, last.total
        for following, value in to_come:  # may be a whole run, after a restart, so only marks that are kept are made
            if following >= stop:
                break
            if number % self._every == 0:
                self._keep(Mark(number, point, mci, since, total))
            until = max(self._started, following)
            total += mci * (until - since)
            number, point, mci, since = number + 1, following, value, until
        self._marks.append(Mark(number, point, mci, since, total))

    def until(self, stop: float) -> float | None:
        """The integral up to `stop`, which is after the last included reading; None without readings."""
        if not self._marks:
            return None
        last = self._marks[-1]
        return last.total + last.mci * max(0.0, stop - last.since)

    def _keep(self, mark: Mark) -> None:
        self._marks.append(mark)
        if len(self._marks) > MARKS:
            self._every *= 2
            self._marks = [kept for kept in self._marks if kept.number % self._every == 0]


class AlwaysOn:
    """The comparison for a run that started at `started`."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._courses: dict[str, Course] = {}
        self._noted: int | None = None  # id of the newest reading at the last call

    def kg(self, tx: Transaction, train_seconds: float, regions: Mapping[str, tuple[int, float]]) -> float | None:
        """kgCO2 of the same training without waiting.

        Args: regions: region -> number of its sites, and the power of one in W with PUE.
        Returns: None if nothing was trained, or a region has no known reading.
        """
        sites = sum(count for count, _ in regions.values())
        if train_seconds <= 0 or not sites:
            return None
        tx.after_rollback.append(self._forget)  # the rows that were read may be rolled back
        self._late(tx)
        stop, total = self._started + train_seconds / sites, 0.0
        for region, (count, watts) in regions.items():
            held = self._held(tx, region, stop)
            if held is None:
                return None
            total += count * watts * held / JOULES_PER_KWH / 1000.0
        return total

    def _held(self, tx: Transaction, region: str, stop: float) -> float | None:
        course = self._courses.setdefault(region, Course(self._started))
        course.back(stop)
        course.on(tx.known_readings(region, course.last), stop)
        return course.until(stop)

    def _late(self, tx: Transaction) -> None:
        """Go back to before readings that were added since the last call, if later ones are already included."""
        if self._noted is None:
            self._noted = tx.last_noted()
        for number, region, point in tx.noted_after(self._noted):
            self._noted = number
            if region in self._courses:
                self._courses[region].back(point)

    def _forget(self) -> None:
        self._courses, self._noted = {}, None
