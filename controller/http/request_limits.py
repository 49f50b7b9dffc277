"""Middleware before the application: limits of header and body size, request rate and upload speed.

Refuses before the sender is known: long headers and targets, encoded bodies, bodies whose
announced length exceeds what their path takes, requests beyond the sender's rate, and bodies
that arrive too slowly. The numbers are in `curtail.wire.limits`, `controller.http.rate_limit`
and here. Units: bytes, seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from controller.http.rate_limit import Rates
from curtail import wire
from curtail.errors import WireError
from curtail.system.clock import Clock, SystemClock
from curtail.wire import limits

log = logging.getLogger("curtail.api")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

SILENCE_S = 30.0
"""Longest pause between two pieces of a body."""

GRACE_S = 20.0
"""A body that takes longer must arrive at `LEAST_RATE` from then on."""

LEAST_RATE = 4 * 1024
"""Bytes per second. At this rate a part takes 70 minutes and the largest control message 36 s."""

_PART = re.compile(wire.PART.format(sha256="[^/]+", number="[^/]+"))
_BLOB = re.compile(wire.BLOB.format(sha256="[^/]+"))


class TooSlow(WireError):
    """The body of a request arrived too slowly."""


@dataclass(slots=True)
class Pace:
    """How fast a body arrives. Only the time spent waiting for it counts, not this side's own work. Pure."""

    got: int = 0
    waited: float = 0.0

    def patience(self) -> float:
        """Seconds until the next piece must arrive."""
        return max(0.0, min(SILENCE_S, GRACE_S + self.got / LEAST_RATE - self.waited))

    def take(self, size: int, waited: float) -> None:
        """A piece of `size` bytes arrived after `waited` seconds."""
        self.got += size
        self.waited += waited


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error response sent before the application sees the request."""

    status: int
    message: str
    remedy: str = ""
    retry_s: int | None = None


def inspect(scope: Scope) -> Refusal | None:
    """Why this request is refused by its headers alone, or None. Pure."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"]) > limits.MAX_TARGET:
        return Refusal(414, f"the path and query are longer than {limits.MAX_TARGET} bytes")
    if len(headers) > limits.MAX_FIELDS:
        return Refusal(431, f"the request has {len(headers)} header fields, at most {limits.MAX_FIELDS} are allowed")
    if sum(len(name) + len(value) for name, value in headers) > limits.MAX_HEADERS:
        return Refusal(431, f"the header is longer than {limits.MAX_HEADERS} bytes")
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            return Refusal(415, "a body with a Content-Encoding is refused", "send the bytes as they are")
    return _inspect_body(scope["method"], scope["path"], headers)


def _inspect_body(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> Refusal | None:
    declared = next((value for name, value in headers if name == b"content-length"), b"0")
    encoded = any(name == b"transfer-encoding" for name, _ in headers)
    if not re.fullmatch(rb"[0-9]{1,15}", declared):
        return Refusal(413, "the announced length of the body is no number that can be taken")
    if method in ("GET", "HEAD") and (encoded or int(declared) > 0):
        return Refusal(400, f"{method} takes no body", "send it without one")
    most = wire.PART_BYTES if _PART.fullmatch(path) else limits.MAX_REQUEST
    if int(declared) > most:
        return Refusal(413, f"the body has {int(declared)} bytes, at most {most} are taken here")
    return None


def is_control(method: str, path: str) -> bool:
    """Does this request count against its credential's rate? Parts and downloads do not: their size limits them."""
    return not (_PART.fullmatch(path) or (method == "GET" and _BLOB.fullmatch(path)))


class RequestLimits:
    """ASGI middleware that applies the limits of this module.

    Args:
        answer: sends a refusal.
        clock: its monotonic time is used for rates and upload speed; None: the system's.
        wall: Unix time by which signatures are checked; None: the clock's.
    """

    def __init__(
        self, app: Application, answer: Callable[[Refusal, Scope, Receive, Send], Awaitable[None]],
        clock: Clock | None = None, wall: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        self._app, self._answer, self._clock = app, answer, clock or SystemClock()
        self._wall = wall or self._clock.wall
        self.rates = Rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
            return
        shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        credential = hashlib.sha256(shown).hexdigest() if shown else ""
        refusal = inspect(scope) or self._too_often(scope, credential)
        send = self._dated(send)
        if refusal is not None:
            await self._answer(refusal, scope, receive, send)
            return
        await self._app(scope, self._paced(receive), self._learning(send, credential))

    def _too_often(self, scope: Scope, credential: str) -> Refusal | None:
        if scope["path"] == wire.HEALTH:
            return None
        if not is_control(scope["method"], scope["path"]) and self.rates.knows(credential):
            return None
        address = scope["client"][0] if scope.get("client") else ""
        wait = self.rates.ask(credential, address, scope["path"] == wire.HEARTBEAT, self._clock.monotonic())
        if wait <= 0:
            return None
        return Refusal(429, "too many requests", "ask less often; Retry-After says when again", max(1, math.ceil(wait)))

    def _dated(self, send: Send) -> Send:
        """`send` with a Date header of the clock by which signatures are checked.

        An agent signs with the time of the latest response, and signs again after a refusal. uvicorn makes its Date
        once a second: it would still be the old time in the second after the clock was set.
        """

        async def dating(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                date = formatdate(self._wall(), usegmt=True).encode("ascii")
                message["headers"] = [*message.get("headers", ()), (b"date", date)]
            await send(message)

        return dating

    def _learning(self, send: Send, credential: str) -> Send:
        """`send` that notes by the response whether the credential was accepted."""

        async def noting(message: MutableMapping[str, Any]) -> None:
            if credential and message["type"] == "http.response.start":
                if message["status"] == 401:
                    self.rates.refuse(credential)
                elif message["status"] < 400:
                    self.rates.admit(credential, self._clock.monotonic())
            await send(message)

        return noting

    def _paced(self, receive: Receive) -> Receive:
        """`receive` that raises `TooSlow` while the body is incomplete and too slow."""
        pace, whole = Pace(), False

        async def paced() -> MutableMapping[str, Any]:
            nonlocal whole
            if whole:  # only the end of the connection can come now
                return await receive()
            began = self._clock.monotonic()
            try:
                async with asyncio.timeout(pace.patience()):
                    message = await receive()
            except TimeoutError:
                raise TooSlow(
                    f"the body came too slowly: {pace.got} bytes so far, {LEAST_RATE} a second are the least"
                ) from None
            pace.take(len(message.get("body", b"")), self._clock.monotonic() - began)
            whole = not message.get("more_body", False)
            return message

        return paced
