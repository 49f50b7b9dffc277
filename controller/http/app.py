"""The HTTP application: the routes of `controller.http.routes`, and errors as `wire.Problem`.

For each request it runs the checks of the route, calls the route and encodes the result.
Limits that apply before (header sizes, rates, slow senders) are in
`controller.http.request_limits`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from controller.auth.credentials import Forbidden
from controller.files.uploads import Uploads
from controller.http import openapi
from controller.http.checks import AppContext, NoJson, ServerIdentity, TooLarge, admit
from controller.http.ranges import RangeRefused
from controller.http.request_limits import Refusal, RequestLimits, TooSlow
from controller.http.routes import ROUTES, Route
from controller.service.service import Service
from curtail import __version__, wire
from curtail.errors import AuthError, CurtailError, DiskError, NotFound, Refused, UsageError, WireError
from curtail.system.clock import Clock

__all__ = ["STATUS_OF", "ServerIdentity", "create_app"]

log = logging.getLogger("curtail.api")

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


def create_app(
    service: Service,
    uploads: Uploads,
    run_info: wire.RunInfo,
    healthy: Callable[[], str | None],
    identity: ServerIdentity | None = None,
    clock: Clock | None = None,
) -> FastAPI:
    """The application.

    Args:
        healthy: None, or why the controller cannot do its work.
        door: None: neither authority nor pin are told, and the status needs a token.
        clock: of rates and paces; None: the system's.
    """
    app = FastAPI(title="curtail controller", version=__version__, docs_url=None, redoc_url=None)
    app.openapi = functools.partial(functools.cache(openapi.document), __version__)  # type: ignore[method-assign]
    app.add_middleware(RequestLimits, answer=_refuse, clock=clock, wall=lambda: service.clock.wall())
    app.add_exception_handler(CurtailError, _problem)
    app.add_exception_handler(HTTPException, _no_such_path)
    app.add_exception_handler(Exception, _broken)
    context = AppContext(service, uploads, run_info, healthy, identity or ServerIdentity())
    for route in ROUTES:
        app.add_api_route(route.path, _endpoint(context, route), methods=[route.method], response_model=None)
    return app


def _endpoint(context: AppContext, route: Route) -> Callable[[Request], Awaitable[Response]]:
    roles = () if route.status_view and context.identity.open_status else route.roles

    async def endpoint(request: Request) -> Response:
        answer = await route.call(context, await admit(context, request, roles, route.signed, route.takes))
        return answer if isinstance(answer, Response) else _json(answer)

    return endpoint


def _json(message: Any) -> Response:
    return Response(wire.encode(message), media_type="application/json")


# -- errors ----------------------------------------------------------------------


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


async def _broken(request: Request, error: Exception) -> Response:
    """A fault of ours; what it was stands in the log, and is nobody else's business."""
    return _say(500, wire.Problem("CurtailError", "the controller failed inside", "see its log"))


async def _refuse(refusal: Refusal, scope: Any, receive: Any, send: Any) -> None:
    headers = {} if refusal.retry_s is None else {"retry-after": str(refusal.retry_s)}
    problem = wire.Problem("Throttled" if refusal.status == 429 else "WireError", refusal.message, refusal.remedy)
    await _say(refusal.status, problem, headers)(scope, receive, send)


def _say(code: int, problem: wire.Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(wire.encode(problem), code, headers=headers, media_type="application/json")
