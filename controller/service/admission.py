"""Admits an agent as one of its site's machines, or refuses it. Pure.

All agents of a site report the same number of machines. Each machine has one
agent; another agent replaces it only after it left or became silent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from controller.store.rows import MachineRow, SiteRow, TokenRow
from curtail.errors import Refused, WireError
from curtail.wire import JoinRequest

MOST_MACHINES = 64


@dataclass(frozen=True, slots=True)
class Admission:
    """The result of a join for the site's machines."""

    place: int  # in the order of joining
    stay: tuple[MachineRow, ...]  # the site's other machines, which remain
    gone: tuple[MachineRow, ...]  # replaced machines; their credentials become invalid


def check_admission(request: JoinRequest) -> None:
    """Check the fields of a join request. Raises: WireError."""
    for text, what in ((request.site, "site"), (request.agent, "agent")):
        if not text or len(text) > 64:
            raise WireError(f"the {what}'s name must have 1 to 64 characters")
    if not 1 <= request.machines <= MOST_MACHINES:
        raise WireError(f"a site has 1 to {MOST_MACHINES} machines, not {request.machines}")
    if request.machines > 1 and not (0 < len(request.address) <= 255 and 0 < request.port < 65536):
        raise WireError("at a site of several machines, each must report the address and port that the others use")


def admit(
    request: JoinRequest, site: SiteRow | None, rows: Sequence[MachineRow], here: Callable[[MachineRow], bool]
) -> Admission:
    """Assign a place to the agent.

    Args:
        rows: the site's machines that ever joined and were not replaced, in the order of joining.
        here: whether a machine has not left and sent a heartbeat recently.
    Raises: Refused: its statement about the site differs from that of the others, or all machines are present.
    """
    others = [row for row in rows if row.agent != request.agent]
    present = [row for row in others if here(row)]
    hosts = ", ".join(row.machine for row in present)
    if site is not None and present and site.machines == request.machines == 1:
        raise Refused(
            f"the site {request.site!r} is already served by another agent on {hosts}",
            "choose another --site, or stop that agent first",
        )
    if site is not None and present:
        _agree(request, site, present)
    if len(present) >= request.machines:
        raise Refused(
            f"the site {request.site!r} is already served by {len(present)} agents, on {hosts}",
            "choose another --site, stop one of those agents first, or give a larger --machines at each",
        )
    # Replace machines that left first, then silent ones; in each group the oldest first.
    absent = sorted((row for row in others if not here(row)), key=lambda row: (not row.left_run, row.joined_wall))
    gone = absent[: max(0, len(others) - (request.machines - 1))]
    mine = next((row.place for row in rows if row.agent == request.agent), None)
    place = mine if mine is not None else max((row.place for row in rows), default=-1) + 1
    return Admission(place, tuple(row for row in others if row not in gone), tuple(gone))


def check_owner(request: JoinRequest, site: SiteRow | None, rows: Sequence[MachineRow], token: TokenRow) -> None:
    """Check that the agent may join a site that already has machines.

    It needs the key of one of these machines, a place that was never taken, a token for this site, or an operator's
    token with `replace`.

    Raises: Refused: none of these holds.
    """
    own = next((row for row in rows if row.agent == request.agent), None)
    same_key = any(row.key == request.key for row in rows if row.key)
    # A row without a key belongs to a machine that joined before keys existed.
    if same_key or (own is not None and not own.key) or not rows:
        return
    free = site is not None and site.machines == request.machines and len(rows) < site.machines
    if own is None and free:
        return
    if token.site == request.site or (token.role == "operator" and request.replace):
        return
    hosts = ", ".join(row.machine for row in rows)
    raise Refused(
        f"the site {request.site!r} belongs to another key, of {hosts}, and this machine has a new one",
        f"if it was wiped or replaced: join with a token for this site (`curtail token create --site {request.site}`"
        f" on the controller's machine), or first forget the old one there: `curtail node rm {request.site}`",
    )


def _agree(request: JoinRequest, site: SiteRow, present: Sequence[MachineRow]) -> None:
    """Raises: Refused: this agent's statement about the site differs from that of the others."""
    hosts = ", ".join(row.machine for row in present)
    if request.machines != site.machines:
        raise Refused(
            f"the site {request.site!r} has {_count(site.machines)} by the word of its agent on {hosts},"
            f" this one says {request.machines}",
            "give the same --machines at each of them; to change it, stop all agents of the site first",
        )
    if request.region != site.region:
        raise Refused(
            f"the site {request.site!r} is in region {site.region!r} by the word of its agent on {hosts},"
            f" this one says {request.region!r}",
            "give the same --region at each of them",
        )
    for row in present:
        if row.machine != request.machine and any(_loopback(address) for address in (row.address, request.address)):
            raise Refused(
                f"{row.machine} at {row.address or 'no address'} and {request.machine} at {request.address}"
                " do not reach each other",
                "give --address at each: where the site's other machines reach it",
            )


def _count(machines: int) -> str:
    return "1 machine" if machines == 1 else f"{machines} machines"


def _loopback(address: str) -> bool:
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
