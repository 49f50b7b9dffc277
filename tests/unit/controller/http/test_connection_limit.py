"""Who may connect: the caps hold from accept to close, handshakes included, and this machine's own views come in."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import ssl
import threading
import time

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from controller.auth.authority import ensure
from controller.http import connection_limit, connection_timeouts
from controller.http.connection_limit import AT_ONCE, Caps, ConnectionCounter, CountingListener, caps, origin
from controller.http.listener import BACKLOG, listen
from curtail.system.disk import SystemDisk

DEADLINE_S = 20.0
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Served:
    """A real uvicorn behind a gate on loopback, over TLS if there is an identity."""

    def __init__(self, limit, identity=None):
        self.gate = CountingListener(listen("127.0.0.1", 0), limit)
        self.crowd, self.port = self.gate.crowd, self.gate.getsockname()[1]
        files = (
            {} if identity is None else {"ssl_certfile": identity.files.certificate, "ssl_keyfile": identity.files.key}
        )
        config = uvicorn.Config(app, log_level="critical", access_log=False, **connection_limit.options(), **files)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.gate]})
        self.thread.start()

    def connect(self, source="127.0.0.1"):
        made = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S, source_address=(source, 0))
        made.settimeout(DEADLINE_S)
        return made

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def serve():
    opened = []

    def make(*arguments, **options):
        opened.append(Served(*arguments, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.stop()


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    return ensure(tmp_path_factory.mktemp("identity"), ["train.example"], time.time(), SystemDisk())


def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it never comes true"
        threading.Event().wait(0.01)


def answered(connection):
    connection.sendall(REQUEST)
    return connection.recv(100).startswith(b"HTTP/1.1 200")


def ended(connection):
    """Was it closed without a word?"""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


# -- counting --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "who"),
    [
        ("127.0.0.1", ""), ("127.8.8.8", ""), ("::1", ""), ("::ffff:127.0.0.1", ""),
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"), ("fe80::1%eth0", "fe80::/64"), ("@unix", "@unix"),
    ],
)  # fmt: skip
def test_who_a_peer_counts_as(host, who):
    assert origin(host) == who


def test_the_caps_leave_places_for_this_machine_and_a_share_for_each_address():
    assert caps(8192) == Caps(8192, 4096, 32)
    assert caps(8192, 1.0) == Caps(8192, 8160, 32), "one address alone does not take this machine's own places"
    assert caps(64, 0.01) == Caps(64, 1, 16)
    for many in (1000 * 4,):
        assert caps(connection_timeouts.MOST_CONNECTIONS).each >= many, "a thousand sites behind one address"


@given(
    st.integers(4, 30),
    st.floats(0.05, 1.0),
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "a", "b", "c"])), max_size=120),
)
def test_no_cap_is_ever_passed_and_this_machine_has_a_place_unless_it_holds_its_own_already(most, share, steps):
    crowd, inside = ConnectionCounter(caps(most, share)), []
    for comes, who in steps:
        if not comes:
            if who in inside:
                inside.remove(who)
                crowd.leave(who)
            continue
        why = crowd.enter(who)
        if not why:
            inside.append(who)
        elif who == "":
            assert inside.count("") >= crowd.caps.own
        assert len(inside) <= most and crowd.count() == len(inside)
        for other in ("a", "b", "c"):
            assert crowd.count(other) == inside.count(other) <= crowd.caps.each
        if why and who and inside.count(who) < crowd.caps.each:
            assert len(inside) - inside.count("") >= most - crowd.caps.own or len(inside) == most


def test_a_connection_that_is_lost_and_never_closed_gives_its_place_back():
    with CountingListener(listen("127.0.0.1", 0), Caps(4, 4, 1)) as door, socket.create_connection(door.getsockname()):
        accepted, _ = door.accept()
        assert door.crowd.count() == 1
        with pytest.warns(ResourceWarning):
            del accepted
            gc.collect()
        assert door.crowd.count() == 0


def test_refusals_are_told_in_one_line_a_minute_and_a_flood_of_them_lets_the_others_have_their_turn(caplog):
    class Clock:
        t = 0.0

        def monotonic(self):
            return self.t

    clock = Clock()
    with contextlib.ExitStack() as stack:
        door = stack.enter_context(CountingListener(listen("127.0.0.1", 0), Caps(0, 0, 0), clock))
        for _ in range(AT_ONCE + 1):
            stack.enter_context(socket.create_connection(door.getsockname()))
        door.setblocking(False)
        with caplog.at_level(logging.WARNING, "curtail.connections"):
            with pytest.raises(ConnectionAbortedError):
                door.accept()
            clock.t = connection_limit.SAY_S
            with pytest.raises(BlockingIOError):
                door.accept()
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith("refused 1 connections: ") and second.startswith(f"refused {AT_ONCE} connections: ")


# -- real connections ----------------------------------------------------------------


def test_one_connection_too_many_is_ended_and_those_that_are_there_go_on(serve):
    made = serve(Caps(2, 2, 0))
    with made.connect() as first, made.connect() as second:
        for connection in (first, second):
            connection.sendall(REQUEST[:-2])
        until(lambda: made.crowd.count() == 2)
        with made.connect() as third:
            assert ended(third)
        for connection in (first, second):
            connection.sendall(REQUEST[-2:])
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: made.crowd.count() == 0)
    with made.connect() as again:
        assert answered(again), "who left gave the place back"


def test_one_address_holds_its_share_and_others_and_this_machine_come_in(serve, monkeypatch):
    monkeypatch.setattr(connection_limit, "origin", lambda host: "" if host == "127.0.0.1" else host)
    made = serve(Caps(6, 2, 1))
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(made.connect("127.0.0.2")) for _ in range(2)]
        assert all(answered(one) for one in greedy)
        assert ended(stack.enter_context(made.connect("127.0.0.2")))
        others = [stack.enter_context(made.connect(source)) for source in ("127.0.0.3", "127.0.0.4", "127.0.0.5")]
        assert all(answered(one) for one in [*greedy, *others])
        assert ended(stack.enter_context(made.connect("127.0.0.6"))), "the last place is this machine's own"
        assert answered(stack.enter_context(made.connect()))
        assert ended(stack.enter_context(made.connect()))


def test_slow_handshakes_count_end_soon_and_keep_nobody_else_out(serve, identity, monkeypatch):
    monkeypatch.setattr(connection_limit, "HANDSHAKE_S", 0.5)
    monkeypatch.setattr(connection_limit, "origin", lambda host: "" if host == "127.0.0.1" else host)
    made = serve(Caps(8, 4, 2), identity)
    trusting = ssl.create_default_context(cadata=identity.authority)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(made.connect("127.0.0.2")) for _ in range(4)]
        slow[0].sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a hello
        until(lambda: made.crowd.count("127.0.0.2") == 4)
        assert ended(stack.enter_context(made.connect("127.0.0.2"))), "those that shake hands are counted"
        for source in ("127.0.0.3", "127.0.0.1"):
            with trusting.wrap_socket(made.connect(source), server_hostname="train.example") as secure:
                assert answered(secure)
        began = time.monotonic()
        assert all(ended(one) for one in slow)
        assert time.monotonic() - began < 5.0
        until(lambda: made.crowd.count("127.0.0.2") == 0)
        with trusting.wrap_socket(made.connect("127.0.0.2"), server_hostname="train.example") as secure:
            assert answered(secure)


def test_a_handshake_that_fails_gives_its_place_back(serve, identity):
    made = serve(Caps(2, 2, 0), identity)
    for _ in range(4):
        with made.connect() as plain:
            plain.sendall(REQUEST)
            plain.settimeout(DEADLINE_S)
            with contextlib.suppress(ConnectionResetError):
                while plain.recv(100):
                    pass
        until(lambda: made.crowd.count() == 0)


def test_all_agents_may_come_at_once_before_the_controller_takes_the_first(monkeypatch):
    asked = []
    real = socket.socket.listen
    monkeypatch.setattr(socket.socket, "listen", lambda self, backlog: asked.append(backlog) or real(self, backlog))
    listen("127.0.0.1", 0).close()
    assert asked == [BACKLOG] == [connection_limit.options()["backlog"]] and BACKLOG >= 1000
