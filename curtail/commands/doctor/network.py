"""Checks of the network: free ports, reaching the controller, TLS and clock skew."""

from __future__ import annotations

import errno
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from controller.http.listener import BACKLOG
from curtail import wire
from curtail.commands.doctor.finding import Finding, fail, fine, warn
from curtail.security.signing import SKEW_S
from curtail.security.tls import CONNECT_S, check_url, fetch_authority, mistrust, open_http
from curtail.security.token import Token
from curtail.system.home_files import IDENTITY

if TYPE_CHECKING:
    import httpx

SOMAXCONN = Path("/proc/sys/net/core/somaxconn")
CLOCK_S = 5.0
"""Clock skew in seconds that is ignored; the Date header has a resolution of one second."""


def bind(host: str, port: int) -> None:
    """Listen on the port for a moment. Raises: OSError: that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)


def port(what: str, host: str, number: int, used_by: str = "", binding: Callable[[str, int], None] = bind) -> Finding:
    """Check that a port is free.

    Args: used_by: the process that is expected to use it already, for display; "": none.
    """
    where = f"{host}:{number}"
    try:
        binding(host, number)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and used_by:
            return fine(what, f"{where} is in use: {used_by}")
        if error.errno == errno.EADDRINUSE:
            return fail(
                what, f"{where} is in use", "stop the process that listens there (ss -ltnp), or choose another port"
            )
        if error.errno == errno.EACCES:
            return fail(what, f"this user may not listen on {where}", "choose a port of at least 1024")
        return fail(what, f"cannot listen on {where}: {error.strerror or error}", "check the address")
    return fine(what, f"{where} is free")


def backlog(limit: Path = SOMAXCONN) -> list[Finding]:
    """Check that the listen backlog is large enough for all agents to reconnect at once. Linux only."""
    try:
        allowed = int(limit.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return []
    if allowed < BACKLOG:
        words = f"the system limits the listen backlog to {allowed}, the controller uses {BACKLOG}"
        return [warn("backlog", words, f"with hundreds of agents: sysctl -w net.core.somaxconn={BACKLOG}")]
    return [fine("backlog", f"the system allows a listen backlog of {BACKLOG}")]


def rendezvous(
    home: Path, number: int | None, used_by: str = "", binding: Callable[[str, int], None] = bind
) -> list[Finding]:
    """Check the rendezvous port of a site: `number`, or the port of a site with several machines."""
    if number is None:
        try:
            kept = json.loads((home / IDENTITY).read_text(encoding="utf-8"))
            number = int(kept["port"]) if int(kept["machines"]) > 1 else 0
        except (OSError, ValueError, KeyError, TypeError):
            return []
    if not number:
        return []
    return [port("rendezvous", "0.0.0.0", number, used_by, binding)]


@dataclass(frozen=True, slots=True)
class Trust:
    """How to verify the controller."""

    token: Token | None = None
    authority: str | None = None  # certificate in PEM that an agent stored
    server_name: str | None = None


def controller(url: str, trust: Trust, now: Callable[[], float] = time.time) -> list[Finding]:
    """Check that a controller answers at `url`, its certificate, its health and its clock."""
    base = check_url(url, insecure=True)
    found = [_reach(base)]
    if found[0].remedy:
        return found
    authority = trust.authority
    if base.scheme == "https" and authority is None:
        if trust.token is None or trust.token.pin is None:
            remedy = "pass its token with --token-file, or the --home of an agent that has joined"
            return [*found, warn("tls", f"there is no key to verify the controller at {url} with", remedy)]
        authority = fetch_authority(url, trust.token.pin)
    try:
        with open_http(url, authority, server_name=trust.server_name, insecure=True) as http:
            before = now()
            answer = http.get(wire.HEALTH)
            after = now()
    except Exception as error:
        why = mistrust(error, url)
        if why is None:
            return [*found, fail("controller", f"{url} does not answer: {error}", "see the controller's log")]
        remedy = "if the certificate is for other names, start the controller with --advertise, or pass --server-name"
        return [*found, fail("tls", why, remedy)]
    if base.scheme == "https":
        found.append(fine("tls", "the certificate is signed by this controller's authority"))
    else:
        found.append(_plain(base))
    found.append(_health(url, answer))
    skew = clock_skew(answer.headers.get("date"), before, after)
    return found if skew is None else [*found, skew]


def _reach(base: httpx.URL) -> Finding:
    port_number = base.port or (443 if base.scheme == "https" else 80)
    try:
        socket.create_connection((base.host, port_number), CONNECT_S).close()
    except socket.gaierror as error:
        remedy = "check the name, or use an IP address"
        return fail("reach", f"the name {base.host} cannot be resolved: {error.strerror}", remedy)
    except TimeoutError:
        remedy = "check the firewalls; the controller's machine must accept connections on this port"
        return fail("reach", f"{base.host}:{port_number} did not answer within {CONNECT_S:.0f} s", remedy)
    except OSError as error:
        remedy = "check that the controller runs and listens on this address (curtail controller start --host)"
        return fail("reach", f"cannot connect to {base.host}:{port_number}: {error.strerror or error}", remedy)
    return fine("reach", f"{base.host}:{port_number} accepts connections")


def _plain(base: httpx.URL) -> Finding:
    from curtail.security.tls import is_loopback

    if is_loopback(base.host):
        return fine("tls", "plain HTTP over loopback")
    return warn("tls", "plain HTTP: anyone on the network path can read credentials and weights", "use https")


def _health(url: str, answer: httpx.Response) -> Finding:
    if answer.status_code == 200:
        return fine("controller", f"{url} is healthy")
    text = " ".join(answer.text.split())[:200]
    return fail("controller", f"{url} answered {answer.status_code}: {text}", "see the controller's log")


def clock_skew(date: str | None, before: float, after: float) -> Finding | None:
    """Compare this machine's clock with a Date header that arrived between `before` and `after`; None without one."""
    if not date:
        return None
    try:
        theirs = parsedate_to_datetime(date).timestamp() + 0.5
    except ValueError:
        return warn(
            "clock", f"the controller's answer has an invalid Date header, {date!r}", "check the proxies in between"
        )
    skew = (before + after) / 2 - theirs
    words = f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the controller's"
    if abs(skew) > SKEW_S:
        return fail(
            "clock", f"{words}; beyond {SKEW_S:.0f} s the controller rejects requests", "run NTP on both machines"
        )
    if abs(skew) > CLOCK_S + (after - before):
        return warn("clock", words, "run NTP on both machines")
    return fine("clock", "this clock and the controller's agree")


__all__ = ["Trust", "clock_skew", "controller", "port", "rendezvous"]
