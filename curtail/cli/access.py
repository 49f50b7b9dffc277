"""`token create`, `list`, `revoke` and `rotate`; `node list` and `rm`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from curtail.cli.arguments import AsJson, check_name, seconds
from curtail.cli.root import node_app, token_app

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
    from curtail.operate import create
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
    from curtail.operate import list_tokens

    return list_tokens(home, json)


@token_app.command("revoke")
def token_revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="As `curtail token list` shows it.")],
    home: Annotated[Path, HOME],
) -> int:
    """Let nobody in with a token any more. Machines that joined with it stay."""
    from curtail.operate import revoke

    return revoke(home, token_id)


@token_app.command("rotate")
def token_rotate(home: Annotated[Path, HOME]) -> int:
    """Replace the token in HOME/join-token, and revoke the old one."""
    from curtail.operate import rotate

    return rotate(home)


@node_app.command("list")
def node_list(
    home: Annotated[Path, HOME],
    json: AsJson = False,
) -> int:
    """List the machines that joined."""
    from curtail.operate import list_nodes

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
    from curtail.operate import remove_node

    return remove_node(home, check_name("site", site), agent)
