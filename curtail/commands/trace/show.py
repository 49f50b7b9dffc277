"""`curtail trace show`: plots a trace in the terminal and lists its windows below a threshold.

Each region is one line of blocks, scaled from the lowest to the highest value of the
trace; each block shows the mean of its time span. Green: below the threshold
throughout; yellow: in part; blank: unknown. Without a terminal there is no colour. A
window is a time span of known values below the threshold; a value holds until its
period ends. Times are UTC.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from curtail.errors import UsageError
from curtail.grid.trace import Trace, load_trace, utc_minute

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_WINDOWS = 40
"""Largest number of windows listed per region."""


@dataclass(frozen=True, slots=True)
class Span:
    """A window: a time span below the threshold."""

    start: float  # Unix time
    stop: float
    mean: float  # gCO2/kWh, time-weighted
    highest: float


def windows(trace: Trace, column: str, threshold: float) -> list[Span]:
    """The windows of `column` below `threshold`, in time order."""
    found: list[Span] = []
    pieces: list[tuple[float, float, float]] = []  # start, stop, value
    for at, stop, value in _steps(trace, column):
        if pieces and (value is None or value >= threshold or at > pieces[-1][1]):
            found.append(_span(pieces))
            pieces = []
        if value is not None and value < threshold:
            pieces.append((at, stop, value))
    return found + ([_span(pieces)] if pieces else [])


def _steps(trace: Trace, column: str) -> list[tuple[float, float, float | None]]:
    ends = [*trace.stamps[1:], trace.end]
    held = [min(end, at + trace.period) for at, end in zip(trace.stamps, ends, strict=True)]
    return list(zip(trace.stamps, held, trace.values[column], strict=True))


def _span(pieces: list[tuple[float, float, float]]) -> Span:
    start, stop = pieces[0][0], pieces[-1][1]
    mean = sum((end - at) * value for at, end, value in pieces) / sum(end - at for at, end, _ in pieces)
    return Span(start, stop, mean, max(value for _, _, value in pieces))


def blocks(trace: Trace, column: str, width: int, threshold: float, low: float, high: float) -> list[tuple[str, str]]:
    """One (block, colour) for each of `width` equal time spans of the trace."""
    span = (trace.end - trace.start) / width
    found = []
    for index in range(width):
        first = max(0, bisect_right(trace.stamps, trace.start + index * span) - 1)
        last = max(first + 1, bisect_right(trace.stamps, trace.start + (index + 1) * span - 1e-6))
        values = [value for value in trace.values[column][first:last] if value is not None]
        if not values:
            found.append((" ", ""))
            continue
        below = sum(value < threshold for value in values)
        colour = "green" if below == len(values) else "yellow" if below else ""
        part = (fmean(values) - low) / (high - low) if high > low else 0.0
        found.append((BLOCKS[min(len(BLOCKS) - 1, int(part * len(BLOCKS)))], colour))
    return found


def show(path: Path, unit: str, threshold: float, chosen: list[str], width: int) -> int:
    """Run `curtail trace show`; returns the exit code.

    Args: width: width of the plot in characters; 0: the terminal's.
    Raises: UsageError, NotFound, DataError.
    """
    from rich.console import Console
    from rich.text import Text

    trace = load_trace(path, unit, chosen or None)
    console = Console(highlight=False, soft_wrap=True)
    known = [value for column in trace.values.values() for value in column if value is not None]
    if not known:
        raise UsageError(f"{path} has no value in {', '.join(trace.values)}", "choose other columns with --region")
    low, high = min(known), max(known)
    margin = max(len(name) for name in trace.values) + 2
    width = width or max(20, min(200, console.width - margin))
    hours = (trace.end - trace.start) / 3600.0
    console.print(
        f"{trace.name}: {utc_minute(trace.start)} to {utc_minute(trace.end)}, {hours:.2f} h, every {trace.period:.0f} s"
    )
    console.print(
        f"{BLOCKS[0]} {low:.0f} to {BLOCKS[-1]} {high:.0f} g/kWh; green: below {threshold:g}, yellow: in part"
    )
    for name in trace.values:
        line = Text(name.ljust(margin))
        for block, colour in blocks(trace, name, width, threshold, low, high):
            line.append(block, style=colour)
        console.print(line)
    console.print(" " * margin + _axis(trace, width))
    for name in trace.values:
        _print_windows(console.print, trace, name, threshold)
    return 0


def _axis(trace: Trace, width: int) -> str:
    start, stop = utc_minute(trace.start), utc_minute(trace.end)
    return start + "  " + stop.rjust(width - len(start) - 2)


def _print_windows(say: Callable[[str], None], trace: Trace, name: str, threshold: float) -> None:
    spans = windows(trace, name, threshold)
    total = sum(span.stop - span.start for span in spans)
    share = 100.0 * total / (trace.end - trace.start)
    gaps = sum(value is None for value in trace.values[name])
    unknown = f"; {gaps} values unknown" if gaps else ""
    say(f"{name}: {len(spans)} windows below {threshold:g} g/kWh, {total / 3600:.2f} h, {share:.1f} %{unknown}")
    for span in spans[:MOST_WINDOWS]:
        minutes = (span.stop - span.start) / 60.0
        say(
            f"  {utc_minute(span.start)} to {utc_minute(span.stop)}  {minutes:7.0f} min"
            f"  mean {span.mean:5.1f}, highest {span.highest:5.1f} g/kWh"
        )
    if len(spans) > MOST_WINDOWS:
        say(f"  and {len(spans) - MOST_WINDOWS} more")
