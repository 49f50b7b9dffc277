"""Options of `curtail token create|list|revoke|rotate`, `curtail node list|rm`, `curtail override`."""

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
    """Role that a token grants."""

    AGENT = "agent"
    VIEWER = "viewer"
    OPERATOR = "operator"


@token_app.command("create")
def token_create(
    home: Annotated[Path, HOME],
    role: Annotated[
        Role, typer.Option(help="agent: join a run; viewer: read the status; operator: everything.")
    ] = Role.AGENT,
    site: Annotated[
        str | None,
        typer.Option(
            help="Valid for this site only; such a token also lets a machine that lost its state rejoin.",
            show_default=False,
        ),
    ] = None,
    region: Annotated[str | None, typer.Option(help="Valid for sites in this region only.", show_default=False)] = None,
    uses: Annotated[
        int,
        typer.Option(min=0, max=1_000_000, help="Agent tokens: number of machines that may join; 0: no limit."),
    ] = 1,
    expires: Annotated[
        str | None,
        typer.Option(
            help="Lifetime, e.g. 90 min, 12 h, 30 d, or never; default: 1 h for agents, 30 d otherwise.",
            show_default=False,
        ),
    ] = None,
    note: Annotated[str | None, typer.Option(help="Note to show in `curtail token list`.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the token to this file (owner-readable only) instead of stdout.", show_default=False),
    ] = None,
    json: AsJson = False,
) -> int:
    """Create a token. It is shown only once."""
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
    """List all tokens without their secrets."""
    from curtail.commands.operator.admin_client import list_tokens

    return list_tokens(home, json)


@token_app.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the token, from `curtail token list`.")],
    home: Annotated[Path, HOME],
) -> int:
    """Revoke a token. Machines that joined with it remain members."""
    from curtail.commands.operator.admin_client import revoke

    return revoke(home, token_id)


@token_app.command("rotate")
def token_rotate(home: Annotated[Path, HOME]) -> int:
    """Replace the token in HOME/join-token and revoke the old one."""
    from curtail.commands.operator.admin_client import rotate

    return rotate(home)


@node_app.command("list")
def node_list(
    home: Annotated[Path, HOME],
    json: AsJson = False,
) -> int:
    """List the machines that have joined."""
    from curtail.commands.operator.admin_client import list_nodes

    return list_nodes(home, json)


@node_app.command("rm")
def node_rm(
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    home: Annotated[Path, HOME],
    agent: Annotated[
        str | None,
        typer.Option(
            help="Remove only the machine whose agent id begins with this; default: all of the site.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Remove a site's machines: delete their keys and credentials, and return their samples to the pool."""
    from curtail.commands.operator.admin_client import remove_node

    return remove_node(home, check_name("site", site), agent)


@app.command()
def override(
    region: Annotated[str, typer.Argument(help="The region, or `list` to show the overrides in force.")],
    home: Annotated[Path, typer.Option(help="Folder of the running controller's state.")],
    order: Annotated[
        str | None, typer.Argument(help="train, pause, or clear to end an override.", show_default=False)
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            "--for",
            help="Duration, e.g. 30 min or 2 h; at most one day. In trace time for a trace.",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Reason; shown with the override and recorded.", show_default=False)
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Name of who orders it; default: this user's name.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> int:
    """Make a region's sites train or pause for a limited time, regardless of its MCI.

    Training under an override is booked as not curtailed.
    """
    from curtail import wire
    from curtail.commands.operator.override import list_orders
    from curtail.commands.operator.override import order as give

    if order is None:
        if region != "list":
            raise UsageError(
                f"the order for {region!r} is missing",
                "write train, pause or clear after the region, or `curtail override list`",
            )
        return list_orders(home, json)
    if order not in ("train", "pause", "clear"):
        raise UsageError(f"unknown order {order!r}", "write train, pause or clear")
    who = by or getpass.getuser()
    if order == "clear":
        return give(home, wire.OverrideRequest(check_name("region", region), order, 0.0, who, ""))
    if time is None:
        raise UsageError("an override needs a duration", "add for example --for 30min")
    length = seconds(time, "write --for as 30 min or 2 h, at most one day")
    if reason is None or not reason.strip():
        raise UsageError("an override needs a reason", 'add --reason "..."')
    return give(home, wire.OverrideRequest(check_name("region", region), order, length, who, reason))
