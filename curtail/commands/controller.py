"""`controller start`, `backup`, `restore` and `service install`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import DryRun, RunsAs, SystemWide, Unit, UnitName, check_host
from curtail.commands.program import check_words, controller_app, controller_service_app


@controller_app.command("start")
def controller_start(
    run_file: Annotated[Path, typer.Argument(help="The run file, TOML; docs/reference/run-file.md lists its keys.")],
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
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback it speaks TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 8765,
    announce: Annotated[bool, typer.Option(help="Announce the address in the local network (zeroconf).")] = True,
    forecast: Annotated[bool, typer.Option(help="Use the trace's future as the forecast.")] = False,
    tls: Annotated[bool | None, typer.Option(help="Speak TLS; by default beyond loopback.", show_default=False)] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain HTTP beyond loopback, where the whole network is trusted.")
    ] = False,
    advertise: Annotated[
        list[str] | None,
        typer.Option(help="A name or address at which others reach it; repeatable.", show_default=False),
    ] = None,
    open_status: Annotated[
        bool, typer.Option("--open-status", help="Show the status without a token beyond loopback, too.")
    ] = False,
    address_share: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="Part of all connections that one address may hold; loopback may more."),
    ] = 0.5,
) -> int:
    """Start the controller of a run, or go on with it."""
    from controller.serve import StartOptions, start
    from controller.signals.start import SignalOptions

    for name in advertise or ():
        check_host(name)
    options = StartOptions(
        home=home, run_file=run_file, signal=SignalOptions(trace, unit.value if unit else None, speed, forecast),
        host=host, port=port, announce=announce, tls=tls, insecure=insecure, advertise=tuple(advertise or ()),
        open_status=open_status, address_share=address_share,
    )  # fmt: skip
    return start(options)


@controller_app.command("backup")
def controller_backup(
    target: Annotated[Path, typer.Argument(help="The backup: a file if its name ends in .tar, else a folder.")],
    home: Annotated[Path, typer.Option(help="Folder of the run's state; its controller may be running.")],
    secrets: Annotated[
        bool,
        typer.Option(help="Include the keys and tokens in clear, so that agents know the restored controller."),
    ] = False,
) -> int:
    """Save a run as it is at this moment, also while it trains."""
    from controller.home.backup import run_backup

    return run_backup(home, target, secrets)


@controller_app.command("restore")
def controller_restore(
    backup: Annotated[Path, typer.Argument(help="A backup, as `curtail controller backup` made it.")],
    home: Annotated[Path, typer.Option(help="Folder for the run's state; new or empty.")],
) -> int:
    """Make a backup the folder of a run, after everything in it was checked."""
    from controller.home.restore import run_restore

    return run_restore(backup, home)


@controller_service_app.command("install")
def controller_service_install(
    arguments: Annotated[
        list[str], typer.Argument(help="After --: the arguments of curtail controller start.", show_default=False)
    ],
    name: UnitName = "curtail-controller",
    system: SystemWide = False,
    user: RunsAs = None,
    dry_run: DryRun = False,
) -> int:
    """Write the systemd unit of a controller. Nothing is started."""
    words = check_words(("controller", "start"), arguments)
    from curtail.commands.systemd.install import Wanted, install
    from curtail.commands.systemd.units import CONTROLLER

    return install(Wanted(CONTROLLER, words, name, system, user or "", dry_run))
