"""The document at /openapi.json: every path with its bodies, answers, limits and who may ask. OpenAPI 3.1.

Made of the same dataclasses and bounds that decode the messages, so that it cannot
say anything else; by hand is only the table of operations below, which a test
holds against the application's routes. Nothing here answers a request.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

from controller.auth.credentials import Role
from controller.http import rate_limit, request_limits
from curtail import wire
from curtail.security import signing
from curtail.wire import bounds, limits
from curtail.wire.bounds import Bound, Real, Text, Whole

AGENT, VIEWER, OPERATOR = Role.AGENT, Role.VIEWER, Role.OPERATOR

EXAMPLE_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
EXAMPLE_DIGEST = "sha-256=:n4bQgYhMfWWaL+qgxVrQFaO/TxsrC4Is0V1sFbDwCgg=:"

PRINTABLE = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"

MEANING = {
    400: "A body, parameter or header is not of the contract's form; the message names the field.",
    401: "No good credential, token or signature.",
    403: "The credential is good, but not for this.",
    404: "There is no such thing here.",
    408: "The body came too slowly.",
    409: "It conflicts with what is true here: an old epoch, another round, a quota.",
    413: "The body is too large.",
    414: "The path and query are too long.",
    415: "Not JSON, or a body with a Content-Encoding.",
    416: "The range lies outside of the file.",
    429: "Too many requests; Retry-After says when to come again.",
    431: "The header is too large.",
    500: "The controller failed inside.",
    507: "The controller's disk has no room.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    does: str
    roles: tuple[Role, ...] = ()  # (): open
    takes: type | None = None  # JSON
    gives: type | None = None  # JSON; None: see `document`
    signed: bool = False  # with the machine's key
    also: tuple[int, ...] = ()  # further refusals


OPERATIONS = (
    Operation("post", wire.JOIN, "Be admitted with a join token.", (), wire.JoinRequest, wire.JoinReply, True,
              (401, 403, 404, 409, 507)),
    Operation("post", wire.CREDENTIAL, "A new credential by the machine's key alone.", (), wire.RenewRequest,
              wire.JoinReply, True, (401, 409, 507)),
    Operation("get", wire.CACERTS, "The certificate of the controller's authority.", (), None, wire.CaCerts,
              also=(404,)),
    Operation("post", wire.HEARTBEAT, "Say what the machine does; hear whether it may train.", (AGENT,),
              wire.Heartbeat, wire.HeartbeatReply, True, (409, 507)),
    Operation("post", wire.LEAVE, "Stop for good.", (AGENT,), wire.LeaveRequest, wire.Ack, True, (409, 507)),
    Operation("get", wire.RUN, "What is fixed for the whole run.", (AGENT,), None, wire.RunInfo),
    Operation("post", wire.CHECKOUT, "Ask for work.", (AGENT,), wire.CheckoutRequest, wire.CheckoutReply,
              True, (409, 507)),
    Operation("post", wire.PROGRESS, "Tell how far the round is.", (AGENT,), wire.Progress, wire.ProgressReply,
              True, (409, 507)),
    Operation("post", wire.COMMIT, "Hand in a contribution; a repeat gets the first receipt.", (AGENT,),
              wire.CommitRequest, wire.Receipt, True, (409, 507)),
    Operation("post", wire.BLOBS, "Reserve room for a file; hear which parts are missing.", (AGENT,), wire.BlobOffer,
              wire.BlobStatus, also=(409, 507)),
    Operation("put", wire.PART, "Send one part of a reserved file.", (AGENT,), None, wire.Ack, also=(404, 507)),
    Operation("post", wire.BLOB_COMMIT, "All parts are there: check the whole and keep it.", (AGENT,), None,
              wire.BlobStatus, True, (404, 409, 507)),
    Operation("get", wire.BLOB, "A file, or the rest of it.", (AGENT,), None, None, also=(404, 416)),
    Operation("get", wire.STATUS, "The snapshot that every view is made of.", (VIEWER, OPERATOR), None, wire.Status),
    Operation("get", wire.TOKENS, "All tokens, without their secrets.", (OPERATOR,), None, wire.TokenList),
    Operation("post", wire.TOKENS, "Make a token.", (OPERATOR,), wire.TokenRequest, wire.TokenReply,
              also=(404, 409, 507)),
    Operation("post", wire.TOKEN_REVOKE, "Nobody gets in with this token any more.", (OPERATOR,),
              wire.TokenRevoke, wire.Ack, also=(404, 507)),
    Operation("get", wire.NODES, "All machines that joined.", (OPERATOR,), None, wire.NodeList),
    Operation("post", wire.NODE_REMOVE, "Forget a machine, or all of a site.", (OPERATOR,), wire.NodeRemove,
              wire.NodeRemoved, also=(404, 507)),
    Operation("post", wire.OVERRIDE, "Order all sites of a region to train or to pause, for a time.", (OPERATOR,),
              wire.OverrideRequest, wire.Ack, also=(404, 409, 507)),
    Operation("get", wire.HEALTH, "Can the controller do its work?"),
)  # fmt: skip

OPEN_STATUS = "The status needs no token where the controller listens on loopback only, or with --open-status."


def document(version: str) -> dict[str, Any]:
    """The whole document.

    Args: version: of this program.
    """
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schemas)
    _refer(wire.Problem, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "curtail controller",
            "version": version,
            "description": (
                f"Protocol {wire.PROTOCOL}. Bodies are strict: unknown, missing and repeated fields are refused."
                f" A request's header has {limits.MAX_HEADERS} bytes at most, its path and query {limits.MAX_TARGET},"
                f" a JSON body {limits.MAX_REQUEST}, a part {wire.PART_BYTES}. A body must come without a pause of"
                f" {request_limits.SILENCE_S:g} s and, after {request_limits.GRACE_S:g} s, at"
                f" {request_limits.LEAST_RATE} bytes per second. A credential may send {rate_limit.CONTROL.per_s:g}"
                f" requests per second, {rate_limit.CONTROL.burst:g} at once; heartbeats,"
                f" {rate_limit.HEARTBEATS.per_s:g} per second, count apart; parts and downloads do not count."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "securitySchemes": {"credential": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_')}".translate(_PLAIN),
        "summary": operation.does,
        "responses": _responses(operation, schemas),
    }
    if operation.roles:
        found["description"] = f"For: {', '.join(operation.roles)}."
        found["security"] = [{"credential": []}]
    if operation.path == wire.STATUS:
        found["description"] += f" {OPEN_STATUS}"
        found["security"].append({})
    if parameters := _parameters(operation):
        found["parameters"] = parameters
    if operation.path == wire.PART:
        schema = {"type": "string", "format": "binary", "maxLength": wire.PART_BYTES}
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": schema}}}
    elif operation.takes is not None:
        content = {"schema": _refer(operation.takes, schemas), "example": example(operation.takes)}
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


_PLAIN = str.maketrans("{}", "__")


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    found = []
    if "{sha256}" in operation.path:
        found.append(_parameter("path", "sha256", _text(bounds.HASHED), EXAMPLE_HASH, True))
    if "{number}" in operation.path:
        found.append(_parameter("path", "number", {"type": "integer", "minimum": 0}, 0, True))
    if operation.path == wire.PART:
        form = {"type": "string", "pattern": r"^sha-256=:[A-Za-z0-9+/]{43}=:$"}
        found.append(_parameter("header", "Content-Digest", form, EXAMPLE_DIGEST, True))
    if operation.path == wire.BLOB:
        form = {"type": "string", "pattern": r"^bytes=[0-9]{1,15}-[0-9]{0,15}$"}
        found.append(_parameter("header", "Range", form, "bytes=0-", False))
        found.append(_parameter("header", "If-Range", {"type": "string"}, f'"{EXAMPLE_HASH}"', False))
    if operation.signed:
        form = {"type": "string", "pattern": f"^{signing.FORM.pattern}$"}
        sample = f"v1;time=1700000000;nonce={'0' * 32};fence=1;sig={'A' * 86}=="
        found.append(_parameter("header", signing.HEADER, form, sample, True))
    return found


def _parameter(place: str, name: str, schema: dict[str, Any], sample: Any, required: bool) -> dict[str, Any]:
    return {"in": place, "name": name, "required": required, "schema": schema, "example": sample}


def _responses(operation: Operation, schemas: dict[str, Any]) -> dict[str, Any]:
    codes = {400, 414, 415, 431, 500, *operation.also}
    if operation.method != "get":
        codes |= {408, 413}
    if operation.path not in (wire.PART, wire.BLOB, wire.HEALTH):
        codes |= {429}
    if operation.roles:
        codes |= {401, 403}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[str, Any] = {str(code): {"description": MEANING[code], "content": refused} for code in sorted(codes)}
    if operation.gives is not None:
        content = {"schema": _refer(operation.gives, schemas), "example": example(operation.gives)}
        found["200"] = {"description": "Done.", "content": {"application/json": content}}
    elif operation.path == wire.BLOB:
        binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        found["200"] = {"description": "The whole file.", "content": binary}
        found["206"] = {"description": "The range that was asked for.", "content": binary}
    else:
        text = {"text/plain": {"schema": {"type": "string"}}}
        found["200"] = {"description": "It can.", "content": text}
        found["503"] = {"description": "It cannot, and why.", "content": text}
    return dict(sorted(found.items()))


# -- messages --------------------------------------------------------------------


def _refer(kind: type, schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to the schema of a message, which is put into `schemas`."""
    if kind.__name__ not in schemas:
        schemas[kind.__name__] = {}  # it may contain itself
        fields = {name: _schema(hint, schemas) for name, hint in bounds.annotations_of(kind).items()}
        schemas[kind.__name__] = {
            "type": "object",
            "description": (kind.__doc__ or "").partition("\n")[0],
            "additionalProperties": False,
            "required": list(fields),
            "properties": fields,
        }
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _schema(annotated: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    hint, bound = bounds.split(annotated)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _refer(hint, schemas)
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(option, schemas) for option in inner]}
    if origin is tuple:
        return {"type": "array", "maxItems": limits.MOST_ENTRIES, "items": _schema(inner[0], schemas)}
    if origin is dict:
        values = _schema(inner[1], schemas)
        return {"type": "object", "maxProperties": limits.MOST_ENTRIES, "additionalProperties": values}
    return _scalar(hint, bound)


