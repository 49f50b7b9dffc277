"""What is refused before the application is asked: heads, paces, rates; and connections that do not keep their side."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import threading

import pytest
import uvicorn
from doubles import FakeClock

from controller.http import connection_limit, connection_timeouts, request_limits
from controller.http.rate_limit import CONTROL, HEARTBEATS, STRANGERS, Rates
from controller.http.request_limits import (
    GRACE_S,
    LEAST_RATE,
    SILENCE_S,
    Pace,
    RequestLimits,
    TooSlow,
    inspect,
    is_control,
)
from curtail import wire
from curtail.wire import limits

PART = wire.PART.format(sha256="0" * 64, number=0)
DEADLINE_S = 20.0


def scope(method="POST", path=wire.HEARTBEAT, headers=(), query=b"", address="10.0.0.1"):
    return {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in headers], "client": (address, 1),
    }  # fmt: skip


# -- heads ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (414, scope(path="/" + "x" * limits.MAX_TARGET)),
        (414, scope(query=b"x" * limits.MAX_TARGET)),
        (431, scope(headers=[("a", "x" * limits.MAX_HEADERS)])),
        (431, scope(headers=[(f"x{n}", "") for n in range(limits.MAX_FIELDS + 1)])),
        (415, scope(headers=[("content-encoding", "gzip")])),
        (415, scope("PUT", PART, [("content-encoding", "zstd")])),
        (413, scope(headers=[("content-length", str(limits.MAX_REQUEST + 1))])),
        (413, scope("PUT", PART, [("content-length", str(wire.PART_BYTES + 1))])),
        (413, scope(headers=[("content-length", "9" * 5000)])),
        (413, scope(headers=[("content-length", "-1")])),
        (400, scope("GET", wire.STATUS, [("content-length", "1")])),
        (400, scope("GET", wire.STATUS, [("transfer-encoding", "chunked")])),
        (None, scope(headers=[("content-length", str(limits.MAX_REQUEST)), ("content-encoding", "identity")])),
        (None, scope("PUT", PART, [("content-length", str(wire.PART_BYTES))])),
        (None, scope("GET", wire.STATUS)),
    ],
    ids=lambda value: value if isinstance(value, int) else "",
)
def test_a_head_is_refused_for_what_it_announces(status, request_):
    refusal = inspect(request_)
    assert (None if refusal is None else refusal.status) == status


def test_what_is_not_control_does_not_count_against_the_rate():
    assert not is_control("PUT", PART) and not is_control("GET", wire.BLOB.format(sha256="x"))
    assert is_control("POST", wire.BLOBS) and is_control("POST", wire.BLOB_COMMIT.format(sha256="x"))
    assert is_control("POST", wire.HEARTBEAT) and is_control("GET", wire.STATUS)


# -- rates -----------------------------------------------------------------------


def test_a_credential_may_send_its_burst_and_then_its_rate():
    rates = Rates()
    rates.admit("c", 0.0)
    for _ in range(int(CONTROL.burst)):
        assert rates.ask("c", "a", False, 0.0) == 0.0
    wait = rates.ask("c", "a", False, 0.0)
    assert wait == pytest.approx(1 / CONTROL.per_s)
    assert rates.ask("c", "a", False, wait / 2) > 0.0, "a refused request takes nothing and gives nothing"
    assert rates.ask("c", "a", False, wait) == 0.0
    granted = sum(rates.ask("c", "a", False, 1.0 + n / 1000) == 0.0 for n in range(10_000))
    assert granted == pytest.approx(10 * CONTROL.per_s, abs=CONTROL.per_s + 1)


def test_a_job_that_asks_too_often_does_not_cost_its_agent_the_heartbeats():
    rates = Rates()
    rates.admit("c", 0.0)
    while rates.ask("c", "a", False, 0.0) == 0.0:
        pass
    assert rates.ask("c", "a", True, 0.0) == 0.0


def test_a_stranger_cannot_use_up_what_a_known_credential_has():
    rates = Rates()
    rates.admit("good", 0.0)
    for n in range(int(STRANGERS.burst)):
        assert rates.ask(f"guess {n}", "a", False, 0.0) == 0.0
    assert rates.ask("another guess", "a", False, 0.0) > 0.0
    assert rates.ask("", "a", False, 0.0) > 0.0
    assert rates.ask("good", "a", False, 0.0) == 0.0
    assert rates.ask("", "b", False, 0.0) == 0.0, "another address"


def test_a_refused_credential_counts_as_a_stranger_again():
    rates = Rates()
    rates.admit("c", 0.0)
    rates.refuse("c")
    for _ in range(int(STRANGERS.burst)):
        rates.ask("", "a", False, 0.0)
    assert rates.ask("c", "a", False, 0.0) > 0.0


def test_the_number_of_buckets_is_bounded_and_the_oldest_goes_first():
    rates = Rates(most=10)
    rates.admit("c", 0.0)
    for n in range(100):
        rates.ask("", f"address {n}", False, float(n))
        rates.ask("c", "x", False, float(n))
        assert len(rates._buckets) <= 10
    assert "control c" in rates._buckets


def test_a_thousand_agents_behind_one_address_join_at_once_and_beat_for_an_hour_without_a_refusal():
    rates = Rates()
    for n in range(1000):  # a join, and the first heartbeat with the new credential
        assert rates.ask("", "nat", False, 0.0) == 0.0
        assert rates.ask(f"c{n}", "nat", True, 0.0) == 0.0
        rates.admit(f"c{n}", 0.0)
    for beat in range(1, 1801):
        now = 2.0 * beat  # the default heartbeat, all at the same moment
        for n in range(1000) if beat % 600 == 0 else range(5):
            assert rates.ask(f"c{n}", "nat", True, now) == 0.0
            assert rates.ask(f"c{n}", "nat", False, now) == 0.0  # what its job says
    assert HEARTBEATS.per_s >= 20, "the shortest [fleet] heartbeat is 0.05 s"


def test_the_guard_answers_429_with_the_time_and_lets_pass_what_has_its_rate():
    clock, answered, passed = FakeClock(), [], []

    async def app(scope, receive, send):
        passed.append(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def answer(refusal, scope, receive, send):
        answered.append(refusal)

    async def nothing(*message):
        return {"type": "http.disconnect"}

    guarded = RequestLimits(app, answer, clock)
    request = scope(path=wire.CHECKOUT, headers=[("authorization", "Bearer good")])

    async def flood(count):
        for _ in range(count):
            await guarded(request, nothing, nothing)

    asyncio.run(flood(1 + int(CONTROL.burst)))  # the first one as a stranger: nobody knows yet that it is good
    assert len(passed) == 1 + int(CONTROL.burst) and not answered
    asyncio.run(flood(1))
    assert answered[0].status == 429 and answered[0].retry_s == 1
    clock.t += answered[0].retry_s
    asyncio.run(flood(1))
    assert len(answered) == 1


@pytest.mark.parametrize("path", [wire.CHECKOUT, "/" + "x" * 10_000])
def test_every_answer_says_the_time_of_its_moment_also_right_after_the_clock_was_set(path):
    """An agent whose signature was refused for its time signs again with this one: a second old would be too old."""
    clock, sent = FakeClock(), []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 401, "headers": [(b"a", b"b")]})

    async def refuse(refusal, scope, receive, send):
        await send({"type": "http.response.start", "status": refusal.status})

    async def note(message):
        sent.append(dict(message["headers"])[b"date"])

    times = iter((1_700_000_000.0, 1_700_003_600.0))
    guarded = RequestLimits(app, refuse, clock, lambda: next(times))
    for _ in range(2):
        asyncio.run(guarded(scope(path=path), note, note))
    assert sent == [b"Tue, 14 Nov 2023 22:13:20 GMT", b"Tue, 14 Nov 2023 23:13:20 GMT"]


def test_parts_and_downloads_are_counted_only_for_who_shows_no_good_credential():
    passed, answered = [], []

    async def app(scope, receive, send):
        passed.append(1)
        await send({"type": "http.response.start", "status": 200 if scope["path"] == wire.RUN else 401, "headers": []})

    async def served(scope, receive, send):
        await send({"type": "http.response.start", "status": 206, "headers": []})

    async def answer(refusal, scope, receive, send):
        answered.append(refusal.status)

    async def nothing(*message):
        return {"type": "http.disconnect"}

    guarded = RequestLimits(app, answer, FakeClock())

    async def ask(path, credential, count):
        for _ in range(count):
            await guarded(scope("GET", path, [("authorization", credential)]), nothing, nothing)

    many = int(STRANGERS.burst)
    asyncio.run(ask(wire.BLOB.format(sha256="x"), "Bearer bad", many + 1))
    assert len(passed) == many and answered == [429]
    asyncio.run(ask(wire.HEALTH, "", 10))
    assert answered == [429], "whether it is well may always be asked"
    guarded.rates.admit(hashlib.sha256(b"Bearer good").hexdigest(), 0.0)
    asyncio.run(ask(wire.RUN, "Bearer good", 1))
    guarded._app = served
    asyncio.run(ask(wire.BLOB.format(sha256="x"), "Bearer good", many))
    assert answered == [429], "a good credential downloads as often as it likes"


# -- paces -----------------------------------------------------------------------


def test_a_body_must_keep_its_pace_and_only_the_time_waited_counts():
    pace = Pace()
    assert pace.patience() == min(SILENCE_S, GRACE_S)
    pace.take(0, GRACE_S - 1.0)
    assert pace.patience() == pytest.approx(1.0)
    pace.take(10 * LEAST_RATE, 0.5)
    assert pace.patience() == pytest.approx(10.5)
    for _ in range(1000):  # at the least rate it may go on for ever
        pace.take(LEAST_RATE, 1.0)
    assert pace.patience() == pytest.approx(10.5)
    pace.take(10**9, 1.0)
    assert pace.patience() == SILENCE_S
    for _ in range(12):
        pace.take(0, 1.0)
    assert pace.patience() == SILENCE_S
    trickle = Pace()
    with contextlib.suppress(StopIteration):
        while trickle.patience() > 0:
            trickle.take(1, 1.0)
    assert trickle.got <= GRACE_S + 1, "a byte a second does not keep it alive"


def test_a_body_that_does_not_come_is_too_slow_and_one_that_came_may_wait_for_its_answer(monkeypatch):
    monkeypatch.setattr(request_limits, "GRACE_S", 0.05)
    monkeypatch.setattr(request_limits, "LEAST_RATE", 10**9)
    caught = []

    async def never():
        await asyncio.Event().wait()

    pieces = [{"type": "http.request", "body": b"x", "more_body": False}]

    async def whole():
        if pieces:
            return pieces.pop()
        ended = asyncio.Event()  # later than a piece of a body may take: this is the end of the connection
        asyncio.get_running_loop().call_later(0.2, ended.set)
        await ended.wait()
        return {"type": "http.disconnect"}

    async def app(scope, receive, send):
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except TooSlow as error:
            caught.append(error)

    guarded = RequestLimits(app, app)
    asyncio.run(guarded(scope(), whole, never))
    assert not caught
    asyncio.run(guarded(scope(), never, never))
    assert len(caught) == 1 and "too slowly" in str(caught[0])


# -- connections -------------------------------------------------------------------


class Served:
    """A real uvicorn on loopback with our limits."""

    def __init__(self, app):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        config = uvicorn.Config(app, log_level="critical", access_log=False, **connection_limit.options())
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def connect(self):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        connection.settimeout(DEADLINE_S)
        return connection

    def stop(self):
        self.server.should_exit = True
        self.thread.join()
        self.listener.close()


@pytest.fixture
def short(monkeypatch):
    for name, seconds in (("head", 0.3), ("idle", 0.3), ("drain", 0.3)):
        monkeypatch.setitem(connection_timeouts.DEADLINES, name, seconds)
    monkeypatch.setattr(connection_timeouts, "STALL_S", 0.3)


@pytest.fixture
def served(short):
    async def app(scope, receive, send):
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(2000 if scope["path"] == "/long" else 1):
            await send({"type": "http.response.body", "body": b"x" * (1 << 16), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    made = Served(app)
    yield made
    made.stop()


def rest(connection):
    """All that still comes until the other side ends it; fails if it does not within `DEADLINE_S`."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            data += piece
    return data


