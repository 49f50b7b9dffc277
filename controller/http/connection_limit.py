"""Who may connect at all: a cap of connections, and a share of it for each address, counted from accept to close.

Stands before TLS, so that a connection counts while it still shakes hands, and so
that those that are too many cost nothing but their accept. What is refused is closed
without a word: before the handshake there is no language to say it in. Connections
of this machine have no share, and some places of their own, so that its views of the
run are there whatever comes from outside. Units: connections, seconds.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import logging
import socket
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controller.http import connection_timeouts
from controller.http.listener import ADDRESS_SHARE
from curtail.system.clock import Clock, SystemClock

log = logging.getLogger("curtail.connections")

OWN = 32
"""Places that only connections of this machine take; at most a quarter of all."""

HANDSHAKE_S = 10.0
"""From a connection's beginning until TLS stands, and from its end until it is closed."""

AT_ONCE = 64
"""Connections that are refused before those that are there get their turn again."""

SAY_S = 60.0
"""Between two lines of the log about refused connections."""


@dataclass(frozen=True, slots=True)
class Caps:
    """How many connections there may be."""

    all: int
    each: int  # of one address that is not this machine's own
    own: int  # of `all`, for this machine's own connections only


def caps(most: int, share: float = ADDRESS_SHARE) -> Caps:
    """The caps where `most` connections are possible at all. `share`: what one address may hold of them, up to 1."""
    own = min(OWN, most // 4)
    return Caps(most, max(1, min(most - own, int(most * share))), own)


def origin(host: str) -> str:
    """As whom a peer counts: its IPv4 address, its IPv6 network of 64 bits, or "" for this machine. Pure."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            # whoever has one IPv6 address most often has 2^64 of them
            return "" if address.is_loopback else str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)


class Crowd:
    """Those who are connected, counted. Any thread: a socket that was lost is counted out by the collector."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self._by: dict[str, int] = {}
        self._all = 0
        self._lock = threading.RLock()

    def enter(self, who: str) -> str:
        """Count one more of `who`; "" if it may come in, else why not, and it is not counted."""
        with self._lock:
            if self._all >= self.caps.all:
                return f"there are {self._all} connections, as many as there may be"
            if who and self._all - self._by.get("", 0) >= self.caps.all - self.caps.own:
                return f"there are {self._all} connections, the last places are for this machine's own"
            if who and self._by.get(who, 0) >= self.caps.each:
                return f"{who} has {self.caps.each} connections, its share"
            self._by[who] = self._by.get(who, 0) + 1
            self._all += 1
            return ""

    def leave(self, who: str) -> None:
        """One of `who` is gone."""
        with self._lock:
            self._all -= 1
            self._by[who] -= 1
            if not self._by[who]:
                del self._by[who]

    def count(self, who: str | None = None) -> int:
        """How many there are, of `who` or in all."""
        with self._lock:
            return self._all if who is None else self._by.get(who, 0)


class Admitted(socket.socket):
    """A connection that is counted until it is closed."""

    __slots__ = ("_gone",)

    def __init__(self, accepted: socket.socket, gone: Callable[[], None]) -> None:
        family, kind, proto = accepted.family, accepted.type, accepted.proto
        super().__init__(family, kind, proto, fileno=accepted.detach())
        # also if it is never closed: a place that is not given back would be lost for weeks
        self._gone = weakref.finalize(self, gone)
        self._gone.atexit = False

    def close(self) -> None:
        """Close it and give its place back, once."""
        super().close()
        self._gone()


class Gate(socket.socket):
    """The socket that is listened on; takes over `listener`."""

    def __init__(self, listener: socket.socket, caps: Caps, clock: Clock | None = None) -> None:
        family, kind, proto = listener.family, listener.type, listener.proto
        super().__init__(family, kind, proto, fileno=listener.detach())
        self.crowd = Crowd(caps)
        self._clock = clock or SystemClock()
        self._refused, self._said = 0, float("-inf")

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that may come in; the others before it are closed.

        Raises: BlockingIOError: there is none. ConnectionAbortedError: many were refused; the loop comes again.
        """
        for _ in range(AT_ONCE):
            accepted, address = super().accept()
            who = origin(str(address[0]))
            why = self.crowd.enter(who)
            if not why:
                return Admitted(accepted, functools.partial(self.crowd.leave, who)), address
            accepted.close()
            self._tell(why)
        raise ConnectionAbortedError

    def _tell(self, why: str) -> None:
        self._refused += 1
        now = self._clock.monotonic()
        if now - self._said >= SAY_S:
            log.warning("refused %d connections: %s", self._refused, why)
            self._refused, self._said = 0, now


class Loop(asyncio.SelectorEventLoop):
    """asyncio's loop, whose TLS connections must be made and ended in `HANDSHAKE_S`; uvicorn has no option for it."""

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
        """As asyncio's."""
        if options.get("ssl") is not None:
            options |= {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": HANDSHAKE_S}
        return await super().create_server(*arguments, **options)


def options() -> dict[str, Any]:
    """What uvicorn is started with, so that these limits and those of `controller.http.connection_timeouts` hold."""
    return {**connection_timeouts.options(), "loop": "controller.http.connection_limit:Loop"}
