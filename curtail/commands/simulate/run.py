"""Runs `curtail simulate`: options to scenario, simulation, and results as text, JSON or CSV.

`--sweep` repeats the simulation for each value of one option. The model and the
boundary of each figure are described in docs/guides/planner.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curtail.carbon.accounting import Entry
from curtail.carbon.lower_bound import bound_kg
from curtail.commands.simulate.figures import check_plot, plan_pictures, sweep_pictures, write_plot
from curtail.commands.simulate.text import as_csv, as_table, as_text
from curtail.commands.simulate.timeline import Course, oracle_course
from curtail.errors import UsageError
from curtail.grid.trace import Trace, load_trace
from curtail.planner.observed_signal import sight
from curtail.planner.planner import Outcome, Planner, Scenario
from curtail.plotting.charts import Mark
from curtail.plotting.figure import Picture
from curtail.policy.costs import SHORTEST_WINDOW_S, SiteCosts
from curtail.policy.decision import Goal
from curtail.policy.price import Rounds, safety_factor
from curtail.policy.rules import RegionRule


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command; seconds, W, g/kWh."""

    trace: Path
    unit: str
    regions: tuple[str, ...]
    work_site_seconds: float
    power_train_w: float
    power_idle_w: float
    threshold: float = 100.0
    load_s: float = 100.0
    stop_s: float = 15.0
    sync_s: float = 30.0
    round_s: float = 600.0
    power_load_w: float | None = None  # None: as `power_idle_w`
    standing_idle_w: float | None = None  # None: as `power_idle_w`
    forecast: str = "none"  # perfect, none, or a file
    signal_delay_s: float = 0.0
    forecast_miss_s: float = 0.0
    reading_miss_s: float = 0.0
    deadline_h: float | None = None
    budget_kg: float | None = None
    safety: float | None = None  # None: 1.01 with a perfect forecast, else 1.15
    enter_dwell_s: float | None = None  # None: one period of the trace
    leave_lead_s: float = 0.0
    min_window_s: float = SHORTEST_WINDOW_S
    max_sites: int | None = None
    pue: float = 1.0
    embodied_g_per_site_h: float = 0.0


SWEEPS = {
    name: name.replace("-", "_")
    for name in (
        "threshold", "work-site-seconds", "power-train-w", "power-idle-w", "power-load-w", "standing-idle-w", "load-s",
        "stop-s", "sync-s", "round-s", "signal-delay-s", "forecast-miss-s", "reading-miss-s", "deadline-h", "budget-kg",
        "safety", "enter-dwell-s", "leave-lead-s", "min-window-s", "pue", "embodied-g-per-site-h",
    )
}  # fmt: skip
"""Options that can be swept, and their fields."""


def simulate(
    options: Options, trace: Trace, expected: str | Trace, note: Callable[[Entry], None] | None = None
) -> tuple[dict[str, Any], Outcome]:
    """One run of the planner; returns the figures of the command's JSON, and the outcome.

    Args: expected: the forecast: `perfect`, `none`, or another trace. note: called with every row of the ledger.
    """
    outcome = Planner(_scenario(options, trace, expected), note).run()
    totals, hours = outcome.totals, (outcome.finished - trace.start) / 3600.0
    reserved = totals.kg_attributed + totals.kg_standing
    bound_s = _bound_s(options, trace, outcome)
    oracle = bound_kg(trace, options.regions, bound_s, options.threshold, outcome.done, options.power_train_w)
    embodied = options.embodied_g_per_site_h / 1000.0 * hours * len(options.regions)
    found: dict[str, Any] = {
        "complete": outcome.complete,
        "runtime_h": hours,
        "work_done_site_seconds": outcome.done,
        "work_left_site_seconds": options.work_site_seconds - outcome.done,
        "energy_kwh": totals.attributed_kwh,
        "standing_kwh": totals.standing_kwh,
        "unknown_kwh": totals.unknown_kwh,
        "kg_attributed": totals.kg_attributed,
        "kg_reserved": reserved,
        "kg_full": reserved * options.pue + embodied,
        "curtailed_energy_pct": totals.curtailed_pct,
        "dirty_train_s": sum(site.dirty_train_s for site in outcome.sites.values()),
        "starts": sum(site.starts for site in outcome.sites.values()),
        "oracle_kg": oracle,
        "deadline_met": None if options.deadline_h is None else outcome.complete and hours <= options.deadline_h,
        "sites": {
            region: {
                "train_s": site.totals.train_seconds,
                "kg": site.totals.kg_attributed,
                "kwh": site.totals.attributed_kwh,
                "starts": site.starts,
                "dirty_train_s": site.dirty_train_s,
            }
            for region, site in outcome.sites.items()
        },
    }
    return found, outcome


def _bound_s(options: Options, trace: Trace, outcome: Outcome) -> float:
    """Seconds available to the lower bound: the deadline, or the run's own time if that is longer."""
    return max(outcome.finished - trace.start, (options.deadline_h or 0.0) * 3600.0)


