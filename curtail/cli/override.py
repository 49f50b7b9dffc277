"""`override`."""

import getpass
from pathlib import Path
from typing import Annotated

import typer

from curtail.cli.arguments import check_name, seconds
from curtail.cli.root import app
from curtail.errors import UsageError


@app.command()
def override(
    region: Annotated[str, typer.Argument(help="The region, or the word list: show the orders in force.")],
    home: Annotated[Path, typer.Option(help="Folder of the running controller's state.")],
    order: Annotated[
        str | None, typer.Argument(help="train, pause, or clear: take an order back.", show_default=False)
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--for", help="How long, as 30 min or 2 h; at most a day, of the trace's time.", show_default=False
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="Why; shown with the order, and kept.", show_default=False)] = None,
    by: Annotated[str | None, typer.Option(help="Who orders it; else this user's name.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> int:
    """Order a region's sites to train or to pause for a while, whatever its grid emits.

    What is trained under an order is booked as not curtailed.
    """
    from curtail import wire
    from curtail.ordering import list_orders
    from curtail.ordering import order as give

    if order is None:
        if region != "list":
            raise UsageError(
                f"nothing is ordered for {region!r}", "write train, pause or clear after the region, or list"
            )
        return list_orders(home, json)
    if order not in ("train", "pause", "clear"):
        raise UsageError(f"there is no order {order!r}", "write train, pause or clear")
    who = by or getpass.getuser()
    if order == "clear":
        return give(home, wire.OverrideRequest(check_name("region", region), order, 0.0, who, ""))
    if time is None:
        raise UsageError("an order ends by itself", "say when, for example --for 30min")
    length = seconds(time, "write --for as 30 min or 2 h, at most a day: an order ends by itself")
    if reason is None or not reason.strip():
        raise UsageError("an order says why it is given", 'add --reason "..."')
    return give(home, wire.OverrideRequest(check_name("region", region), order, length, who, reason))
