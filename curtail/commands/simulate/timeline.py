"""Timeline of a simulated run for its charts: phases of each site, and cumulative carbon.

Rows are collected while the simulation runs, and only sums and time spans are kept, so
that a simulated year fits into memory. Units: seconds of the trace, kWh, kg.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from curtail.carbon.accounting import ATTRIBUTED, Entry
from curtail.commands.trace.show import windows
from curtail.grid.reading import JOULES_PER_KWH
from curtail.grid.trace import Trace
from curtail.plotting.svg import MOST_POINTS, Point, Span, joined, thin

MOST_SPANS = 2000
"""Largest number of time spans that are distinguishable at the width of a picture."""

Phase = tuple[float, float, str]
"""(start, stop, phase)."""


@dataclass(slots=True)
class Course:
    """Timeline of a simulated run; `note` receives the ledger's rows as they are closed."""

    start: float
    slot_s: float  # period of the trace
    phases: dict[str, list[Phase]] = field(default_factory=dict)
    kwh: dict[str, dict[str, float]] = field(default_factory=dict)
    _attributed: dict[int, float] = field(default_factory=dict)  # slot -> kg
    _standing: dict[int, float] = field(default_factory=dict)

    def note(self, entry: Entry) -> None:
        """Add one row."""
        phases = self.phases.setdefault(entry.site, [])
        if phases and phases[-1][2] == entry.phase and phases[-1][1] == entry.t0:
            phases[-1] = (phases[-1][0], entry.t1, entry.phase)
        else:
            phases.append((entry.t0, entry.t1, entry.phase))
        sums = self.kwh.setdefault(entry.site, {})
        sums[entry.phase] = sums.get(entry.phase, 0.0) + entry.kwh
        if entry.kg:
            self._spread(self._attributed if entry.phase in ATTRIBUTED else self._standing, entry, entry.kg)

    def _spread(self, slots: dict[int, float], entry: Entry, kg: float) -> None:
        """Distribute the kg of a row over the slots of the trace that it covers."""
        first, last = self._slot(entry.t0), self._slot(entry.t1)
        for slot in range(first, last + 1):
            begin = max(entry.t0, self.start + slot * self.slot_s)
            end = min(entry.t1, self.start + (slot + 1) * self.slot_s)
            if end > begin:
                slots[slot] = slots.get(slot, 0.0) + kg * (end - begin) / (entry.t1 - entry.t0)

    def _slot(self, at: float) -> int:
        return int((at - self.start) // self.slot_s)

    def growth(self, standing: bool) -> list[Point]:
        """Cumulative kg at the end of each slot: attributed only, or with standing energy."""
        slots = dict(self._attributed)
        if standing:
            for slot, kg in self._standing.items():
                slots[slot] = slots.get(slot, 0.0) + kg
        end = max((spans[-1][1] for spans in self.phases.values()), default=self.start)
        places = {slot: self.start + slot * self.slot_s for slot in slots}
        shares = [(places[slot], min(end, places[slot] + self.slot_s), kg) for slot, kg in slots.items()]
        return grown(shares, self.start, end)

    def lane(self, site: str) -> list[Phase]:
        """The site's phases except paused; merged into spans of training if there are too many to distinguish."""
        spans = [span for span in self.phases.get(site, []) if span[2] != "paused"]
        if len(spans) <= MOST_SPANS:
            return spans
        length = spans[-1][1] - spans[0][0]
        return [(a, b, "train") for a, b in joined([(a, b) for a, b, _ in spans], length / MOST_SPANS)]


def grown(shares: Iterable[tuple[float, float, float]], start: float, end: float) -> list[Point]:
    """Shares of kg, each over a time span, as a cumulative curve that is flat between the spans."""
    slots: dict[tuple[float, float], float] = {}
    for first, last, kg in shares:
        slots[first, last] = slots.get((first, last), 0.0) + kg
    points: list[Point] = [(start, 0.0)]
    total = 0.0
    for (first, last), kg in sorted(slots.items()):
        if first > points[-1][0]:
            points.append((first, total))
        total += kg
        points.append((last, total))
    return thin(points if points[-1][0] >= end else [*points, (end, total)])


def oracle_course(
    trace: Trace, regions: Sequence[str], bound_s: float, cap: float | None, work: float, train_w: float
) -> list[Point]:
    """Cumulative carbon of the lower bound (`oracle_kg`), with its cells in time order.

    Returns: an empty list if the cells below `cap` do not suffice for the work.
    """
    stop = min(trace.end, trace.start + bound_s)
    ends = (*trace.stamps[1:], trace.end)
    cells = [
        (mci, min(end, stop) - at, at)
        for region in regions
        for at, end, mci in zip(trace.stamps, ends, trace.values[region], strict=True)
        if mci is not None and at < stop and (cap is None or mci < cap)
    ]
    left, shares = work, []
    for mci, seconds, at in sorted(cells):
        used = min(left, seconds)
        shares.append((at, at + seconds, train_w * used / JOULES_PER_KWH * mci / 1000.0))
        left -= used
        if left <= 0:
            break
    if left > 1e-6:
        return []
    return grown(shares, trace.start, stop)


def held_curve(trace: Trace, region: str, stop: float) -> list[Point]:
    """The readings of a region up to `stop`, each held until the next, but for one period at most."""
    points: list[Point] = []
    ends = (*trace.stamps[1:], trace.end)
    for at, end, mci in zip(trace.stamps, ends, trace.values[region], strict=True):
        if at >= stop:
            break
        points.append((at, mci))
        if mci is not None and at + trace.period < end:
            points.append((at + trace.period, None))
    return points


def shown_windows(trace: Trace, region: str, threshold: float, start: float, stop: float) -> list[Span]:
    """The windows of a region within `start`..`stop`, merged if there are too many to distinguish."""
    found = [(max(w.start, start), min(w.stop, stop)) for w in windows(trace, region, threshold)]
    inside = [(a, b) for a, b in found if b > a]
    return joined(inside, (stop - start) / MOST_SPANS) if len(inside) > MOST_SPANS else inside


def is_dense(points: Sequence[Point]) -> bool:
    """Whether a curve has more points than a picture can show."""
    return len(points) > MOST_POINTS
