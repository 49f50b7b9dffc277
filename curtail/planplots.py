"""The pictures of `curtail simulate --plot`: a plan over time, or a sweep over its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from controller.accounts import ATTRIBUTED
from controller.signals.trace import Trace
from curtail.charts import Line, Mark, Signal, energy_chart, phase_keys, signal_chart, time_chart, value_chart
from curtail.picture import Picture
from curtail.plancourse import Course, held_curve, is_dense, shown_windows
from curtail.svg import WIDTH, Point, thin

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
    """MCI and windows with the phases of each site, cumulative kg beside the lower bound, energy by phase.

    Args: end, deadline: in the trace's time; both are marked.
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
    """Cumulative kg: attributed beside the bound, and beside the reserved, which may be many times as much."""
    attributed = Line("kg", "attributed", course.growth(standing=False))
    bound = Line("oracle", ORACLE, oracle)
    reserved = Line("reserved", "reserved: with standing by", course.growth(standing=True))
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
    """kg, hours and curtailed share over the swept value; plans that did not finish have hollow dots."""

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
            [line("reserved", "reserved: with standing by", "kg_reserved")], hollow,
        ),
        value_chart("sweep-hours", "hours to the end" + left, "h", name, [line("loss", "", "runtime_h")], hollow),
        value_chart(
            "sweep-curtailed", "share of the energy that was curtailed", "%", name,
            [line("loss", "", "curtailed_energy_pct")], hollow,
        ),
    ]  # fmt: skip
    return [picture for picture in found if picture is not None]
