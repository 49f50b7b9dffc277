"""Charts of `curtail simulate --plot`: a simulated run over time, or a sweep over its values.

The ending of the file name selects the format: HTML, SVG or PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curtail import __version__
from curtail.carbon.accounting import ATTRIBUTED
from curtail.commands.simulate.timeline import Course, held_curve, is_dense, shown_windows
from curtail.errors import UsageError
from curtail.grid.trace import Trace
from curtail.plotting.charts import Line, Mark, Signal, energy_chart, phase_keys, signal_chart, time_chart, value_chart
from curtail.plotting.figure import Picture, alone, legends_once
from curtail.plotting.html import document, pair
from curtail.plotting.png import check_png, to_png
from curtail.plotting.svg import WIDTH, Point, text, thin
from curtail.system.disk import Disk, SystemDisk

ORACLE = "the lower bound"
KEYS = (("window", "curtailed"), ("line:threshold", "threshold"), *phase_keys(ATTRIBUTED))


def plan_pictures(
    trace: Trace,
    regions: Sequence[str],
    threshold: float,
    course: Course,
    oracle: Sequence[Point],
    end: Mark,
    deadline: float | None,
) -> list[Picture]:
    """Charts of one run: MCI, windows and phases; cumulative kg with the lower bound; energy by phase.

    Args: end, deadline: in trace time; both are marked.
    """
    stop = min(trace.end, max(end.at, deadline or end.at))
    marks = [end]
    if deadline is not None:
        marks.append(Mark(min(deadline, stop), "deadline"))
    signals = [_signal(trace, region, threshold, course, stop, marks) for region in regions]
    return [*signals, *growth(course, oracle, (trace.start, stop)), *energy(course)]


def _signal(trace: Trace, region: str, threshold: float, course: Course, stop: float, marks: Sequence[Mark]) -> Picture:
    curve = held_curve(trace, region, stop)
    values = [value for _, value in curve if value is not None]
    known = Signal(
        region, thin(curve), is_dense(curve), shown_windows(trace, region, threshold, trace.start, stop), threshold,
        min(values, default=None), max(values, default=None),
    )  # fmt: skip
    spans = [(a, b, f"phase-{phase}", f"{region} {phase}") for a, b, phase in course.lane(region)]
    return signal_chart(known, trace.start, stop, [("phase", spans)], KEYS, marks)


def growth(course: Course, oracle: Sequence[Point], span: tuple[float, float]) -> list[Picture]:
    """Cumulative kg: attributed with the lower bound, and attributed with reserved (often many times as much)."""
    attributed = Line("kg", "attributed", course.growth(standing=False))
    bound = Line("oracle", ORACLE, oracle)
    reserved = Line("reserved", "reserved: with standing energy", course.growth(standing=True))
    found = [
        time_chart("carbon", "cumulative kgCO2, attributed", "kgCO2", [bound, attributed], span, WIDTH / 2),
        time_chart("reserved", "cumulative kgCO2, reserved", "kgCO2", [reserved, attributed], span, WIDTH / 2),
    ]
    return [picture for picture in found if picture is not None]


def energy(course: Course) -> list[Picture]:
    """kWh of each site by phase."""
    picture = energy_chart(list(course.kwh.items()))
    return [] if picture is None else [picture]


def sweep_pictures(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """kg, hours and curtailed share over the swept value; runs that did not finish have hollow dots."""

    def line(kind: str, words: str, key: str) -> Line:
        return Line(kind, words, [(float(row[name]), row[key]) for row in rows])

    hollow = frozenset(float(row[name]) for row in rows if not row["complete"])
    left = " (hollow: not finished within the trace)" if hollow else ""
    found = [
        value_chart(
            "sweep-kg", "kgCO2, attributed" + left, "kgCO2", name,
            [line("kg", "attributed", "kg_attributed"), line("oracle", ORACLE, "oracle_kg")], hollow,
        ),
        value_chart(
            "sweep-reserved", "kgCO2, reserved" + left, "kgCO2", name,
            [line("reserved", "reserved: with standing energy", "kg_reserved")], hollow,
        ),
        value_chart("sweep-hours", "hours to finish" + left, "h", name, [line("loss", "", "runtime_h")], hollow),
        value_chart(
            "sweep-curtailed", "share of the energy that was curtailed", "%", name,
            [line("loss", "", "curtailed_energy_pct")], hollow,
        ),
    ]  # fmt: skip
    return [picture for picture in found if picture is not None]


ENDINGS = (".html", ".svg", ".png")


def check_plot(path: Path) -> None:
    """Check that the file can be written, before anything is computed.

    Raises: UsageError: unknown ending of the name. CurtailError: PNG is not available here.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(
            f"the format of the plot {path.name!r} is unknown", f"use a file name ending in {', '.join(ENDINGS)}"
        )
    if path.suffix.lower() == ".png":
        check_png()


def write_plot(path: Path, title: str, told: str, pictures: Sequence[Picture], disk: Disk | None = None) -> None:
    """Write the pictures to `path`.

    Args: title: in one line; told: the result as text, for an HTML page.
    Raises: UsageError: unknown format. CurtailError: PNG is not available, or the file cannot be written.
    """
    check_plot(path)
    ending = path.suffix.lower()
    if ending == ".html":
        data = page(title, told, pictures).encode()
    elif ending == ".svg":
        data = alone(pictures, title).encode()
    else:
        data = to_png(alone(pictures, title))
    (disk or SystemDisk()).replace("PLOT", path, data)


def page(title: str, told: str, pictures: Sequence[Picture]) -> str:
    """The HTML page; two consecutive half-width pictures are placed side by side."""
    parts = [f"<h1>{text(title)}</h1>", f"<pre>{text(told)}</pre>"]
    waiting: list[Picture] = []
    for picture in legends_once(pictures):
        if picture.width < WIDTH:
            waiting.append(picture)
            if len(waiting) == 2:
                parts.append(pair([_section(one) for one in waiting]))
                waiting = []
        else:
            parts.append(_section(picture))
    parts += [_section(picture) for picture in waiting]
    return document(title, parts, __version__)


def _section(picture: Picture) -> str:
    return f"<h3>{text(picture.title)}</h3>{picture.inline()}"
