"""The HTTP face: paths and bodies of `curtail.wire`, errors as `wire.Problem`.

Decides nothing: it reads a body, asks who sends it, hands the use case to the
store's thread and answers. Everything but the health check and the authority's
certificate needs a credential of the right role, at /v1/join a join token, or the
machine's key; the status is open where the controller is for this machine only.
Bytes of weights and token files are streamed in pieces; JSON bodies are bounded.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from controller.auth import tokens
from controller.auth.credentials import Caller, Forbidden, Role
from controller.auth.nonces import Replays
from controller.files.uploads import PIECE, RangeRefused, Uploads, check_name, parse_range, read_pieces
from controller.http import openapi
from controller.http.request_limits import Guard, Refusal, TooSlow
from controller.service import snapshot
from controller.service.service import Service
from controller.store import Transaction
from controller.store.rows import BlobRow, MachineRow
from curtail import __version__, wire
from curtail.errors import AuthError, CurtailError, DiskError, NotFound, Refused, UsageError, WireError
from curtail.security import signing
from curtail.system.clock import Clock
from curtail.wire import PART_BYTES, limits

log = logging.getLogger("curtail.api")

Result = TypeVar("Result")
Body = TypeVar("Body")


class TooLarge(WireError):
    """A body has more bytes than are taken."""


class NoJson(WireError):
    """A body is of another type."""


STATUS_OF: tuple[tuple[type[CurtailError], int], ...] = (
    (TooSlow, 408),
    (TooLarge, 413),
    (NoJson, 415),
    (RangeRefused, 416),
    (WireError, 400),
    (UsageError, 400),
    (Forbidden, 403),
    (AuthError, 401),
    (NotFound, 404),
    (Refused, 409),
    (DiskError, 507),
    (CurtailError, 500),
)
"""HTTP status of each error; the first match counts."""

WRITERS = 4
"""Threads that write, hash and sync uploads. More would only queue at the disk, before the store's own syncs."""


@dataclass(frozen=True, slots=True)
class Door:
    """Who the controller is to strangers, and what they may see."""

    authority: str = ""  # certificate in PEM
    pin: str | None = None  # hash of its public key; goes into every new token
    open_status: bool = False  # the status needs no token


