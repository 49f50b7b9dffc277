"""Checks a request before its route is called: body, credential, role, signature.

The route says which checks apply (`controller.http.routes`); this module carries them out,
in the same order for all routes of a kind. It raises the errors of `curtail.errors`, and
`controller.http.app` turns them into responses.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from anyio import CapacityLimiter
from starlette.requests import ClientDisconnect, Request

from controller.auth.credentials import Caller, Role
from controller.auth.nonces import NonceCache
from controller.files.uploads import Uploads
from controller.service.service import Service
from controller.store import Transaction
from controller.store.rows import MachineRow
from curtail import wire
from curtail.errors import AuthError, WireError
from curtail.security import signing
from curtail.wire import limits

Result = TypeVar("Result")

WRITERS = 4
"""Threads that write, hash and sync uploads. More would only queue at the disk, before the store's own syncs."""

NUMBER = re.compile(r"[0-9]{1,9}")
"""The number of a part in a path."""


class TooLarge(WireError):
    """A body has more bytes than are accepted."""


class NoJson(WireError):
    """The Content-Type of a body is not JSON."""


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """How the controller identifies itself, and what it shows without a token."""

    authority: str = ""  # certificate in PEM
    pin: str | None = None  # hash of its public key; goes into every new token
    open_status: bool = False  # the status needs no token


@dataclass(frozen=True, slots=True)
class AppContext:
    """What the calls of the routes use."""

    service: Service
    uploads: Uploads
    run_info: wire.RunInfo
    healthy: Callable[[], str | None]  # None, or why the controller cannot do its work
    identity: ServerIdentity
    writing: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(WRITERS))
    nonces: NonceCache = field(default_factory=NonceCache)

    async def transact(self, use_case: Callable[[Transaction], Result]) -> Result:
        """What `use_case` returns from one transaction on the store's thread."""
        return await asyncio.wrap_future(self.service.store.submit(use_case))

    def now(self) -> float:
        """Unix time."""
        return self.service.clock.wall()


class Signed(Enum):
    """How a request is signed, and where its nonce is remembered so that it counts once (decision 020)."""

    NONCE_IN_MEMORY = "with the machine's key, often: in memory, without a write to the disk"
    NONCE_IN_STORE = "with the machine's key, in its present fence only: in the store, where a restart keeps it"
    KEY_OF_MESSAGE = "with the key that the message names, before there is a credential: the route's call checks it"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request that passed the checks of its route."""

    request: Request
    raw: bytes = b""  # the body, but where it is streamed
    body: Any = None  # the message in it, of the type that the route takes
    caller: Caller | None = None  # None: the route is open

    @property
    def machine(self) -> MachineRow:
        """The machine that sent it; for routes of agents."""
        assert self.caller is not None and self.caller.machine is not None, "an agent's credential is of a machine"
        return self.caller.machine

    @property
    def sender(self) -> Caller:
        """Who sent it; for routes with roles."""
        assert self.caller is not None, "the route has roles"
        return self.caller

    def stamp(self, key: str, now: float) -> signing.Stamp:
        """Its signature with the key `key`, made lately. Raises: AuthError."""
        return check_signature(self.request, self.raw, key, now)


async def admit(
    context: AppContext, request: Request, roles: tuple[Role, ...], signed: Signed | None, takes: type | None
) -> Incoming:
    """Check a request and decode its body.

    Args: roles: who may send it; (): anybody. takes: the message in its body; None, `bytes`: the body is not read here.
    Raises: AuthError, Forbidden, Refused, WireError.
    """
    number = request.path_params.get("number")
    if number is not None and not NUMBER.fullmatch(number):
        raise WireError("the part number in the path is not a whole number", "see /openapi.json")
    message = None if takes in (None, bytes) else takes
    raw, caller = b"", None
    if signed is Signed.NONCE_IN_STORE:
        # The body comes first: it may take half a minute, and the machine's fence must be that of the present moment.
        raw = b"" if message is None else await read_body(request)
        caller = await identify(context, request, roles)
        await _take_once(context, Incoming(request, raw, None, caller))
    else:
        if roles:
            caller = await identify(context, request, roles)
        raw = b"" if message is None else await read_body(request)
        if signed is Signed.NONCE_IN_MEMORY:
            sent, now = Incoming(request, raw, None, caller), context.now()
            context.nonces.consume(sent.machine.key, sent.stamp(sent.machine.key, now), now)
    return Incoming(request, raw, None if message is None else wire.decode(message, raw), caller)


async def _take_once(context: AppContext, sent: Incoming) -> None:
    """Raises: AuthError, Refused: not signed, sent before (also before a restart), or of another fence."""
    who = sent.machine
    stamp = sent.stamp(who.key, context.now())
    await context.transact(lambda tx: context.service.access.signed(tx, who, stamp))


async def identify(context: AppContext, request: Request, roles: tuple[Role, ...]) -> Caller:
    """Whose credential the request shows. Raises: AuthError: nobody's. Forbidden: none of `roles`."""
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not shown:
        raise AuthError("this request needs a credential", "agents join with a join token, others show a token")
    found = await context.transact(lambda tx: context.service.access.caller(tx, shown.strip()))
    found.need(*roles)
    return found


def check_signature(request: Request, body: bytes, key: str, now: float) -> signing.Stamp:
    """The holder of the key `key` signed this request, now. Raises: AuthError."""
    if not key:
        raise AuthError("this machine joined without a key", "join again with a join token and this version of curtail")
    stamp = signing.read_stamp(request.headers.get(signing.HEADER))
    signing.verify_signature(stamp, key, request.method, request.url.path, body, now)
    return stamp


async def read_body(request: Request, limit: int = limits.MAX_REQUEST) -> bytes:
    """The JSON in the request's body. Raises: WireError: longer than `limit` bytes, of another type, or cut short."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise NoJson("the body is no JSON by its Content-Type", "send application/json")
    body = bytearray()
    async for piece in stream(request):
        body += piece
        if len(body) > limit:
            raise TooLarge(f"the body is longer than {limit} bytes")
    return bytes(body)


async def stream(request: Request) -> AsyncIterator[bytes]:
    """The pieces of the body as they arrive. Raises: WireError: it is cut short."""
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise WireError("the sender hung up before the body was complete") from None
