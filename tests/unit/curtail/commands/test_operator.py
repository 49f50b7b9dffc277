"""`curtail token` and `curtail node`: on the store of a stopped controller, and what a running one is asked."""

from __future__ import annotations

import json
import stat

import httpx
import pytest

from controller.auth import credentials, token_files
from controller.auth.authority import ensure
from controller.home import home
from curtail import __main__ as entry
from curtail import wire
from curtail.commands.operator.admin_client import RunningDesk, open_desk
from curtail.errors import CurtailError, NotFound, Refused, Unreachable
from curtail.security.token import parse_token
from curtail.system.disk import SystemDisk


@pytest.fixture
def stopped(world):
    """The folder of a controller that does not run, in which one machine had joined."""
    world.join("a")
    ensure(world.home, [], world.clock.wall(), SystemDisk())
    world.store.close()
    return world.home


def run(capsys, *arguments):
    code = entry.run([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_token_is_made_listed_and_revoked_without_a_controller(stopped, capsys, tmp_path):
    code, out, err = run(capsys, "token", "create", "--home", stopped, "--site", "b", "--expires", "2 h")
    token = parse_token(out.strip())
    assert code == 0 and token.pin is not None and token.secret not in err
    listed = json.loads(run(capsys, "token", "list", "--home", stopped, "--json")[1])
    mine = next(entry for entry in listed if entry["id"] == token.id)
    assert (mine["role"], mine["site"], mine["uses"], mine["state"]) == ("agent", "b", 1, "good")
    assert mine["expires"] - mine["created"] == 7200.0
    assert f"token {token.id} is revoked" in run(capsys, "token", "revoke", token.id, "--home", stopped)[1]
    code, out, _ = run(capsys, "token", "revoke", token.id, "--home", stopped)
    assert code == 0 and f"token {token.id} was already revoked" in out
    assert "revoked" in run(capsys, "token", "list", "--home", stopped)[1]
    code, _, err = run(capsys, "token", "revoke", "nobody", "--home", stopped)
    assert code == 3 and "token list" in err


def test_a_token_in_a_file_is_for_its_owner_and_not_printed(stopped, capsys, tmp_path):
    file = tmp_path / "viewer.token"
    code, out, err = run(capsys, "token", "create", "--home", stopped, "--role", "viewer", "--out", file)
    token = token_files.read(file)
    assert code == 0 and token is not None and token.secret not in out + err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_token_is_never_written_over_another_file_and_none_is_made_that_nobody_gets(stopped, capsys, tmp_path):
    before = json.loads(run(capsys, "token", "list", "--home", stopped, "--json")[1])
    kept = tmp_path / "a.token"
    kept.write_text("shown once")
    code, _, err = run(capsys, "token", "create", "--home", stopped, "--out", kept)
    assert code == Refused.exit_code and "already exists" in err and kept.read_text() == "shown once"
    code, _, err = run(capsys, "token", "create", "--home", stopped, "--out", tmp_path / "no" / "a.token")
    assert code == NotFound.exit_code and "create it first" in err
    assert json.loads(run(capsys, "token", "list", "--home", stopped, "--json")[1]) == before


def test_rotating_replaces_the_file_and_revokes_what_it_held(stopped, capsys):
    run(capsys, "token", "rotate", "--home", stopped)
    before = token_files.read(stopped / token_files.JOIN)
    assert run(capsys, "token", "rotate", "--home", stopped)[0] == 0
    after = token_files.read(stopped / token_files.JOIN)
    listed = json.loads(run(capsys, "token", "list", "--home", stopped, "--json")[1])
    states = {entry["id"]: entry["state"] for entry in listed}
    assert states[before.id] == "revoked" and states[after.id] == "good"


def test_machines_are_listed_and_removed(stopped, capsys):
    assert "agent-a" in run(capsys, "node", "list", "--home", stopped, "--json")[1]
    assert run(capsys, "node", "list", "--home", stopped)[1].splitlines()[1].startswith("a ")
    assert run(capsys, "node", "rm", "a", "--home", stopped)[0] == 0
    assert json.loads(run(capsys, "node", "list", "--home", stopped, "--json")[1]) == []
    assert run(capsys, "node", "rm", "a", "--home", stopped)[0] == 3


def test_wrong_times_roles_and_folders_are_refused(stopped, capsys, tmp_path):
    for wrong in (["--expires", "soon"], ["--expires", "0 h"], ["--role", "king"], ["--site", "a/b"]):
        assert run(capsys, "token", "create", "--home", stopped, *wrong)[0] == 2
    assert run(capsys, "token", "list", "--home", tmp_path / "nowhere")[0] == 3
    assert not (tmp_path / "nowhere").exists()


def test_a_controller_that_is_just_starting_is_waited_for_by_the_person(stopped):
    with home.lock(stopped), pytest.raises(Refused, match="starting or stopping"), open_desk(stopped):
        pass


def test_without_the_operators_token_a_running_controller_cannot_be_asked(stopped):
    (stopped / "controller.json").write_text(json.dumps({"url": "http://127.0.0.1:9"}))
    with home.lock(stopped):
        with pytest.raises(NotFound, match="operator-token"), open_desk(stopped):
            pass
        token_files.write(stopped / token_files.OPERATOR, str(credentials.new_token("0" * 64)), SystemDisk())
        with open_desk(stopped) as desk, pytest.raises(Unreachable):
            desk.nodes()


def test_a_running_controller_is_asked_and_its_refusals_are_told():
    seen = []
    answers = {
        wire.TOKENS: wire.TokenReply("id", "token"),
        wire.TOKEN_REVOKE: wire.Ack(True),
        wire.NODES: wire.NodeList(()),
        wire.NODE_REMOVE: wire.NodeRemoved(2),
    }

    def handler(request):
        seen.append((request.method, request.url.path))
        return httpx.Response(200, content=wire.encode(answers[request.url.path]))

    def desk(handler):
        return RunningDesk(httpx.Client(transport=httpx.MockTransport(handler), base_url="http://127.0.0.1:1"))

    running = desk(handler)
    request = wire.TokenRequest("viewer", "", "", None, None, "")
    assert running.create(request).token == "token" and running.nodes().nodes == ()
    assert running.revoke("id") is answers[wire.TOKEN_REVOKE].ok
    assert running.remove(wire.NodeRemove("a", None)).count == 2
    assert seen == [("POST", wire.TOKENS), ("GET", wire.NODES), ("POST", wire.TOKEN_REVOKE), ("POST", wire.NODE_REMOVE)]
    problem = wire.encode(wire.Problem("Refused", "no", "do this"))
    with pytest.raises(Refused, match="no: do this"):
        desk(lambda request: httpx.Response(409, content=problem)).nodes()
    with pytest.raises(CurtailError, match="answered with HTTP 500"):
        desk(lambda request: httpx.Response(500, text="<html>")).nodes()
