"""`ledger check` and `report`: what a run left behind."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.cli.root import app, ledger_app


@ledger_app.command("check")
def ledger_check(
    home: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")] = Path("."),
    weights: Annotated[bool, typer.Option("--weights", help="Hash the files of all kept versions, too.")] = False,
) -> int:
    """Check that every sample and token of a run is accounted for, exactly once."""
    from controller.ledger import check

    return check(home, weights)


@app.command("report")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    json: Annotated[
        Path | None, typer.Option("--json", help="And the figures, as JSON, to this file.", show_default=False)
    ] = None,
) -> int:
    """Write a run as one HTML file: signal, training, loss, energy, carbon, rounds.

    It needs no network and no script.
    """
    from curtail.report import run_report

    return run_report(run, out, json)
