"""What our limits of connections use of uvicorn, h11 and asyncio beyond their documented interfaces, each by name.

uvicorn is pinned to one minor version. What fails here after an upgrade is what has to be looked at:
docs/decisions/024-uvicorn-internals.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import signal
import socket
import tomllib
from pathlib import Path

import h11
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import Server, ServerState

from controller.http import connection_limit
from controller.http.connection_limit import Admitted, Loop
from controller.http.connection_timeouts import Connection
from controller.http.listener import BACKLOG, listen

ROOT = Path(__file__).resolve().parents[4]

SIGNATURES = {
    H11Protocol.__init__: ["self", "config", "server_state", "app_state", "_loop"],
    H11Protocol.connection_made: ["self", "transport"],
    H11Protocol.connection_lost: ["self", "exc"],
    H11Protocol.data_received: ["self", "data"],
    H11Protocol.on_response_complete: ["self"],
    H11Protocol.pause_writing: ["self"],
    H11Protocol.resume_writing: ["self"],
    Server.run: ["self", "sockets"],
    Server.startup: ["self", "sockets"],
    Server.on_tick: ["self", "counter"],
    Server.capture_signals: ["self"],
}
"""Methods that `Connection` overrides and calls, or that `controller.http.server` relies on."""

OPTIONS = {
    "http", "ws", "loop", "lifespan", "proxy_headers", "timeout_keep_alive", "h11_max_incomplete_event_size", "backlog",
    "log_level", "access_log", "server_header", "date_header", "callback_notify", "timeout_notify", "ssl_certfile",
    "ssl_keyfile",
}  # fmt: skip
"""Options of `uvicorn.Config` that are set."""

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def config(**more):
    made = uvicorn.Config(app, log_level="critical", access_log=False, **connection_limit.options(), **more)
    made.load()
    return made


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self):
        super().__init__({"peername": ("192.0.2.7", 5000), "sockname": ("192.0.2.1", 8765)})
        self.written, self.aborted = b"", False

    def write(self, data):
        self.written += data

    def is_closing(self):
        return self.aborted

    def close(self):
        self.aborted = True

    def abort(self):
        self.aborted = True

    def pause_reading(self):
        """Nothing is read by itself."""

    def resume_reading(self):
        """Nothing is read by itself."""


@pytest.fixture
def loop():
    made = Loop()
    yield made
    made.close()


# -- versions ------------------------------------------------------------------


def test_uvicorn_is_pinned_to_the_minor_version_that_is_installed_and_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = [one for one in project["dependencies"] if one.startswith("uvicorn")]
    low, high = re.fullmatch(r"uvicorn>=0\.(\d+),<0\.(\d+)", pin).groups()
    assert int(high) == int(low) + 1, "one minor version"
    for lock in ("requirements.lock", "requirements-dev.lock"):
        assert re.search(rf"^uvicorn==0\.{low}\.\d+ ", (ROOT / lock).read_text(), flags=re.MULTILINE), lock
    assert uvicorn.__version__.startswith(f"0.{low}."), "docs/decisions/024 says what to do"


# -- names and signatures -----------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "parameters"), [pytest.param(f, p, id=f.__qualname__) for f, p in SIGNATURES.items()]
)
def test_a_method_of_uvicorn_takes_what_we_give_it(function, parameters):
    assert list(inspect.signature(function).parameters) == parameters


def test_uvicorns_configuration_has_the_options_that_we_set():
    assert set(inspect.signature(uvicorn.Config).parameters) >= OPTIONS
    assert set(connection_limit.options()) <= OPTIONS
    made = config()
    assert made.ssl is None and made.http_protocol_class is Connection
    assert made.get_loop_factory() is Loop, "a loop of ours is made by its import path"


def test_asyncio_takes_deadlines_of_tls_where_a_server_is_made(loop):
    assert issubclass(Loop, asyncio.SelectorEventLoop)
    parameters = inspect.signature(asyncio.SelectorEventLoop.create_server).parameters
    assert {"sock", "ssl", "backlog", "ssl_handshake_timeout", "ssl_shutdown_timeout"} <= set(parameters)
    given = {}

    async def create_server(self, *arguments, **options):
        given.update(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.SelectorEventLoop, "create_server", create_server)
        loop.run_until_complete(loop.create_server(app, ssl=object()))
    assert given["ssl_handshake_timeout"] == given["ssl_shutdown_timeout"] == connection_limit.HANDSHAKE_S


def test_h11_says_what_it_waits_for():
    connection = h11.Connection(h11.SERVER)
    assert connection.their_state is h11.IDLE and connection.trailing_data[0] == b""
    connection.receive_data(b"GET / HT")
    assert connection.next_event() is h11.NEED_DATA and connection.trailing_data[0] == b"GET / HT"
    connection.receive_data(b"TP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request) and connection.their_state is h11.SEND_BODY


# -- what uvicorn does with it --------------------------------------------------------


def test_a_connection_of_uvicorn_has_the_attributes_that_our_deadlines_read(loop):
    transport = FakeTransport()
    connection = Connection(config(), ServerState(), {}, loop)
    assert connection.loop is loop and connection.cycle is None and isinstance(connection.conn, h11.Connection)
    connection.connection_made(transport)
    assert connection.transport is transport and connection.client == ("192.0.2.7", 5000)
    assert connection._waits == "head"
    connection.data_received(REQUEST)
    assert isinstance(connection.cycle, RequestResponseCycle) and connection.cycle.response_complete is False
    assert connection._waits == ""
    loop.run_until_complete(asyncio.gather(*connection.tasks))
    assert transport.written.startswith(b"HTTP/1.1 200") and connection.cycle.response_complete is True
    assert connection._waits == "idle", "uvicorn calls on_response_complete once the answer is sent"
    connection.pause_writing()
    assert connection._stall is not None
    connection.connection_lost(None)
    assert connection._stall is None and connection._deadline is None


def test_uvicorn_listens_on_the_very_socket_that_it_is_given_and_makes_our_connections(loop):
    server, given = Server(config()), []

    async def create_server(factory, **options):
        given.append((factory, options))

    loop.create_server = create_server
    server.lifespan = server.config.lifespan_class(server.config)
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        loop.run_until_complete(server.startup(sockets=[listener]))
        ((factory, options),) = given
        assert options["sock"] is listener and options["backlog"] == BACKLOG and "ssl" in options
        assert isinstance(factory(_loop=loop), Connection)


def test_a_signal_ends_uvicorn_and_then_reaches_the_handler_of_before():
    server, received = Server(config()), []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with server.capture_signals():
            signal.raise_signal(signal.SIGTERM)
            assert server.should_exit and not received
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_uvicorns_loop_calls_us_back_from_time_to_time():
    called = []

    async def beat():
        called.append(True)

    server = Server(config(callback_notify=beat, timeout_notify=1))
    assert asyncio.run(server.on_tick(0)) is False and called == [True]


# -- what asyncio does with it -----------------------------------------------------------


class Listening(socket.socket):
    """Refuses the first connection by an exception, and notes when the others are closed."""

    def __init__(self, listener):
        super().__init__(listener.family, listener.type, listener.proto, fileno=listener.detach())
        self.asked, self.closed = 0, []

    def accept(self):
        self.asked += 1
        accepted, address = super().accept()
        if self.asked == 1:
            accepted.close()
            raise ConnectionAbortedError
        return Admitted(accepted, lambda: self.closed.append(address)), address


def test_asyncio_accepts_and_closes_through_the_sockets_that_it_is_given(loop):
    listening = Listening(listen("127.0.0.1", 0))
    address = listening.getsockname()

    async def talk():
        complaints = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        server = await asyncio.start_server(lambda reader, writer: writer.close(), sock=listening)
        for answer in (b"", b""):
            reader, writer = await asyncio.open_connection(*address)
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == answer
            writer.close()
        while not listening.closed:
            await asyncio.sleep(0)
        server.close()
        return complaints

    assert loop.run_until_complete(asyncio.wait_for(talk(), 30)) == [], "an aborted connection is no error"
    assert listening.asked >= 2 and len(listening.closed) == 1
