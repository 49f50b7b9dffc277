"""Options of `curtail simulate`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, Unit
from curtail.commands.program import app
from curtail.errors import UsageError

PowerLoad = Annotated[
    float | None,
    typer.Option(help="Power of a site while it loads, in W; default: --power-idle-w.", show_default=False),
]
StandingIdle = Annotated[
    float | None, typer.Option(help="Power of a paused site, in W; default: --power-idle-w.", show_default=False)
]
Deadline = Annotated[
    float | None,
    typer.Option(help="Finish within this many hours, with as little CO2 as possible.", show_default=False),
]
Budget = Annotated[
    float | None, typer.Option(help="Emit at most this many kgCO2, and finish as fast as possible.", show_default=False)
]
Safety = Annotated[
    float | None,
    typer.Option(
        help="Safety factor on the work under a deadline; default: 1.01 with a perfect forecast, otherwise 1.15.",
        show_default=False,
    ),
]
EnterDwell = Annotated[
    float | None,
    typer.Option(
        help="Seconds that the MCI must be below the threshold before a start; default: one period of the trace.",
        show_default=False,
    ),
]
LeaveLead = Annotated[
    float, typer.Option(help="Stop this many seconds before the forecast end of a window; at least --stop-s.")
]
MaxSites = Annotated[
    int | None,
    typer.Option("--max-sites", "--most-sites", min=1, help="Train at most this many sites at once (default: no limit).", show_default=False),
]
Sweep = Annotated[
    str | None,
    typer.Option(
        help="Repeat the simulation for each value of one option, e.g. threshold=50:150:10.", show_default=False
    ),
]
Plot = Annotated[
    Path | None, typer.Option(help="Also draw charts to this file: .html, .svg or .png.", show_default=False)
]


@app.command()
def simulate(
    trace: Annotated[Path, typer.Option(help="MCI trace: CSV with point_time and one column per region.")],
    unit: Annotated[Unit, typer.Option(help="Unit of the values in the trace, and in the forecast file.")],
    regions: Annotated[str, typer.Option(help="Columns of the trace, e.g. A,B,C; one site per region.")],
    work_site_seconds: Annotated[float, typer.Option(help="Work to do, in seconds of training of one site.")],
    power_train_w: Annotated[float, typer.Option(help="Power of a site while it trains, in W.")],
    power_idle_w: Annotated[
        float, typer.Option(help="Power of a site while it loads, exchanges, holds or drains, in W.")
    ],
    threshold: Annotated[float, typer.Option(help="Sites train strictly below this MCI, in g/kWh.")] = 100.0,
    load_s: Annotated[float, typer.Option(help="Seconds from the start of a job to its first step.")] = 100.0,
    stop_s: Annotated[float, typer.Option(help="Seconds from the last step to released GPUs.")] = 15.0,
    sync_s: Annotated[float, typer.Option(help="Seconds of exchange after a federated round.")] = 30.0,
    round_s: Annotated[float, typer.Option(help="Seconds of training in a federated round.")] = 600.0,
    power_load_w: PowerLoad = None,
    standing_idle_w: StandingIdle = None,
    forecast: Annotated[
        str, typer.Option(help="perfect: the trace itself; none; or a CSV file in the format of the trace.")
    ] = "none",
    signal_delay_s: Annotated[float, typer.Option(help="Delay of readings, in seconds.")] = 0.0,
    forecast_miss_s: Annotated[float, typer.Option(help="Seconds by which forecasts put window ends too late.")] = 0.0,
    reading_miss_s: Annotated[float, typer.Option(help="Seconds by which readings show window ends too late.")] = 0.0,
    deadline_h: Deadline = None,
    budget_kg: Budget = None,
    safety: Safety = None,
    enter_dwell_s: EnterDwell = None,
    leave_lead_s: LeaveLead = 0.0,
    min_window_s: Annotated[float, typer.Option(help="Minimum length of a forecast window to start in.")] = 900.0,
    max_sites: MaxSites = None,
    pue: Annotated[float, typer.Option(help="Factor on all power, for the full boundary.")] = 1.0,
    embodied_g_per_site_h: Annotated[
        float, typer.Option(help="Embodied carbon in gCO2 per site and hour, for the full boundary.")
    ] = 0.0,
    sweep: Sweep = None,
    plot: Plot = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also list every change of a site with its reason.")
    ] = False,
    json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> int:
    """Simulate a run: when it would finish, how much CO2 it would emit, which sites it would use.

    Replays a recorded trace on modelled sites, with the controller's own policy and ledger.
    """
    if json and csv:
        raise UsageError("--json and --csv cannot be combined", "give one of them")
    from curtail.commands.simulate.run import Options, run_simulate

    options = Options(
        trace=trace, unit=unit.value, regions=tuple(name.strip() for name in regions.split(",") if name.strip()),
        work_site_seconds=work_site_seconds, power_train_w=power_train_w, power_idle_w=power_idle_w,
        threshold=threshold, load_s=load_s, stop_s=stop_s, sync_s=sync_s, round_s=round_s, power_load_w=power_load_w,
        standing_idle_w=standing_idle_w, forecast=forecast, signal_delay_s=signal_delay_s,
        forecast_miss_s=forecast_miss_s, reading_miss_s=reading_miss_s, deadline_h=deadline_h, budget_kg=budget_kg,
        safety=safety, enter_dwell_s=enter_dwell_s, leave_lead_s=leave_lead_s, min_window_s=min_window_s,
        max_sites=max_sites, pue=pue, embodied_g_per_site_h=embodied_g_per_site_h,
    )  # fmt: skip
    return run_simulate(options, sweep, "json" if json else "csv" if csv else "text", explain, plot)
