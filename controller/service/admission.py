"""Which place an agent takes among its site's machines, or why it gets none. Pure.

A site has as many machines as its agents say, all the same number. One agent
speaks for each; another takes a place only when its agent is silent or left.
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
    """What a join changes among a site's machines."""

    place: int  # in the order of joining
    stay: tuple[MachineRow, ...]  # the site's other machines
    gone: tuple[MachineRow, ...]  # those whose place is taken: their credentials end


def check_admission(request: JoinRequest) -> None:
    """Raises: WireError: the request cannot be meant."""
    for text, what in ((request.site, "site"), (request.agent, "agent")):
        if not text or len(text) > 64:
            raise WireError(f"the {what}'s name must have 1 to 64 characters")
    if not 1 <= request.machines <= MOST_MACHINES:
        raise WireError(f"a site has 1 to {MOST_MACHINES} machines, not {request.machines}")
    if request.machines > 1 and not (0 < len(request.address) <= 255 and 0 < request.port < 65536):
        raise WireError("a machine of several must say at which address and port the others reach it")


def admit(
    request: JoinRequest, site: SiteRow | None, rows: Sequence[MachineRow], here: Callable[[MachineRow], bool]
) -> Admission:
    """The agent's place.

    Args:
        rows: the site's machines that ever joined and were not replaced, in the order of joining.
        here: whether a machine has not left and was heard from lately.
    Raises: Refused: the others say something else about the site, or all of its machines are here.
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
    # The places of those who left are taken first, then those that were not heard from, the oldest first.
    absent = sorted((row for row in others if not here(row)), key=lambda row: (not row.left_run, row.joined_wall))
    gone = absent[: max(0, len(others) - (request.machines - 1))]
    mine = next((row.place for row in rows if row.agent == request.agent), None)
    place = mine if mine is not None else max((row.place for row in rows), default=-1) + 1
    return Admission(place, tuple(row for row in others if row not in gone), tuple(gone))


def check_owner(request: JoinRequest, site: SiteRow | None, rows: Sequence[MachineRow], token: TokenRow) -> None:
    """Who may be a machine of a site that others joined before: whoever has the key of one of them, whoever takes a
    place that never was taken, and whoever the operator sends: with a token for this site, or their own.

    Raises: Refused: this agent is none of them.
    """
    own = next((row for row in rows if row.agent == request.agent), None)
    same_key = any(row.key == request.key for row in rows if row.key)
    # A row without a key is of a machine that joined before keys were kept.
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
    """Raises: Refused: what this agent says of the site is not what the others say."""
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
