"""`curtail site list|plan|up|down|auto`: asks the running controller, and gives it orders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from curtail import wire
from curtail.commands.operator.admin_client import HttpAdminClient, open_admin_client, table
from curtail.commands.status.view import duration
from curtail.errors import Refused

EXISTS = ("REQUESTED", "PENDING", "BOOTING", "JOINED")


def list_sites(home: Path, as_json: bool) -> int:
    """Run `curtail site list`; returns the exit code. Raises: CurtailError."""
    found = _status(home)
    if as_json:
        print(json.dumps(dataclasses.asdict(found)))
        return 0
    if not found.sites:
        print("no site has a provisioner; docs/guides/elastic.md shows how to add one")
        return 0
    rows = [("site", "region", "provisioner", "wanted", "for", "lead", "order", "why")]
    rows += [
        (
            one.site, one.region, one.provisioner, "yes" if one.wanted else "no",
            "" if one.until_s is None else duration(one.until_s), duration(one.lead_s), one.order or "auto", one.reason,
        )
        for one in found.sites
    ]  # fmt: skip
    print(table(rows))
    print()
    machines = [("machine", "state", "since", "id", "why")]
    machines += [
        (f"{m.site}/{m.machine}", m.state, "" if m.since_s is None else duration(m.since_s), m.native, m.reason)
        for m in found.machines
    ]
    print(table(machines))
    if found.spent_day:
        print(f"\n{found.spent_day:.2f} spent within 24 hours")
    return 0


def next_action(machine: wire.MachineStatus, wanted: bool) -> str:
    """What the controller does next with a machine: request, hold, keep, release, wait or nothing."""
    if machine.state in ("HELD", "BACKOFF") and wanted:
        return "hold" if machine.state == "HELD" else "wait"
    if machine.state == "RELEASING":
        return "release"
    if machine.state in EXISTS:
        return "keep" if wanted else "release"
    return "request" if wanted else "nothing"


def plan(home: Path, as_json: bool) -> int:
    """Run `curtail site plan`."""
    found = _status(home)
    demands = {one.site: one for one in found.sites}
    steps = [
        {
            "site": m.site,
            "machine": m.machine,
            "state": m.state,
            "action": next_action(m, demands[m.site].wanted),
            "reason": m.reason or demands[m.site].reason,
        }
        for m in found.machines
    ]
    if as_json:
        print(json.dumps(steps))
        return 0
    rows = [("machine", "state", "next", "why")]
    rows += [(f"{s['site']}/{s['machine']}", str(s["state"]), str(s["action"]), str(s["reason"])) for s in steps]
    print(table(rows) if steps else "no site has a provisioner")
    return 0


def order(home: Path, site: str, action: str, by: str) -> int:
    """Run `curtail site up|down|auto`."""
    with open_admin_client(home) as admin:
        _running(admin, home).order_site(wire.SiteOrder(site, action, by))
    print(f"{site}: {'windows and forecast decide' if action == 'auto' else f'ordered {action}'}")
    return 0


def _status(home: Path) -> wire.ProvisionStatus:
    with open_admin_client(home) as admin:
        return _running(admin, home).provision()


def _running(admin: object, home: Path) -> HttpAdminClient:
    if not isinstance(admin, HttpAdminClient):
        raise Refused(f"the controller of {home} is not running", "start it; `curtail site sweep` works without it")
    return admin
