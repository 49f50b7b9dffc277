"""`curtail status` where it needs a token: what is said without one, and that one is enough once."""

from __future__ import annotations

import json
import stat
import threading
import time

import pytest
import uvicorn

from controller.auth import tokens
from controller.auth.authority import ensure
from controller.auth.token_files import OPERATOR
from controller.http import connection_limit
from controller.http.app import Door, create_app
from controller.http.connection_limit import Gate
from controller.http.listener import listen
from curtail import __main__ as entry
from curtail import wire
from curtail.commands.status import viewer_tokens
from curtail.system.disk import SystemDisk
from curtail.wire import TokenRequest

INFO = wire.RunInfo("run", "n", 1, "p", {}, "m", "t", 8, 100, 4, 4, "{}", "int8", False, 20, 600.0)


class Reached:
    """A controller over TLS on loopback, whose status needs a token."""

    def __init__(self, world):
        self.world = world
        identity = ensure(world.home, [], time.time(), SystemDisk())
        self.pin = identity.pin
        door = Door(identity.authority, identity.pin, False)
        self.app = create_app(world.service, world.uploads, INFO, lambda: None, door)
        listener = Gate(listen("127.0.0.1", 0), connection_limit.caps(64))
        self.url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(
            self.app, log_level="critical", access_log=False, **connection_limit.options(),
            ssl_certfile=identity.files.certificate, ssl_keyfile=identity.files.key,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listener]})
        self.thread.start()

    def token(self, role):
        request = TokenRequest(role, "", "", None, None, role)
        return self.world.store.call(lambda tx: tokens.create(tx, request, self.pin, self.world.clock.wall())).token

    def stop(self):
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def reached(world, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("CURTAIL_TOKEN", raising=False)
    monkeypatch.delenv("CURTAIL_URL", raising=False)
    world.tick()
    made = Reached(world)
    yield made
    made.stop()


@pytest.fixture
def status(capsys):
    def ask(*arguments):
        code = entry.run(["status", *map(str, arguments), "--json"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


def test_without_a_token_it_is_said_how_to_get_one(reached, status):
    code, out, err = status(reached.url)
    assert code != 0 and not out
    for words in ("requires a token", "--role viewer", "--token-file", "--remember", "status --home HOME"):
        assert words in err


def test_a_token_that_was_remembered_needs_not_be_given_again_and_its_owner_alone_can_read_it(
    reached, status, tmp_path, monkeypatch
):
    token, file = reached.token("viewer"), tmp_path / "viewer.token"
    file.write_text(token)
    assert status(reached.url, "--token-file", file)[0] == 0
    assert status(reached.url)[0] != 0, "nothing is kept that nobody asked to keep"
    code, out, err = status(reached.url, "--token-file", file, "--remember")
    assert code == 0 and json.loads(out)["state"] == "RUNNING" and token not in out + err
    kept = viewer_tokens.place(tmp_path / "state" / "curtail", reached.url)
    assert str(kept) in err and stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert status(reached.url + "/")[0] == 0
    monkeypatch.setenv("CURTAIL_URL", reached.url)
    assert status()[0] == 0
    reached.world.store.call(lambda tx: tokens.revoke(tx, token.split(".")[2], reached.world.clock.wall()))
    code, _, err = status()
    assert code != 0 and str(kept) in err and "delete it" in err


def test_a_remembered_token_is_sent_to_no_other_controller(reached, status, tmp_path):
    other = "ct1." + "ab" * 32 + ".00000000." + "cd" * 32
    from curtail.security.token import checksum

    viewer_tokens.remember(tmp_path / "state" / "curtail", reached.url, f"{other}.{checksum(other)}")
    code, _, err = status(reached.url)
    assert code != 0 and "is not the controller that this token is for" in err and "stored in" in err


@pytest.mark.parametrize("role", ["agent", "viewer"])
def test_a_bad_token_is_not_remembered_and_one_of_the_wrong_role_says_which_is_needed(
    reached, status, tmp_path, monkeypatch, role
):
    token = reached.token(role)
    if role == "viewer":
        reached.world.store.call(lambda tx: tokens.revoke(tx, token.split(".")[2], reached.world.clock.wall()))
    monkeypatch.setenv("CURTAIL_TOKEN", token)
    code, _, err = status(reached.url, "--remember")
    assert code != 0 and "--role viewer" in err
    assert not viewer_tokens.place(tmp_path / "state" / "curtail", reached.url).exists()


def test_on_the_controllers_machine_its_folder_is_enough(reached, status):
    home = reached.world.home
    assert "no controller runs" in status("--home", home)[2]
    (home / "controller.json").write_text(json.dumps({"url": reached.url, "pid": 1, "run": "r"}))
    assert "there is no token" in status("--home", home)[2]
    (home / OPERATOR).write_text(reached.token("operator"))
    code, out, _ = status("--home", home)
    assert code == 0 and json.loads(out)["state"] == "RUNNING"
    assert "cannot be combined with a URL" in status(reached.url, "--home", home)[2]
    assert "there is no run" in status("--home", home / "none")[2]


def test_two_addresses_have_two_files_and_nothing_in_an_address_is_a_path(tmp_path):
    urls = ["https://a:1", "https://a:2", "https://b:1", "https://[::1]:1", "https://a.b/../../x:1", "https://a"]
    places = {viewer_tokens.place(tmp_path, url) for url in urls}
    assert len(places) == len(urls) and {path.parent for path in places} == {tmp_path / "viewer"}
    assert viewer_tokens.place(tmp_path, "HTTPS://A:1/") == viewer_tokens.place(tmp_path, "https://a:1")
    assert viewer_tokens.recall(tmp_path, "https://a:1") is None


def test_there_must_be_a_token_to_remember(reached, status):
    assert "--remember needs a token" in status(reached.url, "--remember")[2]
