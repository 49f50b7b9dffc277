"""`status`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import ServerName, TokenFile, default_state, read_token
from curtail.commands.program import app
from curtail.errors import UsageError


@app.command()
def status(
    url: Annotated[
        str | None,
        typer.Argument(help="The controller, http://HOST:PORT; else CURTAIL_URL, else zeroconf.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the snapshot as JSON.")] = False,
    watch: Annotated[
        bool | None, typer.Option(help="Keep showing; the default on a terminal.", show_default=False)
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between snapshots.")] = 0.5,
    token_file: TokenFile = None,
    server_name: ServerName = None,
    remember: Annotated[
        bool, typer.Option("--remember", help="Keep the token, readable by this user only, for the next time.")
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(
            help="On the controller's machine: the run's folder, in place of address and token.", show_default=False
        ),
    ] = None,
) -> int:
    """Show what a run does: regime, regions, sites, loss, energy."""
    from curtail.commands.status.watch import show

    if home is not None:
        from curtail.commands.status.viewer_tokens import at_home

        if url is not None or token_file is not None or remember:
            raise UsageError("--home brings an address and a token of its own", "leave the others out")
        where, operator = at_home(home)
        # this machine talks to itself, and how it listens is what its operator chose
        return show(where, as_json=json, watch=watch, interval=interval, token=operator, insecure=True)
    address = url or os.environ.get("CURTAIL_URL")
    if not address:
        from curtail.system.mdns import find_controller

        address = find_controller().url
    token = read_token(token_file)
    return show(
        address, as_json=json, watch=watch, interval=interval, token=token, server_name=server_name,
        state=default_state(), keep=remember,
    )  # fmt: skip
