"""Charts shared by the reports of runs and of simulations, drawn from plain values.

Only coordinates are computed here. Times are Unix seconds, shown in UTC. A chart
without data says so, or is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from curtail.carbon.accounting import PHASES
from curtail.plotting.figure import Key, Picture
from curtail.plotting.svg import (
    MARK_LINE,
    WIDTH,
    Frame,
    Point,
    Span,
    axes,
    bands,
    box,
    curve,
    dots,
    label,
    lane,
    level,
    mark,
    number,
    thin,
    ticks,
    time_ticks,
)

LANE = 15.0
"""Height of one site's line below a plot."""
MOST_DOTS = 120
"""Largest number of points of a curve at which each point gets a dot."""
LONGEST = 12
"""Characters of a name beside a plot; a longer name is cut and shown in full on hover."""
WIDE = 140.0
"""Space beside a plot for names of 20 characters."""
FOOT = 24.0
"""Space for the labels below an axis."""

Stretch = tuple[float, float, str, object]
"""(start, stop, class, text shown on hover)."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One region's MCI."""

    region: str
    curve: Sequence[Point]
    dense: bool  # the curve was thinned, so its points are joined by lines instead of steps
    windows: Sequence[Span]
    threshold: float | None
    lowest: float | None
    highest: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a chart: its class, legend text and points."""

    name: str
    words: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Mark:
    """A labelled point in time in a chart."""

    at: float
    words: str


def short(name: str, most: int = LONGEST) -> str:
    """`name`, shortened to fit beside a plot."""
    return name if len(name) <= most else name[: most - 1] + "…"


def signal_chart(
    signal: Signal,
    start: float,
    stop: float,
    lanes: Sequence[tuple[str, Sequence[Stretch]]],
    keys: tuple[Key, ...] = (),
    marks: Sequence[Mark] = (),
) -> Picture:
    """MCI with windows and threshold, and below it one lane per site with its phases."""
    foot = LANE * len(lanes) + 8.0 if lanes else 0.0
    low, high = min(0.0, signal.lowest or 0.0), max(signal.highest or 0.0, (signal.threshold or 0.0) * 1.2)
    up = ticks(low, high, 4)
    frame = Frame(start, stop, up[0], up[-1], height=110.0, top=10.0 + MARK_LINE * len(marks))
    parts = [bands(frame, signal.windows, "window")]
    parts.append(axes(frame, time_ticks(start, stop), up, "gCO2/kWh", foot))
    if signal.dense:
        parts.append(curve(frame, signal.curve, "mci dense"))
    else:
        parts.append(curve(frame, signal.curve, "mci", until=stop))
    if signal.threshold is not None:
        parts.append(level(frame, signal.threshold, "threshold", f"threshold {signal.threshold:g}"))
    if not signal.curve:
        parts.append(label(WIDTH / 2, frame.top + 50, "no reading arrived", "small", "middle"))
    for index, (name, spans) in enumerate(lanes):
        parts.append(_lane(frame, name, spans, frame.bottom + 8 + index * LANE))
    parts += [mark(frame, one.at, one.words, foot, row) for row, one in enumerate(marks)]
    title = f"MCI of region {signal.region}"
    return Picture(f"mci-{signal.region}", title, frame.bottom + foot + FOOT, tuple(parts), keys)


def _lane(frame: Frame, name: str, spans: Sequence[Stretch], y: float) -> str:
    return (
        label(frame.left - 6, y + LANE - 4, short(name), "small", "end", name)
        + box(frame.left, y + 2, frame.width - frame.left - frame.right, LANE - 4, "rail")
        + lane(frame, y + 2, LANE - 4, spans)
    )


def band_chart(name: str, title: str, spans: Sequence[Stretch], span: Span, keys: tuple[Key, ...]) -> Picture:
    """Time spans in one row."""
    frame = Frame(span[0], span[1], 0.0, 1.0, height=26.0)
    parts = (lane(frame, frame.top, frame.height, spans), axes(frame, time_ticks(*span), [], ""))
    return Picture(name, title, frame.bottom + FOOT, parts, keys)


def time_chart(
    name: str,
    title: str,
    unit: str,
    lines: Sequence[Line],
    span: Span,
    width: float = WIDTH,
    from_zero: bool = True,
    marks: Sequence[Mark] = (),
) -> Picture | None:
    """Curves over time; None if none of them has a value."""
    values = [value for line in lines for _, value in line.points if value is not None]
    if not values:
        return None
    up = ticks(0.0 if from_zero else min(values), max(values))
    frame = Frame(*span, up[0], up[-1], height=150.0, width=width, top=10.0 + MARK_LINE * len(marks))
    parts = [axes(frame, time_ticks(*span, most=8 if width > WIDTH / 2 else 4), up, unit)]
    parts += [curve(frame, thin(line.points), line.name) for line in lines]
    if not from_zero and len(lines[0].points) <= MOST_DOTS:
        parts.append(dots(frame, lines[0].points, f"{lines[0].name}-dot"))
    parts += [mark(frame, one.at, one.words, row=row) for row, one in enumerate(marks)]
    keys = tuple((f"line:{line.name}", line.words) for line in lines if line.words and line.points)
    return Picture(name, title, frame.bottom + FOOT, tuple(parts), keys, width)


def phase_keys(names: Iterable[str] = PHASES) -> tuple[Key, ...]:
    """Legend of the phases' colours."""
    return tuple((f"phase-{phase}", phase) for phase in names)


