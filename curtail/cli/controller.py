"""`controller start`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.cli.arguments import Unit
from curtail.cli.root import controller_app


@controller_app.command("start")
def controller_start(
    run_file: Annotated[Path, typer.Argument(help="The run file, TOML; docs/run-file.md lists its keys.")],
    home: Annotated[Path, typer.Option(help="Folder of the run's state; made if missing, continued if not.")],
    trace: Annotated[
        Path | None,
        typer.Option(
            help="MCI trace, CSV with point_time and a column for each region; by default the run file's signal.",
            show_default=False,
        ),
    ] = None,
    unit: Annotated[
        Unit | None, typer.Option(help="Unit of the trace's numbers; with --trace.", show_default=False)
    ] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="Seconds of the trace per second.")] = 1.0,
    host: Annotated[str, typer.Option(help="Address to listen on; only loopback works without TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8765,
    announce: Annotated[bool, typer.Option(help="Announce the address in the local network (zeroconf).")] = True,
    forecast: Annotated[bool, typer.Option(help="Use the trace's future as the forecast.")] = False,
) -> int:
    """Start the controller of a run, or go on with it."""
    from controller.serve import StartOptions, start

    options = StartOptions(
        home=home, run_file=run_file, trace=trace, unit=unit.value if unit else None, speed=speed, host=host, port=port,
        announce=announce, forecast=forecast,
    )  # fmt: skip
    return start(options)