@pytest.mark.parametrize("start", [b"", b"G", b"POST / HTTP/1.1\r\nHost: x\r\nX-A:"])
def test_a_head_that_never_ends_is_cut_off(served, start):
    with served.connect() as connection:
        connection.sendall(start)
        assert rest(connection) == b""


def test_a_head_that_comes_byte_by_byte_is_cut_off(served):
    with served.connect() as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(0.02)
        for count in range(int(DEADLINE_S / 0.02)):
            connection.sendall(b"G" if count == 0 else b"E")
            with contextlib.suppress(TimeoutError):
                assert connection.recv(1) == b""
                break
        else:
            pytest.fail("it is never cut off")


def test_an_idle_connection_is_kept_for_its_time_and_not_longer(served):
    with served.connect() as connection:
        for _ in range(3):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                answer += connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200")
        assert rest(connection) == b""


def test_the_rest_of_a_refused_body_is_read_for_a_while_only(served):
    with served.connect() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nx")
        assert rest(connection).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_reads_is_cut_off(served):
    with served.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        limit = threading.Event()
        deadline = threading.Timer(DEADLINE_S, limit.set)
        deadline.start()
        while served.server.server_state.connections and not limit.is_set():
            limit.wait(0.02)
        deadline.cancel()
        assert not served.server.server_state.connections


def test_a_head_that_is_too_large_is_answered_with_400_at_once(served):
    with served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-A: " + b"a" * (limits.MAX_HEADERS + 100))
        assert rest(connection).startswith(b"HTTP/1.1 400")


def test_the_number_of_connections_leaves_file_handles_for_the_rest(monkeypatch):
    monkeypatch.setattr(connection_timeouts, "file_handles", lambda: 1024)
    assert connection_timeouts.most_connections() == 1024 - connection_timeouts.SPARE_FILES
    monkeypatch.setattr(connection_timeouts, "file_handles", lambda: 10**6)
    assert connection_timeouts.most_connections() == connection_timeouts.MOST_CONNECTIONS
