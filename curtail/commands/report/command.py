"""`curtail report`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.program import app


@app.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures as JSON to this file.", show_default=False)
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also write each chart as PNG to this folder.", show_default=False)
    ] = None,
) -> int:
    """Write a report of a run as one HTML file: signal, training, loss, energy, carbon, rounds.

    The file has no scripts and loads nothing from the network.
    """
    from curtail.commands.report.run import run_report

    return run_report(run, out, json, png)
