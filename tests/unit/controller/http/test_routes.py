"""Every row of the table of routes: who is refused, what must be signed, and that the application has it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import requests

from controller.auth.credentials import Role
from controller.http import openapi, request_limits
from controller.http.app import create_app
from controller.http.checks import Signed
from controller.http.routes import ROUTES
from curtail import wire
from curtail.security.signing import HEADER, AgentKey, Signer

SHA = "0" * 64
ALL = [pytest.param(route, id=f"{route.method} {route.path}") for route in ROUTES]
GUARDED = [param for param, route in zip(ALL, ROUTES, strict=True) if route.roles]
SIGNED = [param for param, route in zip(ALL, ROUTES, strict=True) if route.signed]


@pytest.fixture(scope="module")
def ask(besieged):
    """ask(route, role, signed=..., body=..., headers=...): one good request, but for what is said."""
    with requests.Session() as session:
        session.trust_env = False

        def send(route, role=None, signed=True, body=None, **headers):
            path = route.path.format(sha256=SHA, number=0)
            if body is None:
                kind = route.takes if dataclasses.is_dataclass(route.takes) else None
                body = json.dumps(openapi.example(kind)).encode() if kind else b""
            made = besieged.headers(role, route.method, path, body) | {"Content-Type": "application/json"} | headers
            if not signed:
                del made[HEADER]
            return session.request(route.method, besieged.url + path, headers=made, data=body)

        yield send


def problem(reply):
    return wire.decode(wire.Problem, reply.content)


def test_the_application_serves_the_table_and_its_document_and_nothing_else():
    app = create_app(None, None, None, lambda: None)
    served = [(method, route.path) for route in app.routes for method in route.methods - {"HEAD"}]
    assert sorted(served) == sorted([*((r.method, r.path) for r in ROUTES), ("GET", "/openapi.json")])
    assert len({(r.method, r.path) for r in ROUTES}) == len(ROUTES)


@pytest.mark.parametrize("route", GUARDED)
def test_a_route_with_roles_refuses_who_shows_no_credential(ask, route):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
        reply = ask(route, **headers)
        assert reply.status_code == 401 and problem(reply).error == "AuthError"


@pytest.mark.parametrize("route", GUARDED)
def test_a_route_refuses_every_role_that_it_does_not_name(ask, route):
    others = [role for role in Role if role not in route.roles]
    assert others
    for role in others:
        reply = ask(route, role)
        assert reply.status_code == 403 and problem(reply).error == "Forbidden", role


@pytest.mark.parametrize("route", SIGNED)
def test_a_signed_route_refuses_what_is_unsigned_signed_by_another_or_sent_again(besieged, ask, route):
    role = route.roles[0] if route.roles else None
    stranger = Signer(AgentKey(), besieged.world.clock.wall, 1)
    path = route.path.format(sha256=SHA, number=0)
    assert ask(route, role, signed=False).status_code == 401
    body = json.dumps(openapi.example(route.takes)).encode() if route.takes else b""
    assert ask(route, role, body=body, **{HEADER: stranger.header(route.method, path, body)}).status_code == 401
    if route.signed is not Signed.KEY_OF_MESSAGE:
        once = {HEADER: besieged.signer.header(route.method, path, body)}
        assert ask(route, role, body=body, **once).status_code != 401
        again = ask(route, role, body=body, **once)
        assert again.status_code == 401 and "was seen before" in problem(again).message


@pytest.mark.parametrize("route", [p for p, r in zip(ALL, ROUTES, strict=True) if not r.signed and r.roles])
def test_a_route_that_is_not_signed_asks_for_no_signature(ask, route):
    assert ask(route, route.roles[0], signed=False).status_code not in (401, 403)


@pytest.mark.parametrize("route", GUARDED)
def test_the_credential_is_checked_before_the_body_but_where_the_fence_must_be_the_present_one(ask, route):
    if not dataclasses.is_dataclass(route.takes):
        return
    reply = ask(route, body=b"no json", **{"Content-Type": "text/plain"})
    assert reply.status_code == (415 if route.signed is Signed.NONCE_IN_STORE else 401)


@pytest.mark.parametrize("route", SIGNED)
def test_the_nonces_of_what_must_never_count_twice_are_in_the_store(route):
    once = {wire.JOIN, wire.CREDENTIAL, wire.COMMIT, wire.BLOB_COMMIT}
    assert (route.signed is not Signed.NONCE_IN_MEMORY) == (route.path in once)
    assert (route.signed is Signed.KEY_OF_MESSAGE) == (not route.roles)


@pytest.mark.parametrize("route", ALL)
def test_the_table_and_the_limits_before_the_application_agree(route):
    path = route.path.format(sha256=SHA, number=0)
    control = request_limits.is_control(route.method, path) and path != wire.HEALTH
    assert control == route.rate_limited
    large = {"method": route.method, "path": path, "query_string": b"", "raw_path": path.encode()}
    headers = [(b"content-length", str(wire.PART_BYTES).encode())]
    refusal = request_limits.inspect(large | {"headers": headers})
    assert (refusal is None) == (route.takes is bytes)


def test_a_number_in_a_path_is_checked_before_anything_else(besieged, ask):
    (part,) = [route for route in ROUTES if route.takes is bytes]
    for number in ("x", "-1", "1.0", "+1", "1_0", "9" * 10):
        reply = ask(dataclasses.replace(part, path=part.path.replace("{number}", number)))
        assert reply.status_code == 400 and "not a whole number" in problem(reply).message