def _scalar(hint: Any, bound: Bound | None) -> dict[str, Any]:
    if isinstance(bound, (Whole, Real)):
        return {"type": "integer" if hint is int else "number", "minimum": bound.low, "maximum": bound.high}
    if isinstance(bound, Text):
        return _text(bound)
    return {"type": {bool: "boolean", str: "string"}.get(hint, "null")}


def _text(bound: Text) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string", "maxLength": bound.longest}
    found["pattern"] = f"^(?:{bound.form})$" if bound.form else PRINTABLE
    return found | ({"description": bound.said} if bound.said else {})


def example(kind: type) -> dict[str, Any]:
    """A message with a good value in every field, as JSON has it."""
    return {name: _example(hint) for name, hint in bounds.annotations_of(kind).items()}


def _example(annotated: Any) -> Any:
    hint, bound = bounds.split(annotated)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return example(hint)
    if origin in (types.UnionType, typing.Union):
        return _example(inner[0])
    if origin is tuple:
        return [_example(inner[0])]
    if origin is dict:
        return {"name": _example(inner[1])}
    if isinstance(bound, (Whole, Real)):
        return hint(max(bound.low, 1) if bound.high >= 1 else bound.low)
    if hint is str:
        return EXAMPLE_HASH if isinstance(bound, Text) and bounds.HASH in bound.form else "word"
    return False
