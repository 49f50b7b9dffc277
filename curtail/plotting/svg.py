"""SVG fragments of small plots: axes, curves, bars and labels.

A `Frame` maps values to coordinates; the functions draw into it and return fragments
that `figure` combines. Colours are CSS classes, so that the page chooses them for
light, dark and print. All text is escaped here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import floor, log10

Point = tuple[float, float | None]
"""(x, value); None: unknown from there on."""
Span = tuple[float, float]

WIDTH = 900.0
"""Width of a full-width picture in SVG units; the page scales it."""
MOST_POINTS = 1000
"""Largest number of points of one curve."""
MARK_LINE = 12.0
"""Height of the label of a mark."""

TIME_STEPS = (
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200,
    86400, 172800, 604800, 1209600, 2592000, 5184000, 15552000, 31536000,
)  # fmt: skip
DAY_S = 86400
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(value: object) -> str:
    """`value` escaped for HTML and XML; characters that are invalid there are replaced."""
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True)


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps values to coordinates: `x0`..`x1` from left to right, `y0`..`y1` from bottom to top."""

    x0: float
    x1: float
    y0: float
    y1: float
    left: float = 92.0
    right: float = 12.0
    top: float = 10.0
    height: float = 120.0  # of the drawing area
    width: float = WIDTH

    def x(self, value: float) -> float:
        """x coordinate of `value`, clamped to the drawing area."""
        part = (value - self.x0) / (self.x1 - self.x0) if self.x1 > self.x0 else 0.0
        return self.left + min(1.0, max(0.0, part)) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """y coordinate of `value` (from the top), clamped to the drawing area."""
        part = (value - self.y0) / (self.y1 - self.y0) if self.y1 > self.y0 else 0.0
        return self.top + (1.0 - min(1.0, max(0.0, part))) * self.height

    @property
    def bottom(self) -> float:
        return self.top + self.height


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """Reduce ascending `points` to at most `most` (at least 5): ends, extremes and gaps of equal time spans."""
    if len(points) <= most:
        return list(points)
    count = max(1, most // 5)
    first, last = points[0][0], points[-1][0]
    buckets: dict[int, list[int]] = {}
    for index, (at, _) in enumerate(points):
        part = (at - first) / (last - first) if last > first else 0.0
        buckets.setdefault(min(count - 1, int(part * count)), []).append(index)
    kept: set[int] = set()
    for indices in buckets.values():
        kept |= {indices[0], indices[-1]}
        known = [(value, index) for index in indices if (value := points[index][1]) is not None]
        if known:
            kept |= {min(known)[1], max(known)[1]}
        kept |= set([index for index in indices if points[index][1] is None][:1])
    return [points[index] for index in sorted(kept)]


def joined(spans: Iterable[Span], gap: float) -> list[Span]:
    """Ascending `spans`, merged where they are no further apart than `gap`."""
    out: list[Span] = []
    for start, stop in spans:
        if out and start - out[-1][1] <= gap:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        else:
            out.append((start, stop))
    return out


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `most` of them."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / most
    unit = 10.0 ** floor(log10(rough))
    step = next((unit * factor for factor in (1, 2, 2.5, 5) if unit * factor >= rough * (1 - 1e-9)), unit * 10)
    first = floor(low / step + 1e-9)
    found = [first * step]
    while found[-1] < high - step * 1e-9:
        found.append((first + len(found)) * step)
    return found


def time_ticks(start: float, stop: float, most: int = 8) -> list[tuple[float, str]]:
    """Round times within `start`..`stop` (Unix seconds), with their labels in UTC."""
    step = next((s for s in TIME_STEPS if (stop - start) / s <= most), TIME_STEPS[-1])
    found = []
    at = -(-start // step) * step
    while at <= stop:
        moment = datetime.fromtimestamp(at, UTC)
        form = (
            "%Y-%m-%d" if step >= DAY_S else "%m-%d %H:%M" if not at % DAY_S else "%H:%M" if step >= 60 else "%H:%M:%S"
        )
        found.append((at, moment.strftime(form)))
        at += step
    return found


def number(value: float) -> str:
    """The label of a tick, without needless digits."""
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value / 1e6:,.6g}M"


# -- fragments ---------------------------------------------------------------


def label(x: float, y: float, words: object, name: str = "", anchor: str = "start", hint: object = None) -> str:
    """Text at a position; `hint` is shown on hover."""
    title = "" if hint is None else f"<title>{text(hint)}</title>"
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{name}" text-anchor="{anchor}">{title}{text(words)}</text>'


def box(x: float, y: float, width: float, height: float, name: str, hint: object = None) -> str:
    """A filled rectangle with a minimum visible width."""
    title = "" if hint is None else f"<title>{text(hint)}</title>"
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0.6):.2f}" height="{height:.2f}" class="{name}">'
        f"{title}</rect>"
    )