def create_app(
    service: Service,
    uploads: Uploads,
    run_info: wire.RunInfo,
    healthy: Callable[[], str | None],
    door: Door = Door(),
    clock: Clock | None = None,
) -> FastAPI:
    """The application.

    Args: healthy: None, or why the controller cannot do its work. clock: of rates and paces; None: the system's.
    """
    app = FastAPI(title="curtail controller", version=__version__, docs_url=None, redoc_url=None)
    app.openapi = functools.partial(functools.cache(openapi.document), __version__)  # type: ignore[method-assign]
    app.add_middleware(Guard, answer=_refuse, clock=clock, wall=lambda: service.clock.wall())
    app.add_exception_handler(CurtailError, _problem)
    app.add_exception_handler(HTTPException, _no_such_path)
    app.add_exception_handler(RequestValidationError, _bad_parameter)
    app.add_exception_handler(Exception, _broken)
    writing, replays = CapacityLimiter(WRITERS), Replays()

    async def transact(use_case: Callable[[Transaction], Result]) -> Result:
        return await asyncio.wrap_future(service.store.submit(use_case))

    async def caller(request: Request, *roles: Role) -> Caller:
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not shown:
            raise AuthError("this request needs a credential", "agents join with a join token, others show a token")
        found = await transact(lambda tx: service.access.caller(tx, shown.strip()))
        found.need(*roles)
        return found

    async def asked_by(request: Request) -> MachineRow:
        machine = (await caller(request, Role.AGENT)).machine
        assert machine is not None, "an agent's credential belongs to a machine"
        return machine

    async def signed_by(request: Request, body: bytes) -> MachineRow:
        """The machine that sent a request which it must have signed, and never sent before, whatever broke since."""
        who = await asked_by(request)
        stamp = _signature(request, body, who.key, service.clock.wall())
        await transact(lambda tx: service.access.signed(tx, who, stamp))
        return who

    async def answer(
        request: Request, kind: type[Body], use_case: Callable[[Transaction, MachineRow, Body], Any]
    ) -> Response:
        """What `use_case` says to a site's message of this kind, which its machine must have signed."""
        who = await asked_by(request)
        raw = await _body(request)
        now = service.clock.wall()
        replays.take(who.key, _signature(request, raw, who.key, now), now)
        body = wire.decode(kind, raw)
        return _json(await transact(lambda tx: use_case(tx, who, body)))

    @app.post(wire.JOIN)
    async def join(request: Request) -> Response:
        raw = await _body(request)
        body = wire.decode(wire.JoinRequest, raw)
        stamp = _signature(request, raw, body.key, service.clock.wall())
        return _json(await transact(lambda tx: service.join(tx, body, stamp)))

    @app.post(wire.CREDENTIAL)
    async def credential(request: Request) -> Response:
        raw = await _body(request)
        body = wire.decode(wire.RenewRequest, raw)
        row = await transact(lambda tx: tx.machine(body.site, body.agent))
        if row is None or not row.key:
            raise AuthError("no machine with this key joined here", "join with a join token")
        stamp = _signature(request, raw, row.key, service.clock.wall())
        return _json(await transact(lambda tx: service.access.renew(tx, row, stamp)))

    @app.get(wire.CACERTS)
    async def cacerts() -> Response:
        if not door.authority:
            raise NotFound("this controller has no authority")
        return _json(wire.CaCerts(door.authority))

    @app.post(wire.HEARTBEAT)
    async def heartbeat(request: Request) -> Response:
        return await answer(request, wire.Heartbeat, service.heartbeat)

    @app.post(wire.LEAVE)
    async def leave(request: Request) -> Response:
        return await answer(request, wire.LeaveRequest, service.leave)

    @app.get(wire.RUN)
    async def run(request: Request) -> Response:
        await asked_by(request)
        return _json(run_info)

    @app.post(wire.CHECKOUT)
    async def checkout(request: Request) -> Response:
        return await answer(request, wire.CheckoutRequest, service.checkout)

    @app.post(wire.PROGRESS)
    async def progress(request: Request) -> Response:
        return await answer(request, wire.Progress, service.progress)

    @app.post(wire.COMMIT)
    async def commit(request: Request) -> Response:
        raw = await _body(request)
        who = await signed_by(request, raw)
        body = wire.decode(wire.CommitRequest, raw)
        return _json(await transact(lambda tx: service.commit(tx, who, body)))

    @app.post(wire.BLOBS)
    async def offer(request: Request) -> Response:
        who = await asked_by(request)
        body = wire.decode(wire.BlobOffer, await _body(request))
        await run_in_threadpool(uploads.tidy, service.clock.wall())
        # Size, quota and room first: what is refused leaves no trace.
        others = await transact(lambda tx: [name for name in tx.uploads_of(who.site) if name != body.sha256])
        gone = await run_in_threadpool(uploads.make_way, body.size, others, service.clock.wall())
        for name in gone:
            await transact(lambda tx, name=name: tx.end_upload(name))  # type: ignore[misc]
        await run_in_threadpool(uploads.check, body.sha256, body.size, [o for o in others if o not in gone])
        known = await transact(lambda tx: service.access.offered(tx, who, check_name(body.sha256)))
        if known is not None:
            return _json(wire.BlobStatus(known.sha256, known.size, PART_BYTES, (), complete=True))
        return _json(await run_in_threadpool(uploads.reserve, body.sha256, body.size))

    @app.put(wire.PART)
    async def part(request: Request, sha256: str, number: int) -> Response:
        who = await asked_by(request)
        await transact(lambda tx: service.access.check_upload(tx, who, check_name(sha256)))
        digest = request.headers.get("content-digest", "")
        with await to_thread.run_sync(uploads.begin_part, sha256, number, digest, limiter=writing) as arriving:
            _check_length(request, arriving.size)
            async for block in _blocks(request):
                await to_thread.run_sync(arriving.write, block, limiter=writing)
            await to_thread.run_sync(arriving.finish, limiter=writing)
        return _json(wire.Ack(True))

    @app.post(wire.BLOB_COMMIT)
    async def blob_commit(request: Request, sha256: str) -> Response:
        who = await signed_by(request, b"")
        known = await transact(lambda tx: service.access.check_upload(tx, who, check_name(sha256)))
        if known is None:
            path, size = await to_thread.run_sync(uploads.finish, sha256, limiter=writing)
            known = BlobRow(sha256, str(path), size, "contribution", who.site)
            await transact(lambda tx: service.access.uploaded(tx, known))
        return _json(wire.BlobStatus(sha256, known.size, PART_BYTES, (), complete=True))

    @app.get(wire.BLOB)
    async def blob(request: Request, sha256: str) -> Response:
        who = await asked_by(request)
        known = await transact(lambda tx: service.access.readable(tx, who, check_name(sha256)))
        if known is None:
            raise NotFound("there is no such blob", "it may belong to an old version; check out again")
        same = request.headers.get("if-range") in (None, f'"{sha256}"')
        first, stop = parse_range(request.headers.get("range") if same else None, known.size)
        partial = (first, stop) != (0, known.size)
        headers = {
            "content-length": str(stop - first),
            "accept-ranges": "bytes",
            "etag": f'"{sha256}"',
            "cache-control": "immutable",
        }
        if partial:
            headers["content-range"] = f"bytes {first}-{stop - 1}/{known.size}"
        pieces = _pieces(known, first, stop)
        await transact(lambda tx: service.booking.carried(who.site, stop - first))
        return StreamingResponse(
            pieces, 206 if partial else 200, headers=headers, media_type="application/octet-stream"
        )

    @app.get(wire.STATUS)
    async def status(request: Request) -> Response:
        if not door.open_status:
            await caller(request, Role.VIEWER, Role.OPERATOR)
        return _json(await transact(lambda tx: snapshot.make(tx, service)))

    @app.get(wire.TOKENS)
    async def token_list(request: Request) -> Response:
        await caller(request, Role.OPERATOR)
        return _json(await transact(lambda tx: tokens.listing(tx, service.clock.wall())))

    @app.post(wire.TOKENS)
    async def token_create(request: Request) -> Response:
        by = await caller(request, Role.OPERATOR)
        body = wire.decode(wire.TokenRequest, await _body(request))
        return _json(await transact(lambda tx: service.access.create_token(tx, body, door.pin, by)))

    @app.post(wire.TOKEN_REVOKE)
    async def token_revoke(request: Request) -> Response:
        by = await caller(request, Role.OPERATOR)
        body = wire.decode(wire.TokenRevoke, await _body(request))
        return _json(await transact(lambda tx: service.access.revoke_token(tx, body.id, by)))

    @app.get(wire.NODES)
    async def node_list(request: Request) -> Response:
        await caller(request, Role.OPERATOR)
        return _json(await transact(service.access.nodes))

    @app.post(wire.NODE_REMOVE)
    async def node_remove(request: Request) -> Response:
        by = await caller(request, Role.OPERATOR)
        body = wire.decode(wire.NodeRemove, await _body(request))
        return _json(await transact(lambda tx: service.access.remove_node(tx, body, by)))

    @app.post(wire.OVERRIDE)
    async def override(request: Request) -> Response:
        await caller(request, Role.OPERATOR)
        order = wire.decode(wire.OverrideRequest, await _body(request))
        return _json(await transact(lambda tx: service.override(tx, order)))

    @app.get(wire.HEALTH)
    async def health() -> Response:
        reason = healthy()
        text = "ok\n" if reason is None else f"{reason}\n"
        return Response(text, 200 if reason is None else 503, media_type="text/plain")

    return app


