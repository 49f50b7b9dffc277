"""Options of `curtail ledger check|verify|export|settle|totals` and `curtail report`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, Unit
from curtail.commands.program import ledger_app


class LedgerForm(StrEnum):
    """Formats of an exported ledger."""

    CSV = "csv"
    JSON = "json"


@ledger_app.command("check")
def ledger_check(
    home: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")] = Path("."),
    weights: Annotated[
        bool, typer.Option("--weights", help="Also check the hashes of the files of all stored versions.")
    ] = False,
) -> int:
    """Check that every sample and token of a run is accounted for exactly once."""
    from controller.home.data_ledger import check

    return check(home, weights)


@ledger_app.command("verify")
def ledger_verify(
    path: Annotated[
        Path, typer.Argument(help="Folder of a controller's state (it may be running), or an exported file.")
    ] = Path("."),
    head: Annotated[
        str | None, typer.Option(help="A head noted earlier, which the chain must contain.", show_default=False)
    ] = None,
) -> int:
    """Verify the hash chain of the energy ledger, and report the first changed record."""
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
    home: Annotated[Path, typer.Argument(help="Folder of a stopped controller's state.")] = Path("."),
    trace: Annotated[
        Path | None,
        typer.Option(help="The trace that was replayed; default: the trace of the run file.", show_default=False),
    ] = None,
    unit: Annotated[Unit | None, typer.Option(help="With --trace: unit of its values.", show_default=False)] = None,
    json: AsJson = False,
) -> int:
    """Settle the energy ledger with the MCI values that its signal source reports now for the past.

    Values that differ from an earlier settlement are added as revisions; existing rows never change.
    """
    from curtail.commands.ledger.verify import SettleOptions, run_settle

    return run_settle(SettleOptions(home, trace, unit.value if unit else None, json))


@ledger_app.command("totals")
def ledger_totals(
    home: Annotated[Path, typer.Argument(help="Folder of a controller's state; it may be running.")] = Path("."),
    json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> int:
    """Show a run's energy and carbon within each boundary, and compare it with counterfactuals."""
    from curtail.commands.ledger.totals import run_totals

    return run_totals(home, json)
