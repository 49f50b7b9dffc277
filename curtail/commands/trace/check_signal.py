"""`curtail signal check`: queries the signal of a run once and shows whether sites could train.

The source of the run file is queried once per region, as the controller does, and the
answers are judged by the run's threshold and maximum age. A trace is judged at its
beginning, where a new run would begin. Average intensities, if a source is configured,
are shown with a label and never judged.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from controller.signals.answer import SignalError
from controller.signals.select import Signal, Surroundings, open_averages, open_signal
from curtail.config import RunConfig, load_config
from curtail.grid.reading import unusable
from curtail.policy.rules import RegionRule, Window, judge, remember
from curtail.system.clock import SystemClock

UNIT = "gCO2/kWh"


@dataclass(frozen=True, slots=True)
class Row:
    """Result for one region."""

    region: str
    source: str
    basis: str  # marginal, or average
    value: float | None
    unit: str
    age_s: float | None
    verdict: str  # curtailed, not curtailed, unknown; for averages: accounts only
    reason: str
    forecast_h: float | None = None  # forecast horizon


def check(config: RunConfig, around: Surroundings) -> list[Row]:
    """One row per region, then one per zone of averages. Raises: see `open_signal`."""
    signal = open_signal(config, around)
    if signal.polled is not None:
        signal.polled.poll()
    now = around.clock.wall() if signal.trace is None else signal.trace.start
    return [_row(config, signal, region, now) for region in config.regions] + _averages(config, around)


def _row(config: RunConfig, signal: Signal, region: str, now: float) -> Row:
    policy = config.policy
    reading = signal.source.reading(region, now)
    forecast = signal.source.forecast(region, now, config.signal.horizon)
    # no dwell time: a single query does not know the past
    rule = RegionRule(region, config.threshold(region), policy.max_reading_age, 0.0, policy.leave_lead)
    verdict = judge(rule, remember(Window(), rule, reading, now), reading, now, forecast)
    known = unusable(reading, now, rule.max_age) is None
    word = "curtailed" if verdict.curtailed else "not curtailed" if known else "unknown"
    age = None if reading.mci is None else now - reading.point_time
    reach = None
    if forecast is not None and forecast.points:
        reach = (min(forecast.known_until, forecast.points[-1][0]) - now) / 3600.0
    reason = verdict.reason.partition("; next attempt")[0]  # a single query makes no further attempt
    return Row(region, reading.source, "marginal", reading.mci, UNIT, age, word, reason, reach)


def _averages(config: RunConfig, around: Surroundings) -> list[Row]:
    source = open_averages(config, around)
    rows = []
    for region, section in config.regions.items():
        if source is None or not section.zone:
            continue
        name = f"{source.name} {section.zone}"
        try:
            found = source.latest(section.zone)
        except SignalError as error:
            rows.append(Row(region, name, "average", None, "gCO2e/kWh", None, "accounts only", str(error)))
            continue
        age = around.clock.wall() - found.at
        words = "estimated by its source" if found.estimated else "measured"
        rows.append(Row(region, name, "average", found.g_per_kwh, "gCO2e/kWh", age, "accounts only", words))
    return rows


def run_check(run_file: Path, as_json: bool) -> int:
    """Run `curtail signal check`; returns 1 if any region is unknown, else 0."""
    logging.getLogger("curtail").addHandler(logging.NullHandler())  # the table has all messages
    rows = check(load_config(run_file), Surroundings(SystemClock(), os.environ))
    print(json.dumps([asdict(row) for row in rows], indent=2) if as_json else as_table(rows))
    unknown = [row.region for row in rows if row.verdict == "unknown"]
    if unknown:
        print(f"no site would train in these regions, whose MCI is unknown: {', '.join(unknown)}", file=sys.stderr)
    return 1 if unknown else 0


def as_table(rows: Sequence[Row]) -> str:
    """The rows as a text table."""
    heads = ("region", "source", "basis", "value", "unit", "age", "verdict", "reason")
    cells: list[tuple[str, ...]] = [heads]
    for row in rows:
        value = "-" if row.value is None else f"{row.value:.1f}"
        age = "-" if row.age_s is None else f"{row.age_s:.0f} s"
        cells.append((row.region, row.source, row.basis, value, row.unit, age, row.verdict, row.reason))
    widths = [max(len(line[index]) for line in cells) for index in range(len(heads) - 1)]
    lines = ["  ".join([*(c.ljust(w) for c, w in zip(line[:-1], widths, strict=True)), line[-1]]) for line in cells]
    return "\n".join(lines)
