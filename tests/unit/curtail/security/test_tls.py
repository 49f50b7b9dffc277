"""Connections over real sockets on loopback: the pin decides who may see a secret; agents keep what they learned."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time

import httpx
import pytest

from agent.controller_trust import Trust, known_authority, open_control, open_jobs_control
from agent.home import Home
from agent.http.client import Control
from controller.auth import credentials
from controller.auth.authority import ensure
from curtail import wire
from curtail.commands.status import watch
from curtail.errors import AuthError, Unreachable, UsageError, WireError
from curtail.security.tls import fetch_authority, open_http, open_with_token, pin_of
from curtail.system.disk import SystemDisk
from curtail.wire import RenewRequest

DISK = SystemDisk()


class Listener:
    """Speaks TLS with one identity and shows one authority; remembers all that it was sent."""

    def __init__(self, identity, shows=None):
        self.identity, self.shows, self.seen = identity, shows or identity.authority, []
        self.plain = None  # speaks no TLS, but answers this
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(identity.files.certificate, identity.files.key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while True:
            try:
                raw, _ = self._socket.accept()
            except OSError:
                return
            if self.plain is not None:
                with contextlib.suppress(OSError), raw:
                    raw.recv(65536)
                    raw.sendall(self.plain)
                continue
            with contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as connection:
                connection.settimeout(5.0)
                self._answer(connection)

    def _answer(self, connection):
        head = b""
        while b"\r\n\r\n" not in head:
            if not (piece := connection.recv(65536)):
                return
            head += piece
        head, _, body = head.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        # closing with something unread would reset the connection, and the answer could be lost with it
        while length is not None and len(body) < int(length[1]):
            if not (piece := connection.recv(65536)):
                return
            body += piece
        self.seen.append((head + b"\r\n\r\n" + body).decode())
        path = head.split()[1].decode()
        body = json.dumps({"pem": self.shows}).encode() if path == wire.CACERTS else wire.encode(wire.Ack(True))
        connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    def close(self):
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5.0)


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identities")
    return [ensure(folder / name, ["train.example"], time.time(), DISK) for name in ("ours", "theirs")]


@pytest.fixture
def listen():
    opened = []

    def make(identity, shows=None):
        opened.append(Listener(identity, shows))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def leave(control):
    return control.leave(wire.LeaveRequest("a", "a", 1, "test"))


# -- the pin ------------------------------------------------------------------------


def test_the_authority_is_taken_only_if_the_token_names_its_key(identities, listen):
    ours, theirs = identities
    there = listen(ours)
    assert fetch_authority(there.url, ours.pin) == ours.authority
    with pytest.raises(
        AuthError, match=f"pins the key {theirs.pin[:16]}, the controller has {ours.pin[:16]}.*HOME/join"
    ):
        fetch_authority(there.url, theirs.pin)


def test_another_controller_sees_no_token(identities, listen, tmp_path):
    ours, theirs = identities
    there, token = listen(theirs), credentials.new_token(ours.pin)
    with pytest.raises(AuthError, match="is not the controller"):
        open_control(there.url, Trust(Home(tmp_path), DISK, token))
    with pytest.raises(AuthError, match="is not the controller"):
        open_with_token(there.url, token)
    assert there.seen and not [text for text in there.seen if token.secret in text or "authorization" in text.lower()]
    assert list(tmp_path.iterdir()) == []


def test_somebody_in_between_who_shows_our_authority_sees_nothing(identities, listen, tmp_path):
    """They can repeat what the controller shows everybody, but have no certificate that it signed."""
    ours, theirs = identities
    between, token = listen(theirs, shows=ours.authority), credentials.new_token(ours.pin)
    control = open_control(between.url, Trust(Home(tmp_path), DISK, token))
    control.credential = token.secret
    with control.http, pytest.raises(Unreachable, match="could not be verified as the controller"):
        leave(control)
    http = open_with_token(between.url, token)
    with http, pytest.raises(httpx.ConnectError):
        http.get(wire.STATUS)
    assert not [text for text in between.seen if token.secret in text]


def test_the_true_controller_is_reached_and_remembered_without_the_token(identities, listen, tmp_path):
    ours, _ = identities
    there, home = listen(ours), Home(tmp_path)
    with (control := open_control(there.url, Trust(home, DISK, credentials.new_token(ours.pin)))).http:
        assert leave(control).ok
    assert pin_of(home.authority_file.read_text()) == ours.pin
    with (control := open_control(there.url, Trust(home, DISK))).http:
        assert leave(control).ok
    assert len([text for text in there.seen if wire.CACERTS in text]) == 1


def test_a_token_of_a_new_controller_replaces_what_was_kept_of_the_one_before(identities, listen, tmp_path):
    ours, theirs = identities
    home = Home(tmp_path)
    home.authority_file.write_text(theirs.authority)
    home.keep_credential("of the one before", DISK)
    there = listen(ours)
    assert known_authority(there.url, Trust(home, DISK, credentials.new_token(ours.pin))) == ours.authority
    assert home.credential() is None and pin_of(home.authority_file.read_text()) == ours.pin


def test_https_without_anything_that_names_the_controller_is_refused(tmp_path):
    for token in (None, credentials.new_token()):
        with pytest.raises(AuthError, match=r"ct1|does not pin a controller"):
            known_authority("https://127.0.0.1:1", Trust(Home(tmp_path), DISK, token))
        with pytest.raises(AuthError):
            open_with_token("https://127.0.0.1:1", token)
    with pytest.raises(AuthError, match="there is no key to verify the controller"):
        open_http("https://127.0.0.1:1")


def test_an_address_that_the_certificate_does_not_hold_is_refused_and_a_given_name_helps(identities, listen):
    ours, _ = identities
    there = listen(ours)
    with (
        open_http(there.url, ours.authority, server_name="other.example") as http,
        pytest.raises(Unreachable, match=r"[Mm]ismatch.*--server-name.*--advertise"),
    ):
        leave(Control(http))
    with open_http(there.url, ours.authority, server_name="train.example") as http:
        assert leave(Control(http)).ok


def test_something_else_that_answers_there_is_no_controller(identities, listen):
    ours, _ = identities
    there = listen(ours, shows="no valid CA certificate")
    with pytest.raises(AuthError, match="no valid CA certificate"):
        fetch_authority(there.url, ours.pin)
    there.shows = "x" * 100_000
    with pytest.raises(WireError, match="more than a certificate"):
        fetch_authority(there.url, ours.pin)
    with pytest.raises(Unreachable, match="no controller answers"):
        fetch_authority("https://127.0.0.1:9", ours.pin)


def test_plain_http_to_a_controller_that_speaks_tls_names_https(identities, listen):
    url = listen(identities[0]).url.replace("https:", "http:")
    with httpx.Client() as http, pytest.raises(Unreachable, match="uses TLS, write https:// instead"):
        watch.fetch(http, url)
    control = Control(open_http(url))
    with control.http, pytest.raises(Unreachable, match="uses TLS, write https:// instead"):
        leave(control)


@pytest.mark.parametrize(
    "says", [b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", b""], ids=["400", "nothing"]
)
def test_tls_to_a_controller_that_speaks_plain_http_names_http(identities, listen, says):
    ours, _ = identities
    there = listen(ours)
    there.plain = says
    with pytest.raises(Unreachable, match="uses plain HTTP, write http:// instead"):
        fetch_authority(there.url, ours.pin)
    with open_http(there.url, ours.authority) as http:
        with pytest.raises(Unreachable, match="uses plain HTTP, write http:// instead"):
            watch.fetch(http, there.url)
        with pytest.raises(Unreachable, match=r"no TLS connection .* write http:// instead"):
            leave(Control(http))


def test_a_controller_that_does_not_run_is_not_blamed_on_the_scheme():
    for url in ("http://127.0.0.1:9", "https://127.0.0.1:9"):
        with (
            httpx.Client() as http,
            pytest.raises(Unreachable, match="check the address, and that the controller is running"),
        ):
            watch.fetch(http, url)


def test_plain_http_beyond_loopback_needs_somebody_who_insists(tmp_path):
    with pytest.raises(UsageError, match="unencrypted"):
        known_authority("http://192.0.2.1:1", Trust(Home(tmp_path), DISK))
    assert known_authority("http://192.0.2.1:1", Trust(Home(tmp_path), DISK, insecure=True)) is None


# -- what a job uses -----------------------------------------------------------------


def test_a_job_uses_the_credential_that_its_agent_holds_now(tmp_path):
    seen, home = [], Home(tmp_path)
    home.key(DISK)
    home.keep_credential("first", DISK)
    control = open_jobs_control("http://127.0.0.1:1", home.credential_file, 3, time.time)

    def handler(request):
        seen.append(request.headers["authorization"])
        return httpx.Response(200, content=wire.encode(wire.Ack(True)))

    control.http = httpx.Client(transport=httpx.MockTransport(handler), base_url="http://127.0.0.1:1")
    leave(control)
    home.keep_credential("second", DISK)
    leave(control)
    assert seen == ["Bearer first", "Bearer second"] and control.signer.fence == 3


def test_a_job_without_its_agents_credential_or_key_says_so(tmp_path):
    home = Home(tmp_path)
    with pytest.raises(AuthError, match="cannot read the credential"):
        open_jobs_control("http://127.0.0.1:1", home.credential_file, 1, time.time)
    home.keep_credential("first", DISK)
    with pytest.raises(AuthError, match="cannot read the agent's key"):
        open_jobs_control("http://127.0.0.1:1", home.credential_file, 1, time.time)


def test_a_failed_renewal_keeps_what_was_there():
    control = Control(
        httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(401)), base_url="http://127.0.0.1:1"),
        "old",
    )
    with pytest.raises(AuthError):
        control.renew(RenewRequest("a", "a"))
    assert control.credential == "old"


# -- what viewers use ------------------------------------------------------------------


def test_a_viewer_who_needs_a_token_is_told_how_to_get_one():
    problem = wire.encode(wire.Problem("AuthError", "this request needs a credential", "x"))
    for code in (401, 403):
        transport = httpx.MockTransport(lambda request, code=code: httpx.Response(code, content=problem))
        with (
            httpx.Client(transport=transport) as http,
            pytest.raises(AuthError, match=r"curtail token create .*--role viewer"),
        ):
            watch.fetch(http, "http://127.0.0.1:1")


def test_on_loopback_a_viewers_token_goes_along_only_if_it_is_given():
    token = credentials.new_token("ab" * 32)
    with open_with_token("http://127.0.0.1:1", token) as http:
        assert http.headers["authorization"] == f"Bearer {token}"
    with open_with_token("http://127.0.0.1:1", None) as http:
        assert "authorization" not in http.headers
    with pytest.raises(UsageError, match="unencrypted"):
        open_with_token("http://192.0.2.1:1", token)
