"""`doctor`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import ServerName, TokenFile, read_token
from curtail.commands.program import app


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Argument(help="A controller to reach; else CURTAIL_URL, else none.", show_default=False)
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder of a controller or of an agent.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="With a controller's folder: where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="With a controller's folder: the port there.")] = 8765,
    rendezvous_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="With an agent's folder: the port for its site.", show_default=False),
    ] = None,
    token_file: TokenFile = None,
    server_name: ServerName = None,
    torch: Annotated[bool, typer.Option(help="Try torch and gloo, too; takes some seconds.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Look whether everything that a controller or an agent needs is in order. Changes nothing."""
    from curtail.commands.doctor.checks import Asked, run_doctor
    from curtail.security.token import parse_token

    text = read_token(token_file)
    asked = Asked(
        url=url or os.environ.get("CURTAIL_URL"), home=home, host=host, port=port, rendezvous_port=rendezvous_port,
        token=None if text is None else parse_token(text), token_file=token_file, server_name=server_name, torch=torch,
    )  # fmt: skip
    return run_doctor(asked, json)
