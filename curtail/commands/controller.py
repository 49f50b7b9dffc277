"""Options of `curtail controller start`, `backup`, `restore` and `service install`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import DryRun, RunsAs, SystemWide, Unit, UnitName, check_host
from curtail.commands.program import check_words, controller_app, controller_service_app


@controller_app.command("start")
def controller_start(
    run_file: Annotated[Path, typer.Argument(help="Run file (TOML); docs/reference/run-file.md lists its keys.")],
    home: Annotated[Path, typer.Option(help="Folder for the run's state; an existing run in it is continued.")],
    trace: Annotated[
        Path | None,
        typer.Option(
            help="MCI trace to replay: CSV with point_time and one column per region; default: the signal of the run"
            " file.",
            show_default=False,
        ),
    ] = None,
    unit: Annotated[Unit | None, typer.Option(help="With --trace: unit of its values.", show_default=False)] = None,
    speed: Annotated[float, typer.Option(min=0.001, help="Seconds of the trace per second of wall time.")] = 1.0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; TLS is on by default unless it is a loopback address.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 8765,
    announce: Annotated[bool, typer.Option(help="Announce the address on the local network (zeroconf).")] = True,
    forecast: Annotated[bool, typer.Option(help="Use the trace's own future as the forecast.")] = False,
    tls: Annotated[
        bool | None, typer.Option(help="Use TLS; default: unless --host is a loopback address.", show_default=False)
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve plain HTTP on the network; only if all of it is trusted.")
    ] = False,
    advertise: Annotated[
        list[str] | None,
        typer.Option(help="Host name or address at which agents reach the controller; repeatable.", show_default=False),
    ] = None,
    open_status: Annotated[
        bool, typer.Option("--open-status", help="Serve the status without a token on the network, too.")
    ] = False,
    address_share: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="Maximum share of the connections for one client address; not loopback."),
    ] = 0.5,
) -> int:
    """Start the controller of a new run, or continue an existing run."""
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
    target: Annotated[Path, typer.Argument(help="Backup to write: a file if the name ends in .tar, else a folder.")],
    home: Annotated[Path, typer.Option(help="Folder of the run's state; its controller may be running.")],
    secrets: Annotated[
        bool,
        typer.Option(help="Include unencrypted keys and tokens, so that agents accept the restored controller."),
    ] = False,
) -> int:
    """Back up the present state of a run, even while it trains."""
    from controller.home.backup import run_backup

    return run_backup(home, target, secrets)


@controller_app.command("restore")
def controller_restore(
    backup: Annotated[Path, typer.Argument(help="Backup made by `curtail controller backup`.")],
    home: Annotated[Path, typer.Option(help="Folder for the run's state; must be new or empty.")],
) -> int:
    """Verify a backup and restore it into a new folder."""
    from controller.home.restore import run_restore

    return run_restore(backup, home)


@controller_service_app.command("install")
def controller_service_install(
    arguments: Annotated[
        list[str], typer.Argument(help="After --: the arguments of `curtail controller start`.", show_default=False)
    ],
    name: UnitName = "curtail-controller",
    system: SystemWide = False,
    user: RunsAs = None,
    dry_run: DryRun = False,
) -> int:
    """Write a systemd unit for a controller, without starting it."""
    words = check_words(("controller", "start"), arguments)
    from curtail.commands.systemd.install import Wanted, install
    from curtail.commands.systemd.units import CONTROLLER

    return install(Wanted(CONTROLLER, words, name, system, user or "", dry_run))
