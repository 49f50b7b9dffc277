"""Messages about sites with a provisioner: their demand, their machines, and operators' orders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curtail.wire.bounds import Integer, NameOrEmpty, Number, String, Text, Word


@dataclass(frozen=True, slots=True)
class SiteDemand:
    """Whether a site's machines are wanted."""

    site: String
    region: String
    provisioner: String
    wanted: bool
    reason: String
    until_s: Number | None  # of the controller's clock, to the window's end; None: unknown
    lead_s: Number  # of the controller's clock; from a request to the first step
    order: String  # up or down by an operator, or ""


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """One machine of a site with a provisioner."""

    site: String
    machine: Integer  # from 0
    state: String  # controller.provision.lifecycle.MachineState
    reason: String
    since_s: Number | None  # wall time in this state; None: unknown
    expected_s: Number | None  # wall time until it starts, by the provisioner's estimate
    native: String  # the provisioner's id, for example a job's number


@dataclass(frozen=True, slots=True)
class ProvisionStatus:
    """Controller -> viewer, GET /v1/provision: all sites with a provisioner, and their machines."""

    sites: tuple[SiteDemand, ...]
    machines: tuple[MachineStatus, ...]
    spent_day: Number  # money within the last 24 hours


@dataclass(frozen=True, slots=True)
class SiteOrder:
    """Operator -> controller, POST /v1/provision/order: keep a site's machines up or down, or follow the policy."""

    site: NameOrEmpty
    action: Word  # up, down, auto
    by: Annotated[str, Text(128)]  # name of the operator
