"""Lower bound: the least carbon that any schedule could emit for the same work.

A cell is one region during one slot of the trace, in which its site can train at
full power. Without starts, stops and exchanges the cells are independent, so using
the cleanest ones is optimal, and no policy emits less. Units: seconds, W, gCO2/kWh,
kg.
"""

from __future__ import annotations

from collections.abc import Iterable

from curtail.grid.reading import JOULES_PER_KWH
from curtail.grid.trace import Trace

Cell = tuple[float, float]
"""Seconds, gCO2/kWh."""


def cells_of(trace: Trace, regions: Iterable[str], bound_s: float, cap: float | None) -> list[Cell]:
    """The regions' cells in the first `bound_s` seconds of the trace, only those below `cap` unless it is None."""
    stop = min(trace.end, trace.start + bound_s)
    ends = (*trace.stamps[1:], trace.end)
    found: list[Cell] = []
    for region in regions:
        for start, end, mci in zip(trace.stamps, ends, trace.values[region], strict=True):
            if mci is not None and start < stop and (cap is None or mci < cap):
                found.append((min(end, stop) - start, mci))
    return found


def oracle_kg(cells: Iterable[Cell], work: float, train_w: float) -> float | None:
    """kgCO2 of `work` site-seconds in the cleanest cells; None if the cells do not suffice."""
    left, grams = work, 0.0
    for seconds, mci in sorted(cells, key=lambda cell: cell[1]):
        used = min(left, seconds)
        grams += train_w * used / JOULES_PER_KWH * mci
        left -= used
        if left <= 0:
            break
    return grams / 1000.0 if left <= 1e-6 else None


def bound_kg(
    trace: Trace, regions: Iterable[str], bound_s: float, cap: float, work: float, train_w: float
) -> float | None:
    """The lower bound with cells below `cap`, or with all cells if those do not suffice (after delayed signals).

    None if the work does not fit into the time at all.
    """
    names = list(regions)
    found = oracle_kg(cells_of(trace, names, bound_s, cap), work, train_w)
    return found if found is not None else oracle_kg(cells_of(trace, names, bound_s, None), work, train_w)
