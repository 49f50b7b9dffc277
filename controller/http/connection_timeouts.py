"""Timeouts for slow clients: request headers that never finish, responses nobody reads.

uvicorn bounds the size of its buffers and how long a connection may idle between requests.
It does not bound how long the headers of a request take, how long a refused body is sent on,
or how long a reader stalls. These timeouts close the connection silently: such a client is
not listening. The number of connections is limited in `controller.http.connection_limit`.
Seconds.
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
"""From the start of a connection, or the first byte of a request, to the end of its headers."""

DRAIN_S = 15.0
"""How long the rest of a body is read and dropped after its request was answered."""

STALL_S = 120.0
"""How long a response may wait for its reader. About a megabyte is buffered then, so 9 kB/s are enough."""

IDLE_S = 75
"""How long a connection is kept open between two requests. Agents send one every few seconds."""

DEADLINES = {"head": HEAD_S, "idle": IDLE_S, "drain": DRAIN_S}

MOST_CONNECTIONS = 8192
"""Each may buffer some 128 KiB of a body before its sender is known."""

SPARE_FILES = 200
"""File handles kept for everything but connections: store, uploads, versions, merges."""


class Connection(H11Protocol):
    """uvicorn's HTTP connection with timeouts (decision 024)."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waits = ""  # which timeout runs: a key of `DEADLINES`
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The connection begins; a TLS handshake is over."""
        super().connection_made(transport)
        self._arm("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ends: no timer may outlive it."""
        self._disarm()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes arrived: complete headers stop their timeout."""
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        """A response was sent."""
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        """The reader has fallen behind."""
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
        """Start the timeout of the present state; one that runs already continues."""
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
            log.info("closed a connection of %s: it was too slow", self.client[0] if self.client else "?")
        self.transport.abort()


def most_connections() -> int:
    """How many connections at once the file handles of this process allow."""
    return min(MOST_CONNECTIONS, max(64, file_handles() - SPARE_FILES))


def file_handles() -> int:
    """How many file handles this process may have."""
    try:
        import resource
    except ImportError:  # not a Unix
        return MOST_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS + SPARE_FILES if soft == resource.RLIM_INFINITY else soft


def raise_file_handles() -> int:
    """Raise this process's limit of file handles as far as its user may; returns it. A site takes two connections."""
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
    """Options of `uvicorn.Config` for these timeouts."""
    return {
        "http": Connection,
        "ws": "none",
        "proxy_headers": False,  # else a client on this machine could choose the address it is counted as
        "timeout_keep_alive": IDLE_S,
        "h11_max_incomplete_event_size": limits.MAX_HEADERS,
        "backlog": BACKLOG,
        "lifespan": "off",
    }
