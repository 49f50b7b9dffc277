"""`status`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from curtail.cli.arguments import read_token
from curtail.cli.root import app


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
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with a viewer's token, - for stdin; else CURTAIL_TOKEN. Beyond loopback.", show_default=False
        ),
    ] = None,
    server_name: Annotated[
        str | None,
        typer.Option(
            help="The name in the controller's certificate, where it is not the host of its address.",
            show_default=False,
        ),
    ] = None,
) -> int:
    """Show what a run does: regime, regions, sites, loss, energy."""
    from curtail.watch import show

    address = url or os.environ.get("CURTAIL_URL")
    if not address:
        from curtail.discovery import find_controller

        address = find_controller().url
    token = read_token(token_file)
    return show(address, as_json=json, watch=watch, interval=interval, token=token, server_name=server_name)
