"""`ledger check|verify|export|settle|totals` and `report`: what a run left behind."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, Unit
from curtail.commands.program import ledger_app


class LedgerForm(StrEnum):
    """Forms of an exported ledger."""

    CSV = "csv"
    JSON = "json"


@ledger_app.command("check")
def ledger_check(
    home: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")] = Path("."),
    weights: Annotated[bool, typer.Option("--weights", help="Hash the files of all kept versions, too.")] = False,
) -> int:
    """Check that every sample and token of a run is accounted for, exactly once."""
    from controller.home.data_ledger import check

    return check(home, weights)


@ledger_app.command("verify")
def ledger_verify(
    path: Annotated[
        Path, typer.Argument(help="Folder of a controller's state, which may be running, or an exported file.")
    ] = Path("."),
    head: Annotated[
        str | None, typer.Option(help="A head noted earlier, which the chain must pass through.", show_default=False)
    ] = None,
) -> int:
    """Compute the hash chain of the energy ledger anew; names the first record that was changed."""
    from curtail.commands.ledger.verify import verify

    return verify(path, head)


@ledger_app.command("export")
def ledger_export(
    home: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")] = Path("."),
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("ledger.csv"),
    form: Annotated[LedgerForm, typer.Option("--format", help="csv or json.")] = LedgerForm.CSV,
) -> int:
    """Write the energy ledger with its readings, settlements and hashes to a file."""
    from curtail.commands.ledger.verify import export

    return export(home, out, form.value)


@ledger_app.command("settle")
def ledger_settle(
    home: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")] = Path("."),
    trace: Annotated[
        Path | None, typer.Option(help="The trace that was replayed; by default the run file's.", show_default=False)
    ] = None,
    unit: Annotated[
        Unit | None, typer.Option(help="Unit of the trace's numbers; with --trace.", show_default=False)
    ] = None,
    json: AsJson = False,
) -> int:
    """Settle the energy ledger by what its signal's source says of the past now.

    What a source says differently another time is added as a revision; nothing is changed.
    """
    from curtail.commands.ledger.verify import SettleOptions, run_settle

    return run_settle(SettleOptions(home, trace, unit.value if unit else None, json))


@ledger_app.command("totals")
def ledger_totals(
    home: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")] = Path("."),
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> int:
    """Show energy and carbon of a run inside each boundary, and what the same training could have emitted."""
    from curtail.commands.ledger.totals import run_totals

    return run_totals(home, json)
