"""`simulate`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, Unit
from curtail.commands.program import app
from curtail.errors import UsageError


@app.command()
def simulate(
    trace: Annotated[Path, typer.Option(help="MCI trace, CSV with point_time and a column for each region.")],
    unit: Annotated[Unit, typer.Option(help="Unit of the trace's numbers, and of a forecast file's.")],
    regions: Annotated[str, typer.Option(help="Columns of the trace, A,B,C; one site in each.")],
    work_site_seconds: Annotated[float, typer.Option(help="Training to be done, in seconds of one site.")],
    power_train_w: Annotated[float, typer.Option(help="W of a site while it trains.")],
    power_idle_w: Annotated[float, typer.Option(help="W of a site while it loads, exchanges, holds or drains.")],
    threshold: Annotated[float, typer.Option(help="Sites train strictly below it, g/kWh.")] = 100.0,
    load_s: Annotated[float, typer.Option(help="Seconds from a start to the first step.")] = 100.0,
    stop_s: Annotated[float, typer.Option(help="Seconds from the last step to released GPUs.")] = 15.0,
    sync_s: Annotated[float, typer.Option(help="Seconds of exchange after a federated round.")] = 30.0,
    round_s: Annotated[float, typer.Option(help="Seconds of training in a federated round.")] = 600.0,
    power_load_w: Annotated[
        float | None, typer.Option(help="W while a site loads; by default --power-idle-w.", show_default=False)
    ] = None,
    standing_idle_w: Annotated[
        float | None, typer.Option(help="W of a paused site; by default --power-idle-w.", show_default=False)
    ] = None,
    forecast: Annotated[
        str, typer.Option(help="perfect: the trace's own future; none; or a CSV file like it.")
    ] = "none",
    signal_delay_s: Annotated[float, typer.Option(help="Seconds by which readings are late.")] = 0.0,
    forecast_miss_s: Annotated[float, typer.Option(help="Seconds by which the forecast sees windows end late.")] = 0.0,
    reading_miss_s: Annotated[float, typer.Option(help="Seconds by which readings see windows end late.")] = 0.0,
    deadline_h: Annotated[
        float | None,
        typer.Option(help="Hours in which the work is to be done, as cleanly as that allows.", show_default=False),
    ] = None,
    budget_kg: Annotated[
        float | None, typer.Option(help="kgCO2 to keep to, as fast as that allows.", show_default=False)
    ] = None,
    safety: Annotated[
        float | None,
        typer.Option(
            help="Factor on the work under a deadline; 1.01 with a perfect forecast, else 1.15.", show_default=False
        ),
    ] = None,
    enter_dwell_s: Annotated[
        float | None,
        typer.Option(help="Seconds below the threshold before a start; by default one period.", show_default=False),
    ] = None,
    leave_lead_s: Annotated[
        float, typer.Option(help="Seconds before a forecast end at which to leave; never below --stop-s.")
    ] = 0.0,
    min_window_s: Annotated[float, typer.Option(help="No forecast window shorter than this is begun.")] = 900.0,
    most_sites: Annotated[
        int | None,
        typer.Option(min=1, help="More sites than this are of no use; by default all are.", show_default=False),
    ] = None,
    pue: Annotated[float, typer.Option(help="Factor on all power, for the full boundary.")] = 1.0,
    embodied_g_per_site_h: Annotated[
        float, typer.Option(help="Share of a site's making, gCO2 for each hour, for the full boundary.")
    ] = 0.0,
    sweep: Annotated[
        str | None, typer.Option(help="Play it for each value, as threshold=50:150:10.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw it, to this file: .html, .svg or .png.", show_default=False),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Also list every change of a site, and why.")] = False,
    json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print the result as CSV.")] = False,
) -> int:
    """Plan a run: when would it finish, at what kg, with which sites.

    Plays a recorded trace against modelled sites, with the controller's own policy and ledger.
    """
    if json and csv:
        raise UsageError("--json and --csv do not go together", "give one of them")
    from curtail.commands.simulate.run import Options, run_simulate

    options = Options(
        trace=trace, unit=unit.value, regions=tuple(name.strip() for name in regions.split(",") if name.strip()),
        work_site_seconds=work_site_seconds, power_train_w=power_train_w, power_idle_w=power_idle_w,
        threshold=threshold, load_s=load_s, stop_s=stop_s, sync_s=sync_s, round_s=round_s, power_load_w=power_load_w,
        standing_idle_w=standing_idle_w, forecast=forecast, signal_delay_s=signal_delay_s,
        forecast_miss_s=forecast_miss_s, reading_miss_s=reading_miss_s, deadline_h=deadline_h, budget_kg=budget_kg,
        safety=safety, enter_dwell_s=enter_dwell_s, leave_lead_s=leave_lead_s, min_window_s=min_window_s,
        most_sites=most_sites, pue=pue, embodied_g_per_site_h=embodied_g_per_site_h,
    )  # fmt: skip
    return run_simulate(options, sweep, "json" if json else "csv" if csv else "text", explain, plot)
