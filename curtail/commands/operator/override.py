"""`curtail override`: sends manual overrides to the running controller, and lists them.

Overrides are validated and applied in `controller.scheduling.overrides`. Times are in
the controller's clock, which runs faster while a trace is replayed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from curtail import wire
from curtail.commands.operator.admin_client import HttpAdminClient, open_admin_client, table
from curtail.commands.status.view import duration
from curtail.errors import Refused


def order(home: Path, request: wire.OverrideRequest) -> int:
    """Run `curtail override REGION train|pause|clear`; returns the exit code. Raises: CurtailError."""
    with open_admin_client(home) as admin:
        _running(admin, home).order(request)
    if request.action == "clear":
        print(f"{request.region}: the override is cleared")
    else:
        print(f"{request.region}: ordered to {request.action} for {duration(request.seconds)}")
    return 0


def list_orders(home: Path, as_json: bool) -> int:
    """Run `curtail override list`."""
    with open_admin_client(home) as admin:
        status = _running(admin, home).status()
    found = [(region.region, region.override) for region in status.regions if region.override is not None]
    if as_json:
        print(json.dumps([{"region": name, **dataclasses.asdict(one)} for name, one in found]))
        return 0
    rows = [("region", "order", "left", "by", "why")]
    rows += [(name, "train" if one.train else "pause", duration(one.left_s), one.by, one.reason) for name, one in found]
    print(table(rows) if found else "no override is in force")
    return 0


def _running(admin: object, home: Path) -> HttpAdminClient:
    if not isinstance(admin, HttpAdminClient):
        raise Refused(f"the controller of {home} is not running", "start it; overrides need a running controller")
    return admin
