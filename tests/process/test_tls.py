"""A controller that speaks TLS, and everything that talks to it, as real processes on loopback."""

from __future__ import annotations

import json
import subprocess

import pytest

from controller.auth import token_files
from curtail import wire
from curtail.security.tls import open_with_token
from curtail.security.token import parse_token

pytestmark = pytest.mark.process

HOST = "127.0.0.2"


@pytest.fixture
def address(fleet):
    """The address of a controller that speaks TLS at 127.0.0.2, with no region curtailed."""
    fleet.write_run(fleet={"lost_after": "2 s"})
    fleet.write_trace([(600, "")])
    process = fleet.start(
        "controller", "controller", "start", fleet.run_file, "--home", fleet.home, "--trace", fleet.trace_file,
        "--unit", "g/kWh", "--speed", 60, "--port", 0, "--no-announce", "--host", HOST, "--tls",
    )  # fmt: skip

    def listens():
        file = fleet.home / "controller.json"
        return json.loads(file.read_text())["url"] if file.is_file() else None

    url = fleet.wait_for("the controller writes its address", listens)
    fleet.controller = process
    assert url.startswith(f"https://{HOST}:")
    return url


def join(fleet, url, name, token, *flags):
    home = fleet.folder / f"home-{name}"
    file = fleet.folder / f"token-{name}"
    file.write_text(token)
    return fleet.start(
        f"agent-{name}", "agent", "join", url, "--site", "a", "--region", "A", "--home", home, "--token-file", file,
        "--ranks", 1, *flags,
    )  # fmt: skip


def test_a_site_joins_over_tls_is_replaced_after_a_wipe_and_no_secret_is_written_anywhere(fleet, address, command):
    """Join by the pin, look on with a viewer's token, wipe and come back."""
    url = address
    made = command("token", "create", "--home", fleet.home, "--role", "viewer", "--note", "wall screen")
    viewer = parse_token(made.stdout.strip())
    with open_with_token(url, viewer) as looking:
        agent = join(fleet, url, "one", (fleet.home / "join-token").read_text())

        def sites():
            return wire.decode(wire.Status, looking.get(wire.STATUS).content).sites

        fleet.wait_for("the agent joins", lambda: [site.state for site in sites()] == ["IDLE"])
        # A wiped machine: a token for any site does not do, one for this site does.
        agent.kill_9()
        fleet.wait_for("its silence counts", lambda: "silent" in sites()[0].reason)
        wiped = join(fleet, url, "two", (fleet.home / "join-token").read_text())
        assert wiped.wait() == 7 and "curtail token create --site a" in wiped.text()
        made = command("token", "create", "--home", fleet.home, "--site", "a", "--json")
        again = join(fleet, url, "three", json.loads(made.stdout)["token"])
        fleet.wait_for("the wiped machine is back", lambda: "joined the run" in again.text())

        status = command("status", url, "--json", CURTAIL_TOKEN=str(viewer))
        assert status.returncode == 0 and json.loads(status.stdout)["sites"][0]["site"] == "a"
        assert command("node", "rm", "a", "--home", fleet.home).returncode == 0
        assert again.wait() == 4, again.tail()
    held = [token_files.read_token_file(fleet.home / name) for name in token_files.ROLE_OF]
    secrets = [token.secret for token in held if token is not None] + [viewer.secret]
    secrets.append(json.loads(made.stdout)["token"].split(".")[3])
    allowed = {"join-token", "operator-token", "token-one", "token-two", "token-three"}
    for path in fleet.folder.rglob("*"):
        if path.is_file() and path.name not in allowed:
            data = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in data], path
    started = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [secret for secret in secrets if secret in started]
    assert fleet.stop() == {"controller": 0} and not (fleet.home / "controller.json").exists(), "it ends in order"
    assert fleet.controller.text().count("Traceback") == 0
