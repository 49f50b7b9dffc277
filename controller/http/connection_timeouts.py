"""Connections that do not keep their side: heads that never end, answers that nobody reads.

uvicorn bounds the size of what it buffers, and how long a connection may idle
after an answer. It does not bound how long a head may take, how long a refused
body goes on, or how long a reader may stall. These limits end the connection
without a word: whoever meets them is not listening. How many there may be is counted
in `controller.http.connection_limit`. Seconds.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from controller.http.listener import BACKLOG
from curtail.wire import limits

log = logging.getLogger("curtail.connections")

HEAD_S = 10.0
"""From a connection's beginning, or the first byte of a request, until its head is whole."""

DRAIN_S = 15.0
"""How long the rest of a body is read and dropped, after its request was answered."""

STALL_S = 120.0
"""How long an answer may wait for its reader: about a megabyte is under way then, so 9 kB/s are enough."""

IDLE_S = 75
"""How long a connection is kept between two requests. Agents send every few seconds."""

DEADLINES = {"head": HEAD_S, "idle": IDLE_S, "drain": DRAIN_S}

MOST_CONNECTIONS = 8192
"""Each may hold some 128 KiB of a body before anybody knows who sends it."""

SPARE_FILES = 200
"""File handles for everything but connections: store, uploads, versions, merges."""


class Connection(H11Protocol):
    """A connection with deadlines."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waits = ""  # for what: a key of `DEADLINES`
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; over TLS its handshake is done."""
        super().connection_made(transport)
        self._arm("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """The end: no timer may outlive it."""
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came: a head that is whole has no deadline any more."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """An answer is sent."""
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """The reader is behind."""
        super().pause_writing()
        if self._stall is None:
            self._stall = self.loop.call_later(STALL_S, self._end)

    def resume_writing(self) -> None:
        """The reader has caught up."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _look(self) -> None:
        """Which deadline counts now; one that runs already goes on."""
        state = self.conn.their_state
        answered = self.cycle is None or self.cycle.response_complete
        if state is h11.IDLE:
            waits = "head" if self.conn.trailing_data[0] or self.cycle is None else "idle"
        else:
            waits = "drain" if state is h11.SEND_BODY and answered else ""
        self._arm(waits)

    def _arm(self, waits: str) -> None:
        if waits == self._waits:
            return
        self._disarm()
        self._waits = waits
        if waits:
            self._deadline = self.loop.call_later(DEADLINES[waits], self._end)

    def _disarm(self) -> None:
        self._waits = ""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end(self) -> None:
        if self._waits != "idle":
            log.info("a connection of %s was ended: it was too slow", self.client[0] if self.client else "?")
        self.transport.abort()


def most_connections() -> int:
    """Connections at once that the file handles of this process allow."""
    return min(MOST_CONNECTIONS, max(64, file_handles() - SPARE_FILES))


def file_handles() -> int:
    """File handles that this process may have."""
    try:
        import resource
    except ImportError:  # not a Unix
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS + SPARE_FILES if soft == resource.RLIM_INFINITY else soft


def raise_file_handles() -> int:
    """Allow this process as many file handles as its user may have; how many. Two for each agent and its job."""
    try:
        import resource
    except ImportError:
        return file_handles()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_CONNECTIONS + SPARE_FILES
    wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.info("the limit of file handles stays at %d: %s", soft, error)
    return file_handles()


def options() -> dict[str, Any]:
    """What uvicorn is started with, so that these limits hold."""
    return {
        "http": Connection,
        "ws": "none",
        "proxy_headers": False,  # else whoever is on this machine chooses the address that is counted
        "timeout_keep_alive": IDLE_S,
        "h11_max_incomplete_event_size": limits.MAX_HEADERS,
        "backlog": BACKLOG,
        "lifespan": "off",
    }
