"""Options of `curtail site list|plan|up|down|auto|sweep|manifest`."""

import getpass
from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import AsJson, check_name
from curtail.commands.program import site_app

HOME = typer.Option(help="Folder of the controller's state.")
SITE = typer.Argument(help="Name of the site, as in [sites.NAME] of the run file.")
BY = typer.Option(help="Name of the person; recorded as an event. Default: the user.", show_default=False)


@site_app.command("list")
def site_list(home: Annotated[Path, HOME], json: AsJson = False) -> int:
    """List the sites with a provisioner, whether their machines are wanted, and the machines."""
    from curtail.commands.site.sites import list_sites

    return list_sites(home, json)


@site_app.command("plan")
def site_plan(home: Annotated[Path, HOME], json: AsJson = False) -> int:
    """Show what the controller does next with each machine, and why. Changes nothing."""
    from curtail.commands.site.sites import plan

    return plan(home, json)


def _order(home: Path, site: str, action: str, by: str | None) -> int:
    from curtail.commands.site.sites import order

    check_name("site", site)
    return order(home, site, action, by or getpass.getuser())


@site_app.command("up")
def site_up(site: Annotated[str, SITE], home: Annotated[Path, HOME], by: Annotated[str | None, BY] = None) -> int:
    """Keep a site's machines, within the caps, until `curtail site auto`. They still train in windows only."""
    return _order(home, site, "up", by)


@site_app.command("down")
def site_down(site: Annotated[str, SITE], home: Annotated[Path, HOME], by: Annotated[str | None, BY] = None) -> int:
    """Release a site's machines, and request none until `curtail site auto`."""
    return _order(home, site, "down", by)


@site_app.command("auto")
def site_auto(site: Annotated[str, SITE], home: Annotated[Path, HOME], by: Annotated[str | None, BY] = None) -> int:
    """End an order: windows and forecast decide again."""
    return _order(home, site, "auto", by)


@site_app.command("sweep")
def site_sweep(
    home: Annotated[Path, HOME],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the machines only.")] = False,
    json: AsJson = False,
) -> int:
    """Release all machines of a run whose controller is stopped. A running controller releases orphans itself."""
    from curtail.commands.site.sweep import sweep

    return sweep(home, dry_run, json)


@site_app.command("manifest")
def site_manifest(
    run_file: Annotated[Path, typer.Argument(help="The run file.", show_default=False)],
    site: Annotated[str, SITE],
    url: Annotated[str, typer.Option(help="The controller's address for the site's machines.", show_default=False)],
) -> int:
    """Print what a site needs: the StatefulSet with its minimal Role, or the batch script of a machine."""
    from curtail.commands.site.manifest import print_manifest

    return print_manifest(run_file, site, url)
