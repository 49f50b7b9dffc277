"""A person's order on its way: the command, the HTTP face and who may give one."""

from __future__ import annotations

import contextlib
import json

import httpx
import pytest
from asgi import AsgiTransport

from controller.auth.credentials import Caller, Role
from controller.http.app import create_app
from curtail import wire
from curtail.__main__ import run
from curtail.commands.operator import override
from curtail.commands.operator.admin_client import HttpAdminClient
from curtail.errors import Refused
from curtail.wire import TokenRequest


@pytest.fixture
def shown(world):
    """shown(role): a connection that shows a token of this role."""
    made: list[httpx.Client] = []

    def show(role: str) -> httpx.Client:
        request = TokenRequest(role, "", "", None, None, "test")
        by = Caller(Role.OPERATOR, "test")
        token = world.store.call(lambda tx: world.service.access.create_token(tx, request, None, by)).token
        app = create_app(world.service, world.uploads, None, lambda: None)  # type: ignore[arg-type]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        made.append(httpx.Client(transport=AsgiTransport(app), base_url="http://127.0.0.1", headers=headers))
        return made[-1]

    yield show
    for one in made:
        one.close()


@pytest.fixture
def home(shown, monkeypatch, tmp_path):
    """The folder of a controller that runs."""

    @contextlib.contextmanager
    def desk(folder):
        yield HttpAdminClient(shown("operator"))

    monkeypatch.setattr(override, "open_admin_client", desk)
    return str(tmp_path)


def test_the_command_orders_lists_and_takes_back(world, home, capsys):
    world.source.mci = {"A": 400.0, "B": 400.0}
    world.join("a", "A")
    world.tick()
    given = ["override", "A", "train", "--for", "30m", "--reason", "a visit", "--by", "kim", "--home", home]
    assert run(given) == 0 and capsys.readouterr().out == "A: ordered to train for 30 min\n"
    assert world.beat("a").granted
    assert run(["override", "list", "--home", home]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["region", "order", "left", "by", "why"]
    assert table[1].split() == ["A", "train", "30", "min", "kim", "a", "visit"]
    assert run(["override", "list", "--home", home, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["region"] == "A"
    assert run(["override", "A", "clear", "--home", home, "--by", "kim"]) == 0
    assert not world.beat("a").granted
    assert run(["override", "list", "--home", home]) == 0
    assert "no override is in force" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["A"], "the order for 'A' is missing"),
        (["A", "dance"], "unknown order 'dance'"),
        (["A", "train", "--reason", "x"], "an override needs a duration"),
        (["A", "train", "--for", "never", "--reason", "x"], "'never' is not a duration"),
        (
            ["A", "train", "--for", "soon", "--reason", "x"],
            "'soon' is not a duration: write --for as 30 min or 2 h, at most one day",
        ),
        (["A", "train", "--for", "1 h"], "an override needs a reason"),
        (["A/B", "pause", "--for", "1 h", "--reason", "x"], "is not a valid name of a region"),
    ],
)
def test_a_command_that_orders_nothing_is_a_usage_error(home, arguments, words, capsys):
    assert run(["override", *arguments, "--home", home]) == 2
    assert words in capsys.readouterr().err


def test_what_the_controller_refuses_the_command_says(world, home, capsys):
    assert run(["override", "Z", "pause", "--for", "1 h", "--reason", "x", "--home", home]) != 0
    assert "no region 'Z'" in capsys.readouterr().err
    assert run(["override", "A", "pause", "--for", "2 d", "--reason", "x", "--home", home]) != 0
    assert "at most 24 hours" in capsys.readouterr().err


def test_a_controller_that_does_not_run_takes_no_orders(tmp_path, monkeypatch):
    monkeypatch.setattr(override, "open_admin_client", lambda home: contextlib.nullcontext(object()))
    with pytest.raises(Refused, match="is not running"):
        override.list_orders(tmp_path, False)


def test_only_an_operator_may_order(world, shown):
    request = wire.encode(wire.OverrideRequest("A", "pause", 60.0, "kim", "x"))
    assert shown("viewer").post(wire.OVERRIDE, content=request).status_code == 403
    assert shown("operator").post(wire.OVERRIDE, content=request).status_code == 200
    naked = shown("operator")
    del naked.headers["Authorization"]
    assert naked.post(wire.OVERRIDE, content=request).status_code == 401
    assert len(world.store.call(lambda tx: tx.orders())) == 1
