"""Files over HTTP: an upload's offer, its parts and its end, and downloads.

Bytes are streamed in pieces and written, hashed and synced on a few threads of their
own, so that many transfers at a time take little memory and never hold up the loop or
the store. What an upload may have is decided in `controller.files.uploads`, whose file
it is in `controller.service.access`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from anyio import to_thread
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from controller.files.uploads import check_name
from controller.http.checks import AppContext, Incoming, stream
from controller.http.ranges import PIECE, parse_range, read_pieces
from controller.store.rows import BlobRow
from curtail import wire
from curtail.errors import NotFound, WireError


async def offer(context: AppContext, sent: Incoming) -> wire.BlobStatus:
    """Reserve room for a file; which parts are missing."""
    who, body, uploads = sent.machine, sent.body, context.uploads
    await run_in_threadpool(uploads.tidy, context.now())
    # Size, quota and room first: what is refused leaves no trace.
    others = await context.transact(lambda tx: [name for name in tx.uploads_of(who.site) if name != body.sha256])
    gone = await run_in_threadpool(uploads.make_way, body.size, others, context.now())
    for name in gone:
        await context.transact(lambda tx, name=name: tx.end_upload(name))  # type: ignore[misc]
    await run_in_threadpool(uploads.check, body.sha256, body.size, [o for o in others if o not in gone])
    known = await context.transact(lambda tx: context.service.access.offered(tx, who, check_name(body.sha256)))
    if known is not None:
        return wire.BlobStatus(known.sha256, known.size, uploads.part_bytes, (), complete=True)
    return await run_in_threadpool(uploads.reserve, body.sha256, body.size)


async def part(context: AppContext, sent: Incoming) -> wire.Ack:
    """Write one part of a reserved file while it arrives."""
    request, who, writing = sent.request, sent.machine, context.writing
    sha256, number = request.path_params["sha256"], int(request.path_params["number"])
    await context.transact(lambda tx: context.service.access.check_upload(tx, who, check_name(sha256)))
    digest = request.headers.get("content-digest", "")
    with await to_thread.run_sync(context.uploads.begin_part, sha256, number, digest, limiter=writing) as arriving:
        _check_length(request, arriving.size)
        async for block in _blocks(request):
            await to_thread.run_sync(arriving.write, block, limiter=writing)
        await to_thread.run_sync(arriving.finish, limiter=writing)
    return wire.Ack(True)


async def finish(context: AppContext, sent: Incoming) -> wire.BlobStatus:
    """Check a file of which all parts are there, and keep it."""
    who, sha256 = sent.machine, sent.request.path_params["sha256"]
    known = await context.transact(lambda tx: context.service.access.check_upload(tx, who, check_name(sha256)))
    if known is None:
        path, size = await to_thread.run_sync(context.uploads.finish, sha256, limiter=context.writing)
        known = BlobRow(sha256, str(path), size, "contribution", who.site)
        await context.transact(lambda tx: context.service.access.uploaded(tx, known))
    return wire.BlobStatus(sha256, known.size, context.uploads.part_bytes, (), complete=True)


async def download(context: AppContext, sent: Incoming) -> Response:
    """A file, or the range of it that the request names."""
    request, who, sha256 = sent.request, sent.machine, sent.request.path_params["sha256"]
    known = await context.transact(lambda tx: context.service.access.readable(tx, who, check_name(sha256)))
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
    await context.transact(lambda tx: context.service.energy_ledger.carried(who.site, stop - first))
    return StreamingResponse(pieces, 206 if partial else 200, headers=headers, media_type="application/octet-stream")


def _pieces(known: BlobRow, first: int, stop: int) -> Iterator[bytes]:
    try:
        open(known.path, "rb").close()
    except OSError as error:
        raise NotFound(f"the blob's file is gone: {error.strerror}", "check out again") from error
    return read_pieces(Path(known.path), first, stop)


def _check_length(request: Request, size: int) -> None:
    """Raises: WireError: the request announces another number of bytes than its part has."""
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) != size:  # that it is a number was checked
        raise WireError(f"the part has {size} bytes, the request announces {int(declared)}")


async def _blocks(request: Request) -> AsyncIterator[bytearray]:
    """The body in blocks of about `PIECE` bytes. The sender waits while one is written. Raises: WireError."""
    block = bytearray()
    async for piece in stream(request):
        block += piece
        if len(block) >= PIECE:
            yield block
            block = bytearray()
    if block:
        yield block
