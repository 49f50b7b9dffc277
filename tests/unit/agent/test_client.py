"""Control messages: what travels, and which error each failure becomes."""

from __future__ import annotations

import dataclasses

import httpx
import pytest
from doubles import FakeClock

from agent.http import backoff
from agent.http.client import Control, check_url, open_http
from curtail import wire
from curtail.errors import (
    AuthError,
    CurtailError,
    DiskError,
    NotFound,
    Refused,
    Throttled,
    Unreachable,
    UsageError,
    WireError,
)

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
        (408, Unreachable),
        (409, Refused),
        (413, WireError),
        (415, WireError),
        (418, CurtailError),
        (429, Throttled),
        (431, WireError),
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
    with pytest.raises(UsageError, match="unencrypted"):
        check_url("http://10.0.0.1:7070")
    for url in ("127.0.0.1:7070", "ftp://127.0.0.1", "http://", "http://a b"):
        with pytest.raises(UsageError):
            check_url(url)


def test_a_proxy_from_the_environment_is_not_used_on_loopback(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with open_http("http://127.0.0.1:7070") as http:
        assert not http.trust_env


# -- a controller that asks for patience ---------------------------------------------


def test_after_a_429_nothing_is_sent_for_the_time_it_says_and_heartbeats_count_apart():
    asked, clock = [], FakeClock()

    def handler(request):
        asked.append(request.url.path)
        if request.url.path == wire.RUN and len(asked) == 1:
            return httpx.Response(429, headers={"retry-after": "7"}, content=wire.encode(wire.Problem("T", "slow", "")))
        if request.url.path == wire.HEARTBEAT:
            return httpx.Response(200, content=wire.encode(REPLY))
        return httpx.Response(200, content=wire.encode(wire.Ack(True)))

    calls = Control(
        httpx.Client(transport=httpx.MockTransport(handler), base_url="http://127.0.0.1:1"), "c", clock=clock
    )
    with pytest.raises(Throttled):
        calls.run_info()
    assert calls.heartbeat(BEAT) == REPLY
    clock.t += 6.9
    with pytest.raises(Throttled, match="limits requests"):
        calls.send("GET", wire.STATUS)
    assert asked == [wire.RUN, wire.HEARTBEAT]
    clock.t += 0.1 + 7 * backoff.SHARE
    calls.send("GET", wire.STATUS)
    assert asked[-1] == wire.STATUS


def test_the_patience_of_an_agent_has_a_share_of_chance_and_an_end():
    for header, chance, seconds in (("4", 0.0, 4.0), ("4", 1.0, 6.0), (None, 0.0, 1.0), ("soon", 0.0, 1.0),
                                    ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0, 1.0), ("-3", 0.0, 1.0),
                                    ("999999999", 0.0, backoff.LONGEST_S), ("9" * 50, 0.0, 1.0)):  # fmt: skip
        told = backoff.Throttle()
        assert told.told(False, header, 10.0, chance) == seconds
        assert told.left(False, 10.0) == seconds and told.left(True, 10.0) == 0.0
        assert told.left(False, 10.0 + seconds) == 0.0


def test_what_is_said_for_people_is_cut_and_cleaned_before_it_is_sent():
    seen = []

    def handler(request):
        seen.append(request.content)
        return httpx.Response(200, content=wire.encode(REPLY if request.url.path == wire.HEARTBEAT else wire.Ack(True)))

    note = "\x1b[31mTraceback\x00 " + "x" * 10_000 + "\udcff"
    control(handler).heartbeat(dataclasses.replace(BEAT, note=note))
    control(handler).leave(wire.LeaveRequest("a", "A", 1, note))
    for kind, body in ((wire.Heartbeat, seen[0]), (wire.LeaveRequest, seen[1])):
        decoded = wire.decode(kind, body)  # as the controller does it
        assert "Traceback" in (decoded.note if kind is wire.Heartbeat else decoded.reason)