def energy_chart(sites: Sequence[tuple[str, Mapping[str, float]]]) -> Picture | None:
    """kWh of each site by phase, as one stacked bar per site; None if no energy was drawn."""
    drawn = [(site, phases) for site, phases in sites if sum(phases.values()) > 0]
    if not drawn:
        return None
    seen = [phase for phase in PHASES if any(phases.get(phase, 0.0) > 0 for _, phases in drawn)]
    across = ticks(0.0, max(sum(phases.values()) for _, phases in drawn))
    frame = Frame(across[0], across[-1], 0.0, 1.0, height=24.0 * len(drawn), right=24.0)
    parts = [axes(frame, [(value, number(value)) for value in across], [], "")]
    for index, (site, phases) in enumerate(drawn):
        y, at = frame.top + 24.0 * index + 3, 0.0
        parts.append(label(frame.left - 6, y + 13, short(site), "small", "end", site))
        for phase in PHASES:
            kwh = phases.get(phase, 0.0)
            if kwh > 0:
                width = frame.x(at + kwh) - frame.x(at)
                parts.append(box(frame.x(at), y, width, 18.0, f"phase-{phase}", f"{site} {phase}: {kwh:.4g} kWh"))
            at += kwh
    parts.append(label(WIDTH / 2, frame.bottom + 32, "kWh", "small", "middle"))
    return Picture("energy", "energy by site and phase", frame.bottom + 38, tuple(parts), phase_keys(seen))


def name_chart(name: str, title: str, unit: str, bars: Sequence[tuple[str, str, float | None]]) -> Picture | None:
    """One horizontal bar, labelled with its value, for each (name, class, value); None if none has a value."""
    known = [(words, kind, value) for words, kind, value in bars if value is not None]
    if not known:
        return None
    across = ticks(0.0, max(value for _, _, value in known))
    frame = Frame(across[0], across[-1], 0.0, 1.0, height=22.0 * len(known), left=WIDE, right=70.0)
    parts = [axes(frame, [(value, number(value)) for value in across], [], "")]
    for index, (words, kind, value) in enumerate(known):
        y = frame.top + 22.0 * index + 3
        parts.append(label(frame.left - 6, y + 12, short(words, 20), "small", "end", words))
        parts.append(box(frame.left, y, frame.x(value) - frame.left, 16.0, kind, f"{words}: {value:.4g} {unit}"))
        parts.append(label(frame.x(value) + 5, y + 12, f"{value:,.4g}", "small"))
    parts.append(label(WIDTH / 2, frame.bottom + 32, unit, "small", "middle"))
    return Picture(name, title, frame.bottom + 38, tuple(parts))


def bar_chart(name: str, title: str, unit: str, across: str, points: Sequence[Point]) -> Picture:
    """Bars over ascending integers; a curve if there are too many of them."""
    values = [value for _, value in points if value is not None]
    up = ticks(0.0, max(values, default=0.0), 4)
    first, last = points[0][0], points[-1][0]
    frame = Frame(first - 0.5, last + 0.5, up[0], up[-1], height=110.0, width=WIDTH / 2)
    words = [(at, f"{at:,.0f}") for at in ticks(first, last, 6) if first <= at <= last and at == int(at)]
    parts = [axes(frame, words, up, unit)]
    if len(points) <= MOST_DOTS:
        width = (frame.x(last + 0.5) - frame.left) / (last - first + 1)
        for at, value in points:
            if value is not None:
                y = frame.y(value)
                hint = f"{across} {at:.0f}: {value:,.6g} {unit}"
                parts.append(box(frame.x(at) - 0.4 * width, y, 0.8 * width, frame.bottom - y, "round", hint))
    else:
        parts.append(curve(frame, thin(points), "rounds"))
    parts.append(label(frame.left + (frame.width - frame.left) / 2, frame.bottom + 30, across, "small", "middle"))
    return Picture(name, title, frame.bottom + 36, tuple(parts), width=WIDTH / 2)


def value_chart(
    name: str, title: str, unit: str, across: str, lines: Sequence[Line], hollow: frozenset[float] = frozenset()
) -> Picture | None:
    """Curves over a swept value; the first curve has hollow dots at the values in `hollow`. None: no value."""
    places = [at for line in lines for at, _ in line.points]
    values = [value for line in lines for _, value in line.points if value is not None]
    if not values:
        return None
    left, right = min(places), max(places)
    edge = (right - left) * 0.03 or max(abs(left) * 0.1, 1.0)
    up = ticks(min(0.0, *values), max(values))
    frame = Frame(left - edge, right + edge, up[0], up[-1], height=150.0, width=WIDTH / 2)
    words = [(at, number(at)) for at in ticks(left, right, 5) if left <= at <= right] or [(left, number(left))]
    parts = [axes(frame, words, up, unit)]
    for line in lines:
        parts.append(curve(frame, thin(line.points), line.name))
        if len(line.points) <= MOST_DOTS:
            parts.append(dots(frame, line.points, f"{line.name}-dot"))
    parts.append(dots(frame, [point for point in lines[0].points if point[0] in hollow], "open-dot"))
    parts.append(label(frame.left + (frame.width - frame.left) / 2, frame.bottom + 30, across, "small", "middle"))
    keys = tuple((f"line:{line.name}", line.words) for line in lines if line.words)
    return Picture(name, title, frame.bottom + 36, tuple(parts), keys, WIDTH / 2)
