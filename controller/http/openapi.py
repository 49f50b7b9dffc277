"""The OpenAPI 3.1 document at /openapi.json: every path with its bodies, responses, limits and roles.

Made of the table that the application is made of (`controller.http.routes`), and of the
dataclasses and bounds that decode the messages, so that it cannot say anything else. Nothing
here answers a request.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from controller.http import rate_limit, request_limits
from controller.http.routes import EXAMPLE_HASH, ROUTES, Route
from curtail import wire
from curtail.security import signing
from curtail.wire import bounds, limits
from curtail.wire.bounds import Bound, Real, Text, Whole

PRINTABLE = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]*$"

MEANING = {
    400: "A body, parameter or header is malformed; the message names the field.",
    401: "The credential, token or signature is missing or invalid.",
    403: "The credential is valid, but not for this.",
    404: "No such resource.",
    408: "The body came too slowly.",
    409: "It conflicts with the present state: an old fencing token, another round, a quota.",
    413: "The body is too large.",
    414: "The path and query are too long.",
    415: "Not JSON, or a body with a Content-Encoding.",
    416: "The range lies outside of the file.",
    429: "Too many requests; Retry-After says when to retry.",
    431: "The header is too large.",
    500: "Internal error of the controller.",
    507: "The controller's disk is full.",
}


OPEN_STATUS = "The status needs no token where the controller listens on loopback only, or with --open-status."


def document(version: str) -> dict[str, Any]:
    """The whole document.

    Args: version: of this program.
    """
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas)
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


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    name = f"{route.method.lower()}_{route.path.strip('/').replace('/', '_')}"
    found: dict[str, Any] = {
        "operationId": name.translate(_PLAIN),
        "summary": route.summary,
        "responses": _responses(route, schemas),
    }
    if route.roles:
        found["description"] = f"For: {', '.join(route.roles)}."
        found["security"] = [{"credential": []}]
    if route.status_view:
        found["description"] += f" {OPEN_STATUS}"
        found["security"].append({})
    if parameters := _parameters(route):
        found["parameters"] = parameters
    if route.takes is bytes:
        schema = {"type": "string", "format": "binary", "maxLength": wire.PART_BYTES}
        found["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": schema}}}
    elif route.takes is not None:
        content = {"schema": _refer(route.takes, schemas), "example": example(route.takes)}
        found["requestBody"] = {"required": True, "content": {"application/json": content}}
    return found


_PLAIN = str.maketrans("{}", "__")


def _parameters(route: Route) -> list[dict[str, Any]]:
    found = []
    if "{sha256}" in route.path:
        found.append(_parameter("path", "sha256", _text(bounds.HASHED), EXAMPLE_HASH, True))
    if "{number}" in route.path:
        found.append(_parameter("path", "number", {"type": "integer", "minimum": 0}, 0, True))
    for header in route.headers:
        form = {"type": "string"} | ({"pattern": header.pattern} if header.pattern else {})
        found.append(_parameter("header", header.name, form, header.example, header.required))
    if route.signed:
        form = {"type": "string", "pattern": f"^{signing.FORM.pattern}$"}
        sample = f"v1;time=1700000000;nonce={'0' * 32};fence=1;sig={'A' * 86}=="
        found.append(_parameter("header", signing.HEADER, form, sample, True))
    return found


def _parameter(place: str, name: str, schema: dict[str, Any], sample: Any, required: bool) -> dict[str, Any]:
    return {"in": place, "name": name, "required": required, "schema": schema, "example": sample}


def _responses(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    codes = {400, 414, 415, 431, 500, *route.refusals}
    if route.method != "GET":
        codes |= {408, 413}
    if route.rate_limited:
        codes |= {429}
    if route.roles:
        codes |= {401, 403}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    found: dict[str, Any] = {str(code): {"description": MEANING[code], "content": refused} for code in sorted(codes)}
    if route.gives is bytes:
        binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        found["200"] = {"description": "The whole file.", "content": binary}
        found["206"] = {"description": "The range that was asked for.", "content": binary}
    elif route.gives is str:
        text = {"text/plain": {"schema": {"type": "string"}}}
        found["200"] = {"description": "It can.", "content": text}
        found["503"] = {"description": "It cannot, and why.", "content": text}
    elif route.gives is not None:
        content = {"schema": _refer(route.gives, schemas), "example": example(route.gives)}
        found["200"] = {"description": "Done.", "content": {"application/json": content}}
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
