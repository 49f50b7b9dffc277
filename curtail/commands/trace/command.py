"""Options of `curtail trace synth|import|show` and `curtail signal check`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, Unit, check_name
from curtail.commands.program import signal_app, trace_app
from curtail.errors import UsageError


@trace_app.command("synth")
def trace_synth(
    out: Annotated[Path, typer.Option(help="The CSV file to write, in g/kWh.")],
    region: Annotated[
        list[str],
        typer.Option(
            help="Name of a region; repeatable. With --days NAME:KIND:HOURS (hours from UTC), e.g. WEST:solar:-8."
        ),
    ],
    segment: Annotated[
        list[str] | None,
        typer.Option(
            help="SECONDS:REGION+REGION: time for which these regions are curtailed; SECONDS: (without a region) for"
            " none. Repeatable, in time order.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        float | None,
        typer.Option(
            help="Instead of --segment: number of days to generate with a model of grids.", show_default=False
        ),
    ] = None,
    period: Annotated[int, typer.Option(min=1, help="Seconds between readings.")] = 300,
    start: Annotated[str, typer.Option(help="Time of the first reading, ISO 8601.")] = "2026-03-01T10:00:00Z",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 1,
) -> int:
    """Generate a synthetic trace from given segments, or with a model of sun, wind and seasons."""
    for name in region:
        check_name("region", name.partition(":")[0] if days is not None else name)
    if (days is None) == (not segment):
        raise UsageError("a synthetic trace needs either --segment or --days", "give one of them")
    if days is not None:
        from curtail.commands.trace.synth_year import write_year

        return write_year(out, region, days, period, start, seed)
    from curtail.commands.trace.synth import write_course

    return write_course(out, region, segment or [], period, start, seed)


@trace_app.command("import")
def trace_import(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="CSV files: point_time and one column per region; WattTime's point_time,value; or seconds and columns."
        ),
    ],
    unit: Annotated[Unit, typer.Option(help="Unit of the values in the files.")],
    out: Annotated[Path, typer.Option(help="The CSV file to write, in g/kWh.")],
    region: Annotated[
        list[str] | None,
        typer.Option(help="NAME=COLUMN: select a column and rename it; repeatable. Default: all.", show_default=False),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="For files in seconds: time of second 0, ISO 8601 with offset.", show_default=False),
    ] = None,
) -> int:
    """Convert MCI traces from other programs to one trace file."""
    from curtail.commands.trace.importer import import_traces

    for text in region or []:
        check_name("region", text.partition("=")[0])
    return import_traces(files, unit.value, out, start, region or [])


@trace_app.command("show")
def trace_show(
    file: Annotated[Path, typer.Argument(help="MCI trace: CSV with point_time and one column per region.")],
    unit: Annotated[Unit, typer.Option(help="Unit of its values.")],
    threshold: Annotated[float, typer.Option(help="Windows are strictly below this MCI, in g/kWh.")] = 100.0,
    region: Annotated[
        list[str] | None, typer.Option(help="Column to show; repeatable. Default: all.", show_default=False)
    ] = None,
    width: Annotated[
        int, typer.Option(min=0, max=10000, help="Width of the plot in characters; 0: the terminal's.")
    ] = 0,
) -> int:
    """Plot a trace in the terminal and list its windows."""
    from curtail.commands.trace.show import show

    return show(file, unit.value, threshold, region or [], width)


@signal_app.command("check")
def signal_check(
    run_file: Annotated[Path, typer.Argument(help="Run file; its section [signal] names the source.")],
    json: AsJson = False,
) -> int:
    """Query the signal of a run once: source, value, unit, age and verdict of every region.

    The exit code is 1 if the MCI of any region is unknown.
    """
    from curtail.commands.trace.check_signal import run_check

    return run_check(run_file, json)
