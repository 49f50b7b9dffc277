"""Control messages: what travels, and which error each failure becomes."""

from __future__ import annotations

import httpx
import pytest

from agent.client import Control, check_url, open_http
from curtail import wire
from curtail.errors import AuthError, CurtailError, DiskError, NotFound, Refused, Unreachable, UsageError, WireError

BEAT = wire.Heartbeat("a" * 32, "A", 1, "IDLE", "paused", None, None, "")
REPLY = wire.HeartbeatReply(True, 15.0, "MCI 60 is below 100 g/kWh", False, 2.0, "LOCAL")


def control(handler, credential="secret"):
    return Control(httpx.Client(transport=httpx.MockTransport(handler), base_url="http://127.0.0.1:1"), credential)


def test_a_heartbeat_carries_the_credential_and_decodes_the_reply():
    seen = []

    def handler(request):
        seen.append(request)
        return httpx.Response(200, content=wire.encode(REPLY))

    assert control(handler).heartbeat(BEAT) == REPLY
    assert seen[0].url.path == wire.HEARTBEAT and seen[0].headers["authorization"] == "Bearer secret"
    assert wire.decode(wire.Heartbeat, seen[0].content) == BEAT


def test_a_join_takes_up_the_new_credential():
    reply = wire.JoinReply("new", 3, 2.0, "run")
    calls = control(lambda request: httpx.Response(200, content=wire.encode(reply)), None)
    calls.join(wire.JoinRequest(wire.PROTOCOL, "a" * 32, "A", "north", "host", 1, "token"))
    assert calls.credential == "new"


@pytest.mark.parametrize(
    "status,kind",
    [
        (400, WireError),
        (401, AuthError),
        (403, AuthError),
        (404, NotFound),
        (409, Refused),
        (413, WireError),
        (418, CurtailError),
        (500, Unreachable),
        (503, Unreachable),
        (507, DiskError),
    ],
)
def test_each_status_is_its_error_with_the_problems_words(status, kind):
    body = wire.encode(wire.Problem("X", "it is wrong", "do this"))
    with pytest.raises(kind, match="it is wrong: do this") as caught:
        control(lambda request: httpx.Response(status, content=body)).heartbeat(BEAT)
    assert type(caught.value) is kind


def test_a_refusal_without_a_problem_names_the_status():
    with pytest.raises(NotFound, match="404"):
        control(lambda request: httpx.Response(404, text="<html>")).heartbeat(BEAT)


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError, httpx.WriteError])
def test_a_lost_connection_is_unreachable(error):
    def handler(request):
        raise error("cut", request=request)

    with pytest.raises(Unreachable, match=r"http://127\.0\.0\.1:1"):
        control(handler).heartbeat(BEAT)


def test_an_endless_answer_is_refused():
    with pytest.raises(WireError, match="longer"):
        control(lambda request: httpx.Response(200, content=b" " * (wire.MAX_BODY + 1))).heartbeat(BEAT)


def test_plain_http_stays_on_this_machine():
    assert str(check_url("http://127.0.0.1:7070/x?y")) == "http://127.0.0.1:7070/"
    for url in ("http://localhost:1", "http://[::1]:1", "https://example.org"):
        check_url(url)
    with pytest.raises(UsageError, match="in clear"):
        check_url("http://10.0.0.1:7070")
    for url in ("127.0.0.1:7070", "ftp://127.0.0.1", "http://", "http://a b"):
        with pytest.raises(UsageError):
            check_url(url)


def test_a_proxy_from_the_environment_is_not_used_on_loopback(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with open_http("http://127.0.0.1:7070") as http:
        assert not http.trust_env
