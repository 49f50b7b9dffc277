"""The planner's figures on a recorded trace, and its speed on an invented year.

    python benchmarks/planner.py [--trace mci.csv]

The trace is the 18 hours of exalsius/curtail-llm (`evaluation/mci.csv`, g/kWh); without it
only the year is played. The year is invented: in each of ten regions the intensity falls to
20 to 100 g/kWh around a noon that differs by region, on days that a seeded draw calls clear,
and lies at 350 to 650 else; 5-minute values with some noise. Wall time is of this process, after its
imports, the file read beforehand.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import replace
from pathlib import Path

from curtail.commands.simulate.run import Options, simulate
from curtail.grid.trace import Trace, load_trace

PERIOD = 300.0
DAY = 288
BASE = Options(
    Path(), "g/kWh", ("CAISO_NORTH", "SPP_TX", "NEM_SA"), work_site_seconds=64025, power_train_w=2024, power_idle_w=468,
    forecast="perfect",
)  # fmt: skip
ROWS = [
    ("as soon as possible, perfect forecast", BASE),
    ("the same, forecast misses one slot at every end", replace(BASE, forecast_miss_s=300)),
    ("the same, reading misses the slot too", replace(BASE, forecast_miss_s=300, reading_miss_s=300)),
    ("that, leaving 300 s earlier", replace(BASE, forecast_miss_s=300, reading_miss_s=300, leave_lead_s=315)),
    ("loading at training power", replace(BASE, power_load_w=2024)),
    ("no forecast, no dwell", replace(BASE, forecast="none", enter_dwell_s=0)),
    ("no forecast, dwell 300 s", replace(BASE, forecast="none")),
    ("no forecast, signal 300 s old, no dwell", replace(BASE, forecast="none", signal_delay_s=300, enter_dwell_s=0)),
    ("no forecast, signal 300 s old, dwell 300 s", replace(BASE, forecast="none", signal_delay_s=300)),
    ("deadline 14.6 h", replace(BASE, deadline_h=14.6)),
    ("deadline 14.6 h, safety 1", replace(BASE, deadline_h=14.6, safety=1.0)),
    ("deadline 16 h", replace(BASE, deadline_h=16)),
    ("deadline 16 h, safety 1", replace(BASE, deadline_h=16, safety=1.0)),
    ("deadline 14.6 h, load 120 s, sync 60 s", replace(BASE, deadline_h=14.6, load_s=120, sync_s=60)),
    ("machines off while paused", replace(BASE, standing_idle_w=0)),
]


def invented_year(regions: int = 10, days: int = 365, seed: int = 1) -> Trace:
    """A year of 5-minute values for `regions` regions; equal seeds give equal traces."""
    rng = random.Random(seed)
    stamps = tuple(1767225600.0 + PERIOD * index for index in range(days * DAY))
    values: dict[str, tuple[float | None, ...]] = {}
    for number in range(regions):
        column: list[float | None] = []
        for _ in range(days):
            clear, noise = rng.random() < 0.6, 0.0
            for slot in range(DAY):
                sun = math.sin(2 * math.pi * (slot / DAY + number / regions))
                noise = 0.8 * noise + rng.uniform(-1, 1)
                curtailed = clear and sun > 0.6
                middle, reach = (200.0 * (1.1 - sun), 5.0) if curtailed else (500.0, 50.0)
                column.append(max(0.0, round(middle + reach * noise, 3)))
        values[f"R{number}"] = tuple(column)
    return Trace("year", stamps, values, PERIOD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--days", type=int, default=365)
    arguments = parser.parse_args()
    if arguments.trace is not None:
        trace = load_trace(arguments.trace, "g/kWh", BASE.regions)
        print("| run | h | kWh | kg | curtailed % | dirty s | starts | oracle kg | reserved kg | wall s |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for name, options in ROWS:
            begun = time.perf_counter()
            found, _ = simulate(options, trace, options.forecast)
            wall = time.perf_counter() - begun
            print(
                f"| {name} | {found['runtime_h']:.3f} | {found['energy_kwh']:.2f} | {found['kg_attributed']:.4f} "
                f"| {found['curtailed_energy_pct']:.2f} | {found['dirty_train_s']:.0f} | {found['starts']} "
                f"| {found['oracle_kg']:.3f} | {found['kg_reserved']:.3f} | {wall:.3f} |"
            )
    year = invented_year(days=arguments.days)
    wide = replace(BASE, regions=tuple(year.values), work_site_seconds=1e12)
    span = year.end - year.start
    cases = [
        ("no forecast", replace(wide, forecast="none")),
        ("perfect forecast", wide),
        (
            "perfect forecast, deadline at the end of the trace",
            replace(wide, work_site_seconds=2e7 * arguments.days / 365, deadline_h=span / 3600),
        ),
    ]
    print(
        "\n| the invented year, ten regions | wall s | processor s | times real time | starts | done |\n"
        "|---|---|---|---|---|---|"
    )
    for name, options in cases:
        begun, busy = time.perf_counter(), time.process_time()
        found, outcome = simulate(options, year, options.forecast)
        wall, busy = time.perf_counter() - begun, time.process_time() - busy
        played = outcome.finished - year.start
        print(
            f"| {name} | {wall:.1f} | {busy:.1f} | {played / wall:,.0f} | {found['starts']} | {found['complete']} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
