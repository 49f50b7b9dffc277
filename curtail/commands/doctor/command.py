"""Options of `curtail doctor`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import ServerName, TokenFile, read_token
from curtail.commands.program import app


@app.command()
def doctor(
    url: Annotated[
        str | None,
        typer.Argument(help="URL of a controller to check; default: CURTAIL_URL, or none.", show_default=False),
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="State folder of a controller or of an agent.", show_default=False)
    ] = None,
    host: Annotated[str, typer.Option(help="With a controller's folder: address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="With a controller's folder: port to listen on.")] = 8765,
    rendezvous_port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="With an agent's folder: port for the rendezvous of its site.", show_default=False
        ),
    ] = None,
    token_file: TokenFile = None,
    server_name: ServerName = None,
    torch: Annotated[bool, typer.Option(help="Check torch and gloo, too; takes a few seconds.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Check that this machine has everything that a controller or an agent needs. Changes nothing."""
    from curtail.commands.doctor.checks import Asked, run_doctor
    from curtail.security.token import parse_token

    text = read_token(token_file)
    asked = Asked(
        url=url or os.environ.get("CURTAIL_URL"), home=home, host=host, port=port, rendezvous_port=rendezvous_port,
        token=None if text is None else parse_token(text), token_file=token_file, server_name=server_name, torch=torch,
    )  # fmt: skip
    return run_doctor(asked, json)
