"""`token create`, `list`, `revoke` and `rotate`; `node list` and `rm`.

`override`.
"""

import getpass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, check_name, seconds
from curtail.commands.program import app, node_app, token_app
from curtail.errors import UsageError

HOME = typer.Option(help="Folder of the controller's state; it may be running.")


class Role(StrEnum):
    """What a token is for."""

    AGENT = "agent"
    VIEWER = "viewer"
    OPERATOR = "operator"


@token_app.command("create")
def token_create(
    home: Annotated[Path, HOME],
    role: Annotated[Role, typer.Option(help="agent: join; viewer: see the status; operator: everything.")] = Role.AGENT,
    site: Annotated[
        str | None,
        typer.Option(help="Only for this site; then a wiped machine may take its old place.", show_default=False),
    ] = None,
    region: Annotated[str | None, typer.Option(help="Only for sites in this region.", show_default=False)] = None,
    uses: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Machines that may join with it; 0: no limit. For agents.")
    ] = 1,
    expires: Annotated[
        str | None,
        typer.Option(help="How long it is good, as 90 min, 12 h, 30 d, never.", show_default=False),
    ] = None,
    note: Annotated[str | None, typer.Option(help="Words to find it by.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write it to this file, for its owner only, instead of stdout.", show_default=False),
    ] = None,
    json: AsJson = False,
) -> int:
    """Make a token. It is shown once."""
    from curtail.commands.operator.admin_client import create
    from curtail.wire import TokenRequest

    for kind, name in (("site", site), ("region", region)):
        if name:
            check_name(kind, name)
    agent = role is Role.AGENT
    lasts = expires or ("1 h" if agent else "30 d")
    return create(
        home,
        TokenRequest(
            role.value, site or "", region or "", uses or None if agent else None,
            None if lasts == "never" else seconds(lasts, "write it as 90 min, 12 h or 30 d, or never"), note or "",
        ),
        out,
        json,
    )  # fmt: skip


@token_app.command("list")
def token_list(
    home: Annotated[Path, HOME],
    json: AsJson = False,
) -> int:
    """List the tokens that were made, without their secrets."""
    from curtail.commands.operator.admin_client import list_tokens

    return list_tokens(home, json)


@token_app.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `curtail token list` shows it.")],
    home: Annotated[Path, HOME],
) -> int:
    """Let nobody in with a token any more. Machines that joined with it stay."""
    from curtail.commands.operator.admin_client import revoke

    return revoke(home, token_id)


@token_app.command("rotate")
def token_rotate(home: Annotated[Path, HOME]) -> int:
    """Replace the token in HOME/join-token, and revoke the old one."""
    from curtail.commands.operator.admin_client import rotate

    return rotate(home)


@node_app.command("list")
def node_list(
    home: Annotated[Path, HOME],
    json: AsJson = False,
) -> int:
    """List the machines that joined."""
    from curtail.commands.operator.admin_client import list_nodes

    return list_nodes(home, json)


@node_app.command("rm")
def node_rm(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    home: Annotated[Path, HOME],
    agent: Annotated[
        str | None,
        typer.Option(help="Only this machine: how its agent's id begins.", show_default=False),
    ] = None,
) -> int:
    """Forget a machine's key and credential; its samples go back. It has to join anew."""
    from curtail.commands.operator.admin_client import remove_node

    return remove_node(home, check_name("site", site), agent)


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
    from curtail.commands.operator.override import list_orders
    from curtail.commands.operator.override import order as give

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
