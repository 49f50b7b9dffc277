"""An HTTP transport to an application in this process, for plain (not async) clients."""

from __future__ import annotations

import asyncio

import httpx


class AsgiTransport(httpx.BaseTransport):
    """Sends the requests of an `httpx.Client` to an ASGI application, one at a time, without a socket.

    All requests share one event loop, and with it the threads that serve them: to make them anew for each request
    takes longer than the request.
    """

    def __init__(self, app, **options) -> None:
        self._inner = httpx.ASGITransport(app, **options)
        self._loop = asyncio.new_event_loop()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._loop.run_until_complete(self._ask(request))

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        request.read()
        answer = await self._inner.handle_async_request(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