def _signature(request: Request, body: bytes, key: str, now: float) -> signing.Stamp:
    """Who holds the key `key` signed this request, now. Raises: AuthError."""
    if not key:
        raise AuthError("this machine joined without a key", "join again with a join token and this version of curtail")
    stamp = signing.read_stamp(request.headers.get(signing.HEADER))
    signing.check(stamp, key, request.method, request.url.path, body, now)
    return stamp


def _pieces(known: BlobRow, first: int, stop: int) -> Any:
    try:
        open(known.path, "rb").close()
    except OSError as error:
        raise NotFound(f"the blob's file is gone: {error.strerror}", "check out again") from error
    return read_pieces(Path(known.path), first, stop)


async def _body(request: Request, limit: int = limits.MAX_REQUEST) -> bytes:
    """The JSON in the request's body. Raises: WireError: longer than `limit` bytes, of another type, or cut short."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0]
    if kind.strip().lower() != "application/json":
        raise NoJson("the body is no JSON by its Content-Type", "send application/json")
    body = bytearray()
    async for piece in _stream(request):
        body += piece
        if len(body) > limit:
            raise TooLarge(f"the body is longer than {limit} bytes")
    return bytes(body)


def _check_length(request: Request, size: int) -> None:
    """Raises: WireError: the request announces another number of bytes than its part has."""
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) != size:  # that it is a number was checked
        raise WireError(f"the part has {size} bytes, the request announces {int(declared)}")


async def _blocks(request: Request) -> AsyncIterator[bytearray]:
    """The body in blocks of about `PIECE` bytes. The sender waits while one is written. Raises: WireError."""
    block = bytearray()
    async for piece in _stream(request):
        block += piece
        if len(block) >= PIECE:
            yield block
            block = bytearray()
    if block:
        yield block


async def _stream(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise WireError("the sender hung up before the body was complete") from None


def _json(message: Any) -> Response:
    return Response(wire.encode(message), media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, CurtailError)
    code = next(status for kind, status in STATUS_OF if isinstance(error, kind))
    if code >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    headers = dict(error.headers) if isinstance(error, RangeRefused) else {}
    if isinstance(error, TooSlow):
        headers["connection"] = "close"  # nobody waits for the rest
    return _say(code, wire.Problem(type(error).__name__, error.message, error.remedy or ""), headers)


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = "there is no such path" if error.status_code == 404 else "this path does not take this method"
    return _say(error.status_code, wire.Problem("NotFound", words, "see /openapi.json"), dict(error.headers or {}))


async def _bad_parameter(request: Request, error: Exception) -> Response:
    return _say(400, wire.Problem("WireError", "the number in the path is none", "see /openapi.json"))


async def _broken(request: Request, error: Exception) -> Response:
    """A fault of ours; what it was stands in the log, and is nobody else's business."""
    return _say(500, wire.Problem("CurtailError", "the controller failed inside", "see its log"))


async def _refuse(refusal: Refusal, scope: Any, receive: Any, send: Any) -> None:
    headers = {} if refusal.retry_s is None else {"retry-after": str(refusal.retry_s)}
    problem = wire.Problem("Throttled" if refusal.status == 429 else "WireError", refusal.message, refusal.remedy)
    await _say(refusal.status, problem, headers)(scope, receive, send)


def _say(code: int, problem: wire.Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(wire.encode(problem), code, headers=headers, media_type="application/json")
