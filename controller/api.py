"""The HTTP face: paths and bodies of `curtail.wire`, errors as `wire.Problem`.

Decides nothing: it reads a body, asks who sends it, hands the use case to the
store's thread and answers. Everything but the status and the health check needs
a credential, or at /v1/join a join token. Bytes of weights and token files are
streamed in pieces; JSON bodies are bounded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from controller.blobs import PIECE, Uploads, check_name, parse_range, read_pieces
from controller.rows import BlobRow, MachineRow
from controller.service import Service
from controller.store import Transaction
from curtail import __version__, wire
from curtail.errors import AuthError, ConfigError, CurtailError, DiskError, NotFound, Refused, WireError
from curtail.wire import PART_BYTES

log = logging.getLogger("curtail.api")

Result = TypeVar("Result")
Body = TypeVar("Body")

STATUS_OF: tuple[tuple[type[CurtailError], int], ...] = (
    (WireError, 400),
    (ConfigError, 400),
    (AuthError, 401),
    (NotFound, 404),
    (Refused, 409),
    (DiskError, 507),
    (CurtailError, 500),
)
"""HTTP status of each error; the first match counts."""

WRITERS = 4
"""Threads that write, hash and sync uploads. More would only queue at the disk, before the store's own syncs."""


def create_app(
    service: Service, uploads: Uploads, run_info: wire.RunInfo, healthy: Callable[[], str | None]
) -> FastAPI:
    """The application.

    Args: healthy: None, or why the controller cannot do its work.
    """
    app = FastAPI(title="curtail controller", version=__version__, docs_url=None, redoc_url=None)
    app.add_exception_handler(CurtailError, _problem)
    writing = CapacityLimiter(WRITERS)

    async def transact(use_case: Callable[[Transaction], Result]) -> Result:
        return await asyncio.wrap_future(service.store.submit(use_case))

    async def asked_by(request: Request) -> MachineRow:
        scheme, _, credential = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise AuthError("this request needs a credential", "join with a join token first")
        return await transact(lambda tx: service.authenticate(tx, credential.strip()))

    async def answer(
        request: Request, kind: type[Body], use_case: Callable[[Transaction, MachineRow, Body], Any]
    ) -> Response:
        """What `use_case` says to a site's message of this kind."""
        who = await asked_by(request)
        body = wire.decode(kind, await _body(request))
        return _json(await transact(lambda tx: use_case(tx, who, body)))

    @app.post(wire.JOIN)
    async def join(request: Request) -> Response:
        body = wire.decode(wire.JoinRequest, await _body(request))
        return _json(await transact(lambda tx: service.join(tx, body)))

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
        return await answer(request, wire.CommitRequest, service.commit)

    @app.post(wire.BLOBS)
    async def offer(request: Request) -> Response:
        await asked_by(request)
        body = wire.decode(wire.BlobOffer, await _body(request))
        known = await transact(lambda tx: tx.blob(check_name(body.sha256)))
        if known is not None:
            return _json(wire.BlobStatus(known.sha256, known.size, PART_BYTES, (), complete=True))
        return _json(await run_in_threadpool(uploads.reserve, body.sha256, body.size))

    @app.put(wire.PART)
    async def part(request: Request, sha256: str, number: int) -> Response:
        await asked_by(request)
        digest = request.headers.get("content-digest", "")
        with await to_thread.run_sync(uploads.begin_part, sha256, number, digest, limiter=writing) as arriving:
            async for block in _blocks(request):
                await to_thread.run_sync(arriving.write, block, limiter=writing)
            await to_thread.run_sync(arriving.finish, limiter=writing)
        return _json(wire.Ack(True))

    @app.post(wire.BLOB_COMMIT)
    async def blob_commit(request: Request, sha256: str) -> Response:
        await asked_by(request)
        known = await transact(lambda tx: tx.blob(check_name(sha256)))
        if known is None:
            path, size = await to_thread.run_sync(uploads.finish, sha256, limiter=writing)
            known = BlobRow(sha256, str(path), size, "contribution")
            await transact(lambda tx: tx.put_blob(known))
        return _json(wire.BlobStatus(sha256, known.size, PART_BYTES, (), complete=True))

    @app.get(wire.BLOB)
    async def blob(request: Request, sha256: str) -> Response:
        await asked_by(request)
        known = await transact(lambda tx: tx.blob(check_name(sha256)))
        if known is None:
            raise NotFound("there is no such blob", "it may belong to an old version; check out again")
        first, stop = parse_range(request.headers.get("range"), known.size)
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
        return StreamingResponse(
            pieces, 206 if partial else 200, headers=headers, media_type="application/octet-stream"
        )

    @app.get(wire.STATUS)
    async def status() -> Response:
        return _json(await transact(service.status))

    @app.get(wire.HEALTH)
    async def health() -> Response:
        reason = healthy()
        return Response("ok\n" if reason is None else f"{reason}\n", 200 if reason is None else 503)

    return app


def _pieces(known: BlobRow, first: int, stop: int) -> Any:
    try:
        open(known.path, "rb").close()
    except OSError as error:
        raise NotFound(f"the blob's file is gone: {error.strerror}", "check out again") from error
    return read_pieces(Path(known.path), first, stop)


async def _body(request: Request, limit: int = wire.MAX_BODY) -> bytes:
    """The request's body. Raises: WireError: longer than `limit` bytes, or cut short."""
    body = bytearray()
    async for piece in _stream(request):
        body += piece
        if len(body) > limit:
            raise WireError(f"the body is longer than {limit} bytes")
    return bytes(body)


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
    problem = wire.Problem(type(error).__name__, error.message, error.remedy or "")
    return Response(wire.encode(problem), code, media_type="application/json")