def bands(frame: Frame, spans: Iterable[Span], name: str) -> str:
    """Shading of `spans` over the whole height."""
    return "".join(
        box(frame.x(start), frame.top, frame.x(stop) - frame.x(start), frame.height, name) for start, stop in spans
    )


def lane(frame: Frame, y: float, height: float, spans: Iterable[tuple[float, float, str, object]]) -> str:
    """Rectangles side by side, each from (start, stop, class, hint)."""
    return "".join(
        box(frame.x(start), y, frame.x(stop) - frame.x(start), height, name, hint) for start, stop, name, hint in spans
    )


def curve(frame: Frame, points: Sequence[Point], name: str, until: float | None = None) -> str:
    """A line through `points`; with `until` a step function whose last value holds to `until`."""
    parts: list[str] = []
    held: float | None = None
    for at, value in points:
        x = f"{frame.x(at):.1f}"
        if until is not None and held is not None:
            parts.append(f"H{x}")
        if value is not None:
            if held is None:
                parts.append(f"M{x} {frame.y(value):.1f}")
            else:
                parts.append(f"V{frame.y(value):.1f}" if until is not None else f"L{x} {frame.y(value):.1f}")
        held = value
    if until is not None and held is not None:
        parts.append(f"H{frame.x(until):.1f}")
    return f'<path d="{"".join(parts)}" class="curve {name}"/>' if parts else ""


def dots(frame: Frame, points: Iterable[Point], name: str) -> str:
    """A dot at each known point."""
    return "".join(
        f'<circle cx="{frame.x(at):.1f}" cy="{frame.y(value):.1f}" r="2.2" class="{name}"/>'
        for at, value in points
        if value is not None
    )


def level(frame: Frame, value: float, name: str, words: str) -> str:
    """A horizontal line at `value`, with a label at its right end."""
    y = frame.y(value)
    return (
        f'<line x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}" class="{name}"/>'
        + label(frame.width - frame.right - 3, y - 3, words, "small", "end")
    )


def mark(frame: Frame, at: float, words: str, foot: float = 0.0, row: int = 0) -> str:
    """A vertical line at the time `at`, with a label above it on the side with more space; `row`: from below."""
    x, y = frame.x(at), frame.top - 7 - MARK_LINE * row
    anchor = "end" if x > frame.left + (frame.width - frame.left) / 2 else "start"
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{frame.bottom + foot:.1f}" class="limit"/>' + label(
        x + (-4 if anchor == "end" else 4), y + 3, words, "small", anchor
    )


def axes(frame: Frame, across: Iterable[tuple[float, str]], up: Iterable[float], unit: str, foot: float = 0.0) -> str:
    """Grid lines and labels; `foot`: distance of the x labels below the drawing area."""
    parts = []
    for value in up:
        y = frame.y(value)
        parts.append(
            f'<line x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        )
        parts.append(label(frame.left - 6, y + 3.5, number(value), "small", "end"))
    for at, words in across:
        x = frame.x(at)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.bottom + foot + 4:.1f}" class="grid"/>'
        )
        parts.append(label(x, frame.bottom + foot + 16, words, "small", "middle"))
    middle = frame.top + frame.height / 2
    parts.append(
        f'<text class="small" text-anchor="middle" transform="translate(13 {middle:.1f}) rotate(-90)">'
        f"{text(unit)}</text>"
    )
    return "".join(parts)
