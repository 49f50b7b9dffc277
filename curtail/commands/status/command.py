"""Options of `curtail status`."""

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
        typer.Argument(
            help="URL of the controller, https://HOST:PORT; default: CURTAIL_URL, or found on the local network.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
    watch: Annotated[
        bool | None, typer.Option(help="Keep updating; default: only on a terminal.", show_default=False)
    ] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 0.5,
    token_file: TokenFile = None,
    server_name: ServerName = None,
    remember: Annotated[
        bool, typer.Option("--remember", help="Store the token for later calls, readable by this user only.")
    ] = False,
    home: Annotated[
        Path | None,
        typer.Option(
            help="On the controller's machine: the run's folder, instead of URL and token.", show_default=False
        ),
    ] = None,
) -> int:
    """Show the status of a run: regime, regions, sites, loss, energy."""
    from curtail.commands.status.watch import show

    if home is not None:
        from curtail.commands.status.viewer_tokens import at_home

        if url is not None or token_file is not None or remember:
            raise UsageError(
                "--home cannot be combined with a URL, --token-file or --remember", "the folder has a URL and a token"
            )
        where, operator = at_home(home)
        # insecure: this machine connects to itself, and the operator chose how the controller listens
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