def _scenario(options: Options, trace: Trace, expected: str | Trace) -> Scenario:
    standing = options.power_idle_w if options.standing_idle_w is None else options.standing_idle_w
    dwell = trace.period if options.enter_dwell_s is None else options.enter_dwell_s
    safety = safety_factor(options.safety, perfect=expected == "perfect")
    costs = SiteCosts(
        options.load_s, options.stop_s, options.sync_s, options.power_train_w, options.power_idle_w, standing
    )
    sights, rules = {}, {}
    for region in options.regions:
        sights[region] = sight(
            trace, region, options.threshold, options.signal_delay_s, expected,
            options.forecast_miss_s, options.reading_miss_s,
        )  # fmt: skip
        # a delayed source is stale only if it is later than its usual delay
        rules[region] = RegionRule(
            region, options.threshold, 2 * trace.period + options.signal_delay_s, dwell, options.leave_lead_s,
            trace.period + options.signal_delay_s, options.min_window_s,
        )  # fmt: skip
    deadline = None if options.deadline_h is None else trace.start + options.deadline_h * 3600.0
    rounds = Rounds(options.round_s, options.sync_s)
    return Scenario(
        trace=trace, sights=sights, rules=rules, costs=dict.fromkeys(options.regions, costs),
        load_w=options.power_idle_w if options.power_load_w is None else options.power_load_w,
        work=options.work_site_seconds,
        goal=Goal(None, deadline, options.budget_kg, safety, options.max_sites, rounds),
    )  # fmt: skip


def run_simulate(options: Options, sweep: str | None, form: str, explain: bool, plot: Path | None = None) -> int:
    """Run `curtail simulate`; returns the exit code.

    Args: plot: also draw charts to this file.
    Raises: UsageError, NotFound, DataError, DiskError.
    """
    _check(options)
    if plot is not None:
        check_plot(plot)
    trace = load_trace(options.trace, options.unit, options.regions)
    expected: str | Trace = options.forecast
    if options.forecast not in ("perfect", "none"):
        expected = load_trace(Path(options.forecast), options.unit, options.regions)
    if sweep is not None:
        name, values = parse_sweep(sweep)
        rows = []
        for value in values:
            changed = _with(options, name, value)
            _check(changed)
            rows.append({name: value, **simulate(changed, trace, expected)[0]})
        print(json.dumps(rows) if form == "json" else as_csv(rows) if form == "csv" else as_table(name, rows))
        if plot is not None:
            _write(plot, f"{trace.name}: sweep over {name}", as_table(name, rows), sweep_pictures(name, rows))
        return 0
    course = Course(trace.start, trace.period) if plot is not None else None
    found, outcome = simulate(options, trace, expected, None if course is None else course.note)
    text = as_text(found, outcome, trace.start, explain)
    if plot is not None and course is not None:
        _write(plot, f"{trace.name}: simulated run", text, _pictures(options, trace, course, outcome))
    print(json.dumps(found) if form == "json" else as_csv([found]) if form == "csv" else text)
    return 0


def _pictures(options: Options, trace: Trace, course: Course, outcome: Outcome) -> list[Picture]:
    deadline = None if options.deadline_h is None else trace.start + options.deadline_h * 3600.0
    bound = (trace, options.regions, _bound_s(options, trace, outcome))
    oracle = oracle_course(*bound, options.threshold, outcome.done, options.power_train_w)
    oracle = oracle or oracle_course(*bound, None, outcome.done, options.power_train_w)
    end = Mark(outcome.finished, "end of the run" if outcome.complete else "end of the trace")
    return plan_pictures(trace, options.regions, options.threshold, course, oracle, end, deadline)


def _write(plot: Path, title: str, told: str, pictures: list[Picture]) -> None:
    write_plot(plot, title, told, pictures)
    print(f"the plot is in {plot}", file=sys.stderr)


def _with(options: Options, name: str, value: float) -> Options:
    changes: dict[str, Any] = {SWEEPS[name]: value}
    return replace(options, **changes)


def parse_sweep(text: str) -> tuple[str, list[float]]:
    """Parse `NAME=FROM:TO:STEP` as the option and its values, including both ends.

    Raises: UsageError.
    """
    name, _, span = text.partition("=")
    try:
        first, last, step = (float(part) for part in span.split(":"))
    except ValueError:
        raise UsageError(f"{text!r} is not a valid sweep", "write it as threshold=50:150:10") from None
    if name not in SWEEPS:
        raise UsageError(f"{name!r} cannot be swept", f"use one of {', '.join(SWEEPS)}")
    count = (last - first) / step if 0 < step < float("inf") else -1.0
    if not 0 <= count <= 10_000:
        raise UsageError(
            f"the range {text!r} is empty or too long", "write FROM:TO:STEP, ascending, with at most 10,000 values"
        )
    return name, [round(first + step * index, 9) for index in range(int(count + 1e-9) + 1)]


def _check(options: Options) -> None:
    if not options.regions or len(set(options.regions)) != len(options.regions):
        raise UsageError("--regions must name at least one region, each only once", "write them as --regions A,B,C")
    if options.deadline_h is not None and options.budget_kg is not None:
        raise UsageError("--deadline-h and --budget-kg cannot be combined", "give one of them")
    for name, field in SWEEPS.items():
        value = getattr(options, field)
        low = 1.0 if name in ("pue", "safety", "round-s", "work-site-seconds") else 0.0
        low = float("-inf") if name == "threshold" else low
        if value is not None and not low <= value < float("inf"):
            raise UsageError(f"invalid value for --{name}: {value:g}", f"give a finite number of at least {low:g}")
