"""`trace` and `signal`: readings of the grid, recorded or live."""

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
        list[str], typer.Option(help="A region; give it once for each. With --days NAME:KIND:HOURS, as WEST:solar:-8.")
    ],
    segment: Annotated[
        list[str] | None,
        typer.Option(
            help="SECONDS:REGION+REGION, how long these are curtailed; SECONDS: for none. In order.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[
        float | None, typer.Option(help="Instead: so many days of a model of grids.", show_default=False)
    ] = None,
    period: Annotated[int, typer.Option(min=1, help="Seconds between readings.")] = 300,
    start: Annotated[str, typer.Option(help="First moment, ISO 8601.")] = "2026-03-01T10:00:00Z",
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal traces.")] = 1,
) -> int:
    """Write an invented trace: with a given course, or from a model with sun, wind and seasons."""
    for name in region:
        check_name("region", name.partition(":")[0] if days is not None else name)
    if (days is None) == (not segment):
        raise UsageError("an invented trace has a course or a model", "give --segment or --days, not both")
    if days is not None:
        from curtail.commands.trace.synth_year import write_year

        return write_year(out, region, days, period, start, seed)
    from curtail.commands.trace.synth import write_course

    return write_course(out, region, segment or [], period, start, seed)


@trace_app.command("import")
def trace_import(
    files: Annotated[
        list[Path],
        typer.Argument(help="CSV: point_time and columns; WattTime's point_time,value; or seconds and columns."),
    ],
    unit: Annotated[Unit, typer.Option(help="Unit of the files' numbers.")],
    out: Annotated[Path, typer.Option(help="The CSV file to write, in g/kWh.")],
    region: Annotated[
        list[str] | None,
        typer.Option(help="NAME=COLUMN, to choose and to rename; give it once for each.", show_default=False),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="Moment of second 0, ISO 8601 with offset; for files in seconds.", show_default=False),
    ] = None,
) -> int:
    """Bring MCI traces of other programs into one file that is read here."""
    from curtail.commands.trace.importer import import_traces

    for text in region or []:
        check_name("region", text.partition("=")[0])
    return import_traces(files, unit.value, out, start, region or [])


@trace_app.command("show")
def trace_show(
    file: Annotated[Path, typer.Argument(help="MCI trace, CSV with point_time and a column for each region.")],
    unit: Annotated[Unit, typer.Option(help="Unit of its numbers.")],
    threshold: Annotated[float, typer.Option(help="Windows lie strictly below it, g/kWh.")] = 100.0,
    region: Annotated[
        list[str] | None, typer.Option(help="A column; give it once for each, else all.", show_default=False)
    ] = None,
    width: Annotated[int, typer.Option(min=0, max=10000, help="Characters of the plot; 0: what fits.")] = 0,
) -> int:
    """Plot a trace in the terminal, and list its windows."""
    from curtail.commands.trace.show import show

    return show(file, unit.value, threshold, region or [], width)


@signal_app.command("check")
def signal_check(
    run_file: Annotated[Path, typer.Argument(help="The run file; its section [signal] names the source.")],
    json: AsJson = False,
) -> int:
    """Ask the signal of a run once: source, value, unit, age and verdict for every region.

    The exit code is 1 if any region is unknown.
    """
    from curtail.commands.trace.check_signal import run_check

    return run_check(run_file, json)
