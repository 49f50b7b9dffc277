"""Whatever is sent to the controller: never a 5xx, never a crash, never a success for who may not.

The bodies are made from the dataclasses, mostly of values that mean something to this controller (its site, epoch,
round, file), so that they come further in than noise does; some fields are noise. A few in the suite; more with

    CURTAIL_FUZZ=2000 python -m pytest tests/unit/controller/http/test_fuzz_api.py

What is made from the document at /openapi.json alone is in test_schemathesis.py.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import typing

import httpx
import pytest
from asgi import AsgiTransport
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from controller.http import openapi
from controller.http.routes import ROUTES
from curtail import wire
from curtail.wire import limits
from curtail.wire.bounds import Real, Text, Whole

COUNT = int(os.environ.get("CURTAIL_FUZZ", "20"))
fuzz = settings(
    max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate]
)
DOCUMENT = openapi.document("0")
ROLES = (None, "viewer", "operator", "agent")
GUESSES = ("Bearer wrong", "Bearer ct0.abc.wrong", "Basic agent", "Bearer", "bearer \xff", "Bearer " + "x" * 5000)
BLOB = b"a contribution"
SHA = hashlib.sha256(BLOB).hexdigest()
NEW = {"site": ["b", "c"], "agent": ["agent-b", "agent-c"]}  # joins and removals leave the site alone that sends

KNOWN: dict[str, list[object]] = {
    "site": ["a"], "agent": ["agent-a"], "region": ["A", "B", ""], "fence": [1], "job": ["job", "other"],
    "state": ["IDLE", "TRAINING", "DRAINING"], "phase": ["paused", "start", "train", "sync", "hold", "drain"],
    "round": [1, 2], "base_version": [0], "held_version": [0], "blob": [SHA], "sha256": [SHA, "1" * 64],
    "size": [len(BLOB), 1000], "codec": ["weights", "int8"], "steps": [1, 2], "samples": [4, 8], "tokens": [32, 64],
    "protocol": [wire.PROTOCOL], "token": ["ct0.abc.secret"], "role": ["agent", "viewer", "operator"],
    "action": ["train", "pause", "clear"], "machines": [1, 2], "address": ["", "127.0.0.1"], "crew": [""],
    "crew_rank": [0], "crew_size": [1], "uses": [1, None], "seconds": [1.0, 3600.0],
}  # fmt: skip
NOISE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([2**53, 2**63, -(2**63) - 1, 10**400, "../../etc/passwd", "\x00", "a" * 70_000, "\ud800", "%2e/"]),
)  # fmt: skip


def by_rule(hint, rule):
    """Any value that the rule of a field allows."""
    if hint is bool:
        return st.booleans()
    if isinstance(rule, Whole):
        return st.integers(rule.low, rule.high)
    if isinstance(rule, Real):
        return st.floats(rule.low, rule.high)
    if isinstance(rule, Text) and rule.form:
        return st.from_regex(rule.form, fullmatch=True, alphabet=st.characters(codec="ascii"))
    assert isinstance(rule, Text), "every text and number of a request has a rule"
    return st.text(st.characters(exclude_categories=["C", "Z"]), max_size=min(40, rule.longest))


@st.composite
def mostly(draw, known, other):
    """Nine times of ten something known."""
    return draw(st.sampled_from(known)) if draw(st.integers(0, 9)) else draw(other)


def field(kind, name, hint, known):
    options = typing.get_args(hint) or (hint,)
    choices = [st.none()] if type(None) in options else []
    if dataclasses.is_dataclass(options[0]):
        choices.append(message(options[0], known))
    else:
        choices.append(by_rule(options[0], wire.bound_of(kind, name)))
    return mostly(known[name], st.one_of(*choices)) if name in known else st.one_of(*choices)


def message(kind, known):
    return st.fixed_dictionaries({name: field(kind, name, hint, known) for name, hint in wire.hints_of(kind).items()})


@st.composite
def bodies(draw, kind, known):
    """A body, most often a good one."""
    value = draw(message(kind, known))
    what = draw(st.sampled_from(["good"] * 5 + ["noise", "less", "more", "bytes", "other"]))
    if what == "noise":
        value[draw(st.sampled_from(sorted(value)))] = draw(NOISE)
    elif what == "less":
        del value[draw(st.sampled_from(sorted(value)))]
    elif what == "more":
        value["more"] = draw(NOISE)
    elif what == "bytes":
        return draw(st.binary(max_size=50))
    elif what == "other":
        value = draw(NOISE)
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def ask(besieged):
    """ask(method, path, headers, content): one request in this process."""
    transport = AsgiTransport(besieged.app, raise_app_exceptions=False)
    http = httpx.Client(transport=transport, base_url="http://127.0.0.1")
    assert besieged.world.upload(BLOB) == SHA
    base = besieged.world.store.call(lambda tx: tx.latest_version()).digest
    KNOWN["base_digest"] = KNOWN["held_digest"] = [base]
    KNOWN["digest"] = ["", base]
    KNOWN["key"] = [besieged.signer.key.public]

    def send(method, path, headers=None, content=b""):
        encoded = [(name, value.encode("latin-1", "replace")) for name, value in (headers or {}).items()]
        return http.request(method.upper(), path, headers=encoded, content=content)

    yield send
    http.close()


def check(route, allowed, reply):
    """Nothing but what the document says, and no success without the right."""
    codes = DOCUMENT["paths"][route.path][route.method.lower()]["responses"]
    assert str(reply.status_code) in codes and reply.status_code < 500, reply.text
    assert allowed or reply.status_code >= 400, "it succeeded without the right to"
    if reply.status_code >= 400:
        problem = wire.decode(wire.Problem, reply.content)
        assert problem.error and len(problem.message) < 2000 and "Traceback" not in problem.message
    elif dataclasses.is_dataclass(route.gives):
        wire.decode(route.gives, reply.content)


@st.composite
def credentials(draw):
    """(role whose credential is shown or None, Authorization where it is a guess)."""
    role = draw(st.sampled_from([*ROLES, "own", "own", "own", "own"]))
    return role, draw(st.sampled_from(GUESSES)) if role is None else None


def headers_of(besieged, route, shown, path, body):
    role, guess = shown
    if role == "own":
        role = route.roles[0].value if route.roles else None
    headers = besieged.headers(role, route.method, path, body)
    if guess is not None and route.roles:
        headers["Authorization"] = guess
    return headers, not route.roles or role in [allowed.value for allowed in route.roles]


@pytest.mark.parametrize("route", [pytest.param(r, id=r.path) for r in ROUTES if dataclasses.is_dataclass(r.takes)])
def test_no_body_makes_the_controller_fail_or_lets_anybody_in(besieged, ask, route):
    leaves_alone = route.path in (wire.JOIN, wire.CREDENTIAL, wire.NODE_REMOVE)

    @fuzz
    @given(body=bodies(route.takes, KNOWN | NEW if leaves_alone else KNOWN), shown=credentials())
    def run(body, shown):
        headers, allowed = headers_of(besieged, route, shown, route.path, body)
        check(route, allowed, ask(route.method, route.path, content=body, headers=headers))

    run()


@pytest.mark.parametrize(
    "route", [pytest.param(r, id=f"{r.method} {r.path}") for r in ROUTES if r.takes in (None, bytes)]
)
def test_no_path_or_header_makes_the_controller_fail_or_lets_anybody_in(besieged, ask, route):
    odd = st.text(
        st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="/?#%\\"), min_size=1, max_size=70
    )
    names = mostly([SHA, "1" * 64], st.one_of(st.sampled_from(["A" * 64, "%2e%2e%2f%2e%2e", "%00", "%ff", "."]), odd))
    numbers = mostly(["0"], st.one_of(st.sampled_from(["-1", "3", "9" * 5000, "1e3", "0x1", "%D9%A3", "1.0"]), odd))
    ranges = st.sampled_from(["bytes=0-", "bytes=1-2", "bytes=99-", "bytes=-1", "bytes=" + "9" * 5000 + "-", "x", ""])

    @fuzz
    @given(
        name=names, number=numbers, range_=ranges, body=st.binary(max_size=100), fits=st.booleans(), shown=credentials()
    )
    def run(name, number, range_, body, fits, shown):
        path = route.path.format(sha256=name, number=number)
        if "/." in path:  # it is made shorter before it is sent, to another path
            path = path.replace("/.", "/x.")
        body = body if route.method == "PUT" else b""
        headers, allowed = headers_of(besieged, route, shown, path, b"")
        sum_ = base64.b64encode(hashlib.sha256(body).digest()).decode()
        if route.path == wire.PART:
            headers["Content-Digest"] = f"sha-256=:{sum_ if fits else '0' * 44}:"
        elif route.path == wire.BLOB:
            headers |= {"Range": range_, "If-Range": f'"{name}"'}
        reply = ask(route.method, path, content=body, headers=headers)
        if reply.status_code == 404 and b"no such path" in reply.content:
            return  # a name with a slash in it is another path
        check(route, allowed, reply)

    run()


HOSTILE_HEADERS = [
    {"Host": "[::"}, {"Host": "a b\x7f"}, {"Host": ""}, {"Content-Type": "\xff"}, {"Content-Type": "text/xml; x=y"},
    {"Content-Encoding": "gzip"}, {"Content-Encoding": "br, gzip"}, {"Content-Length": "\xb3"},
    {"Content-Length": "-5"},
    {"Content-Length": "1" * 4000}, {"Authorization": "Bearer \x01"}, {"Authorization": "Bearer " + "\xff" * 100},
    {"Curtail-Signature": "v1;time=" + "9" * 12 + ";nonce=" + "0" * 32 + ";fence=-1;sig=" + "A" * 88},
    {"Curtail-Signature": "\xff" * 3000}, {"X": "x" * limits.MAX_HEADERS}, {"Expect": "100-continue"},
    {"Transfer-Encoding": "chunked"}, {"Upgrade": "websocket", "Connection": "Upgrade"}, {"Cookie": "=" * 100},
]  # fmt: skip


@pytest.mark.parametrize("route", [pytest.param(r, id=f"{r.method} {r.path}") for r in ROUTES])
def test_hostile_headers_are_answered_with_a_4xx_or_do_no_harm(besieged, ask, route):
    path = route.path.format(sha256=SHA, number=0)
    for hostile in HOSTILE_HEADERS:
        reply = ask(route.method, path, headers=hostile)
        assert reply.status_code < 500, (hostile, reply.text)
        assert not route.roles or reply.status_code >= 400


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "BREW"])
def test_another_method_or_path_is_a_problem_in_json(besieged, ask, method):
    for path in ("/v1/status", "/v1/heartbeat", "/", "/v1", "/v2/join", "/docs", "//", "/v1/blobs/../status", "/%00"):
        reply = ask(method, path)
        assert reply.status_code < 500
        if reply.status_code in (404, 405) and method != "HEAD":
            assert wire.decode(wire.Problem, reply.content).message
