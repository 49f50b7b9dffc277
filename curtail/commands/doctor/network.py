"""Can this machine be reached, and does it reach its controller: ports, names, TLS, the two clocks."""

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
"""Seconds between two clocks that nobody need mind; the header of an answer says whole seconds only."""


def bind(host: str, port: int) -> None:
    """Listen there for a moment. Raises: OSError: it is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1)


def port(what: str, host: str, number: int, used_by: str = "", binding: Callable[[str, int], None] = bind) -> Finding:
    """Is a port free?

    Args: used_by: who may listen there already, "" for nobody.
    """
    where = f"{host}:{number}"
    try:
        binding(host, number)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and used_by:
            return fine(what, f"{where} is in use: {used_by}")
        if error.errno == errno.EADDRINUSE:
            return fail(what, f"{where} is in use", "stop what listens there (ss -ltnp), or choose another port")
        if error.errno == errno.EACCES:
            return fail(what, f"{where} needs rights that this user lacks", "choose a port from 1024 on")
        return fail(what, f"cannot listen on {where}: {error.strerror or error}", "check the address")
    return fine(what, f"{where} is free")


def backlog(limit: Path = SOMAXCONN) -> list[Finding]:
    """May as many connections wait for the controller as come back at once after it was away? Linux only."""
    try:
        allowed = int(limit.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return []
    if allowed < BACKLOG:
        words = f"the system lets {allowed} connections wait, the controller asks for {BACKLOG}"
        return [warn("backlog", words, f"sysctl -w net.core.somaxconn={BACKLOG}, if there are hundreds of agents")]
    return [fine("backlog", f"{BACKLOG} connections may wait to be taken")]


def rendezvous(
    home: Path, number: int | None, used_by: str = "", binding: Callable[[str, int], None] = bind
) -> list[Finding]:
    """The port at which a site's machines meet; asked for, or that of an agent of several machines."""
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
    """How the controller is known."""

    token: Token | None = None
    authority: str | None = None  # certificate in PEM that an agent kept
    server_name: str | None = None


def controller(url: str, trust: Trust, now: Callable[[], float] = time.time) -> list[Finding]:
    """Does a controller answer at `url`, is it the right one, is it well, and what time does it have?"""
    base = check_url(url, insecure=True)
    found = [_reach(base)]
    if found[0].remedy:
        return found
    authority = trust.authority
    if base.scheme == "https" and authority is None:
        if trust.token is None or trust.token.pin is None:
            remedy = "give its token with --token-file, or --home of an agent that has joined"
            return [*found, warn("tls", f"nothing here says which controller must answer at {url}", remedy)]
        authority = fetch_authority(url, trust.token.pin)
    try:
        with open_http(url, authority, server_name=trust.server_name, insecure=True) as http:
            before = now()
            answer = http.get(wire.HEALTH)
            after = now()
    except Exception as error:
        why = mistrust(error, url)
        if why is None:
            return [*found, fail("controller", f"{url} does not answer: {error}", "look at the controller's log")]
        remedy = "the certificate is for other names: start the controller with --advertise, or give --server-name"
        return [*found, fail("tls", why, remedy)]
    if base.scheme == "https":
        found.append(fine("tls", "the certificate is of this controller's authority"))
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
        remedy = "check the name, or give an address"
        return fail("reach", f"the name {base.host} is not known: {error.strerror}", remedy)
    except TimeoutError:
        remedy = "is a firewall in between? The controller's machine must let this port in"
        return fail("reach", f"{base.host}:{port_number} does not answer within {CONNECT_S:.0f} s", remedy)
    except OSError as error:
        remedy = "does the controller run, and does it listen on this address? curtail controller start --host"
        return fail("reach", f"{base.host}:{port_number} refuses: {error.strerror or error}", remedy)
    return fine("reach", f"{base.host}:{port_number} can be reached")


def _plain(base: httpx.URL) -> Finding:
    from curtail.security.tls import is_loopback

    if is_loopback(base.host):
        return fine("tls", "plain HTTP over the loopback")
    return warn("tls", "plain HTTP: everyone on the way can read credentials and weights", "use https")


def _health(url: str, answer: httpx.Response) -> Finding:
    if answer.status_code == 200:
        return fine("controller", f"{url} is well")
    text = " ".join(answer.text.split())[:200]
    return fail("controller", f"{url} answers {answer.status_code}: {text}", "look at the controller's log")


def clock_skew(date: str | None, before: float, after: float) -> Finding | None:
    """Compare this machine's clock with a Date header, received between two moments of it; None without one."""
    if not date:
        return None
    try:
        theirs = parsedate_to_datetime(date).timestamp() + 0.5
    except ValueError:
        return warn("clock", f"the controller says its time is {date!r}", "look at what stands in between")
    skew = (before + after) / 2 - theirs
    words = f"this clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the controller's"
    if abs(skew) > SKEW_S:
        return fail("clock", f"{words}; requests that differ by {SKEW_S:.0f} s are refused", "run NTP on both machines")
    if abs(skew) > CLOCK_S + (after - before):
        return warn("clock", words, "run NTP on both machines")
    return fine("clock", "this clock and the controller's agree")


__all__ = ["Trust", "clock_skew", "controller", "port", "rendezvous"]
