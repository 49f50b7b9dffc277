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
        Path | None, typer.Option("--json", help="And the figures, as JSON, to this file.", show_default=False)
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="And each picture, as PNG, to this folder.", show_default=False)
    ] = None,
) -> int:
    """Write a run as one HTML file: signal, training, loss, energy, carbon, rounds.

    It needs no network and no script.
    """
    from curtail.commands.report.run import run_report

    return run_report(run, out, json, png)
