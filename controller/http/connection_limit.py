"""The connection limit: a cap for all connections and one per address, counted from accept to close.

It applies before TLS: a connection counts during its handshake, and one too many costs
no more than its accept. Refused connections are closed silently: before the TLS handshake
no error can be sent. Connections from this machine have no cap per address and some places
reserved for them, so that its operator sees the run whatever comes from outside.
Units: connections, seconds.
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
"""Places reserved for connections from this machine; at most a quarter of all."""

HANDSHAKE_S = 10.0
"""Timeout of the TLS handshake, and of the TLS shutdown."""

AT_ONCE = 64
"""Connections refused in a row before the event loop serves the others again."""

SAY_S = 60.0
"""Least time between two log lines about refused connections."""


@dataclass(frozen=True, slots=True)
class Caps:
    """How many connections are allowed."""

    all: int
    each: int  # from one address other than this machine's
    own: int  # of `all`, reserved for this machine


def caps(most: int, share: float = ADDRESS_SHARE) -> Caps:
    """The caps if `most` connections are possible at all. `share`: the part that one address may hold, 0 to 1."""
    own = min(OWN, most // 4)
    return Caps(most, max(1, min(most - own, int(most * share))), own)


def origin(host: str) -> str:
    """What a peer is counted as: its IPv4 address, its IPv6 /64 network, or "" for this machine. Pure."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            # whoever has one IPv6 address usually has its whole /64
            return "" if address.is_loopback else str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)


class ConnectionCounter:
    """Counts connections by peer. Thread-safe: the garbage collector may count out a socket that was never closed."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self._by: dict[str, int] = {}
        self._all = 0
        self._lock = threading.RLock()

    def enter(self, who: str) -> str:
        """Count one more connection of `who`; "" if it is admitted, else the reason why not (and it does not count)."""
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
        """One connection of `who` has ended."""
        with self._lock:
            self._all -= 1
            self._by[who] -= 1
            if not self._by[who]:
                del self._by[who]

    def count(self, who: str | None = None) -> int:
        """How many connections there are, of `who` or in all."""
        with self._lock:
            return self._all if who is None else self._by.get(who, 0)


class Admitted(socket.socket):
    """An accepted connection; it counts until it is closed."""

    __slots__ = ("_gone",)

    def __init__(self, accepted: socket.socket, gone: Callable[[], None]) -> None:
        family, kind, proto = accepted.family, accepted.type, accepted.proto
        super().__init__(family, kind, proto, fileno=accepted.detach())
        # also if nobody closes it: its place would be lost until the controller restarts
        self._gone = weakref.finalize(self, gone)
        self._gone.atexit = False

    def close(self) -> None:
        """Close the socket and count it out, once."""
        super().close()
        self._gone()


class CountingListener(socket.socket):
    """The listening socket, which applies the limit at accept; takes over `listener`."""

    def __init__(self, listener: socket.socket, caps: Caps, clock: Clock | None = None) -> None:
        family, kind, proto = listener.family, listener.type, listener.proto
        super().__init__(family, kind, proto, fileno=listener.detach())
        self.crowd = ConnectionCounter(caps)
        self._clock = clock or SystemClock()
        self._refused, self._said = 0, float("-inf")

    def accept(self) -> tuple[socket.socket, Any]:
        """The next admitted connection; refused ones before it are closed.

        Raises: BlockingIOError: none waits. ConnectionAbortedError: many were refused; the event loop calls again.
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
    """asyncio's event loop with `HANDSHAKE_S` as timeout of TLS handshakes; uvicorn has no option for it."""

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
        """As asyncio's."""
        if options.get("ssl") is not None:
            options |= {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": HANDSHAKE_S}
        return await super().create_server(*arguments, **options)


def options() -> dict[str, Any]:
    """Options of `uvicorn.Config` for these limits and those of `controller.http.connection_timeouts`."""
    return {**connection_timeouts.options(), "loop": "controller.http.connection_limit:Loop"}
