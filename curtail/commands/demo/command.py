"""Options of `curtail demo`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.program import app


@app.command()
def demo(
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON; progress goes to stderr.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(help="Folder for all files; default: a new one in ~/.local/state/curtail.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the model and of the trace.")] = 1,
) -> int:
    """Run a complete demo on this machine, in under five minutes.

    A controller and three sites run on this machine and train a small model on Python's own
    source code, with a synthetic grid signal. No network or GPU is needed.
    """
    from curtail.commands.demo.run import run_demo

    return run_demo(json_out=json, keep=keep, seed=seed)
