"""The doctor names what is wrong and what to do, tells it by its exit code, and never breaks down itself."""

from __future__ import annotations

import errno
import http.server
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from controller.auth.authority import ensure
from curtail import __main__ as entry
from curtail.commands.doctor import checks, folder, machine, network
from curtail.commands.doctor.checks import Asked, diagnose
from curtail.commands.doctor.finding import Finding, Level, examine, fail, fine, warn
from curtail.errors import NotFound
from curtail.security.signing import SKEW_S
from curtail.system.disk import SystemDisk

QUICK = Asked(torch=False)


def worst(found):
    """The worst finding of a check, and that each of them is complete."""
    assert all(finding.found and (finding.level is Level.OK) == (not finding.remedy) for finding in found), found
    return max(found, key=lambda finding: list(Level).index(finding.level))


# -- as a whole ---------------------------------------------------------------------


def test_a_check_that_breaks_down_or_raises_is_a_finding():
    def breaks():
        raise ZeroDivisionError("oh")

    def raises():
        raise NotFound("there is no store", "make one")

    assert worst(examine("x", breaks)) == fail(
        "x", "this check failed unexpectedly: ZeroDivisionError: oh", "report it with this line"
    )
    assert worst(examine("x", raises)) == fail("x", "there is no store", "make one")


def test_the_exit_code_is_one_only_if_something_fails(monkeypatch, capsys):
    for found, code in (
        ([fine("a", "b")], 0),
        ([warn("a", "b", "c")], 0),
        ([warn("a", "b", "c"), fail("d", "e", "f")], 1),
    ):
        monkeypatch.setattr(checks, "checks", lambda asked, found=found: [("x", lambda: found)])
        assert checks.run_doctor(QUICK, as_json=True) == code
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] == (code == 0) and told["schema_version"] == checks.SCHEMA
        assert [Finding(**finding) for finding in told["findings"]] == found
        assert checks.run_doctor(QUICK, as_json=False) == code
        assert len(capsys.readouterr().out.splitlines()) == len(found)


def test_the_command_looks_at_this_machine(capsys, monkeypatch):
    monkeypatch.setattr(machine, "zeroconf", lambda: [fine("zeroconf", "not asked")])
    entry.run(["doctor", "--no-torch", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert {"python", "curtail", "sqlite"} <= {finding["check"] for finding in told["findings"]}


# -- the machine --------------------------------------------------------------------


def test_pythons_that_do_not_work_and_sqlites_with_the_bug_are_named():
    assert worst(machine.versions((3, 11))).level is Level.OK
    assert "3.11 to 3.13 are" in worst(machine.versions((3, 14))).found
    assert worst(machine.sqlite((3, 53, 0))).level is Level.OK
    assert worst(machine.sqlite((3, 40, 1))).level is Level.WARN


def told_by_torch(**changes):
    values = {"version": "2.10", "cuda": "13.0", "devices": ["H200", "H200"], "nccl": "2.28", "gloo": True}
    return lambda command, limit: "warning\n" + json.dumps(values | changes)


@pytest.mark.parametrize(
    ("changes", "driver", "level", "says"),
    [
        ({}, True, Level.OK, ""),
        ({"devices": [], "cuda": None, "nccl": None}, False, Level.OK, ""),
        ({"devices": [], "cuda": None, "nccl": None}, True, Level.FAIL, "torch was built without CUDA"),
        ({"devices": [], "nccl": None}, True, Level.FAIL, "detects no GPU"),
        ({"nccl": None}, True, Level.FAIL, "built without NCCL"),
    ],
)
def test_a_driver_without_a_torch_that_sees_its_gpus_fails(changes, driver, level, says):
    found = machine.torch(told_by_torch(**changes), lambda: driver)
    assert worst(found).level is level and says in worst(found).found
    if not changes:
        assert "2 x H200" in [finding.found for finding in found]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (subprocess.TimeoutExpired("x", 1), "did not answer"),
        (
            subprocess.CalledProcessError(1, "x", stderr="Traceback\nImportError: libcudart.so"),
            "ImportError: libcudart",
        ),
        (OSError("no python"), "no python"),
    ],
)
def test_a_torch_that_hangs_or_is_broken_fails(error, says):
    def ask(command, limit):
        raise error

    assert worst(machine.torch(ask)).level is Level.FAIL and says in worst(machine.torch(ask)).found


class FakeRank:
    """A process that ends as it is told."""

    stderr = None

    def __init__(self, code, text):
        self.returncode, self._text, self.killed = code, text, False

    def communicate(self, timeout):
        if self.returncode is None:
            raise subprocess.TimeoutExpired("rank", timeout)
        return None, self._text

    def kill(self):
        self.killed = True

    def wait(self):
        return self.returncode


@pytest.mark.parametrize(
    ("code", "text", "says"),
    [
        (None, "", "did not connect within"),
        (1, "a\nRuntimeError: no route", "RuntimeError: no route"),
        (3, "", "exit code 3"),
    ],
)
def test_ranks_that_cannot_talk_fail_and_none_is_left(code, text, says):
    ranks = [FakeRank(0 if n == 0 and code is not None else code, text) for n in range(2)]
    waiting = iter(ranks)
    found = machine.gloo(lambda *_, **__: next(waiting), 0.1)
    assert worst(found).level is Level.FAIL and says in worst(found).found
    assert all(rank.killed for rank in ranks)


def test_two_real_ranks_add_up_a_tensor():
    found = machine.gloo()
    assert worst(found).level is Level.OK, found


def test_a_network_without_multicast_is_a_warning():
    def fails():
        raise OSError("no such device")

    assert worst(machine.zeroconf(fails)).level is Level.WARN
    assert worst(machine.zeroconf(lambda: None)).level is Level.OK


# -- the folder ---------------------------------------------------------------------


@pytest.fixture
def home(world):
    """A controller's folder with secrets in it."""
    world.ready("a", "job")
    for name in ("join-token", "tls/ca-key.pem", "tls/ca.pem"):
        path = world.home / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        path.chmod(0o644 if path.name == "ca.pem" else 0o600)
    return world.home


def test_a_folder_is_told_by_what_is_in_it(home, tmp_path_factory):
    assert folder.kind_of(home) is folder.Kind.CONTROLLER and worst(folder.state(home)).level is Level.OK
    other = tmp_path_factory.mktemp("other")
    assert "neither a run nor an agent" in worst(folder.state(other)).found
    assert "does not exist" in worst(folder.state(other / "none")).found
    (other / "identity.json").write_text("{}")
    assert folder.kind_of(other) is folder.Kind.AGENT and worst(folder.state(other)).level is Level.OK


@pytest.mark.parametrize(
    ("mode", "level"),
    [(0o700, Level.OK), (0o750, Level.WARN), (0o755, Level.WARN), (0o770, Level.FAIL), (0o777, Level.FAIL)],
)
def test_a_folder_that_others_can_look_into_is_warned_of_and_one_that_they_can_write_fails(home, mode, level):
    home.chmod(mode)
    found = worst(folder.state(home))
    assert found.level is level
    assert level is Level.OK or (f"{mode:04o}" in found.found and found.remedy.startswith(f"chmod 700 {home}"))


def test_another_users_folder_fails(home, monkeypatch):
    monkeypatch.setattr(folder.os, "geteuid", lambda: 4711)
    assert "runs as user 4711" in worst(folder.state(home)).found


def test_secrets_that_others_can_read_are_named_one_by_one(home, tmp_path):
    assert worst(folder.secrets(home)).level is Level.OK
    (home / "tls" / "ca-key.pem").chmod(0o640)
    token = home.parent / "token"
    token.write_text("x")
    token.chmod(0o604)
    found = folder.secrets(home, (token,))
    assert [finding.level for finding in found] == [Level.FAIL, Level.FAIL]
    assert "mode 0640" in found[0].found and found[1].remedy == f"chmod 600 {token}"


def test_a_disk_that_runs_short_fails_before_the_run_pauses_for_long(home):
    assert worst(folder.room(home, lambda path: 10**12)).level is Level.OK
    assert worst(folder.room(home, lambda path: 200_000_000)).level is Level.WARN
    assert "only 1 MB left" in worst(folder.room(home, lambda path: 1_000_000)).found
    assert worst(folder.room(home / "not" / "yet", lambda path: 1)).level is Level.WARN


def test_a_sound_store_is_said_to_be_and_damage_and_a_broken_ledger_are_found(home, world):
    assert [finding.check for finding in folder.store(home)] == ["store", "ledger"]
    world.store.call(lambda tx: tx.set_run(tokens=7))
    broken = worst(folder.store(home))
    assert broken.check == "ledger" and "curtail controller restore" in broken.remedy
    world.store.close()
    data = bytearray((home / "state.db").read_bytes())
    data[4096:8192] = b"\xff" * 4096
    (home / "state.db").write_bytes(data)
    assert worst(examine("store", lambda: folder.store(home))).level is Level.FAIL
    assert folder.store(home / "none") == []


def test_a_killed_controller_and_a_running_one_are_told_apart(home):
    assert folder.running(home) == []
    (home / "controller.json").write_text(json.dumps({"pid": os.getpid()}))
    assert f"process {os.getpid()}" in worst(folder.running(home)).found
    for text in ("not json", json.dumps({"pid": 2**22 + 1})):
        (home / "controller.json").write_text(text)
        assert "did not shut down cleanly" in worst(folder.running(home)).found


def test_nothing_is_changed_by_looking(home, world, monkeypatch):
    monkeypatch.setattr(machine, "zeroconf", lambda: [])
    world.store.call(lambda tx: None)
    before = {
        path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file() and "state.db-" not in path.name
    }
    diagnose(Asked(home=home, torch=False))
    after = {
        path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file() and "state.db-" not in path.name
    }
    assert before == after


# -- the network --------------------------------------------------------------------


def test_a_system_that_lets_few_connections_wait_is_warned_of(tmp_path):
    limit = tmp_path / "somaxconn"
    assert network.backlog(limit) == [], "not a Linux"
    limit.write_text("128\n")
    found = worst(network.backlog(limit))
    assert found.level is Level.WARN and "backlog to 128" in found.found
    limit.write_text("4096\n")
    assert worst(network.backlog(limit)).level is Level.OK


@pytest.fixture
def taken():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use_fails_unless_it_is_in_use_by_whom_it_should(taken):
    assert worst([network.port("port", "127.0.0.1", taken)]).level is Level.FAIL
    assert worst([network.port("port", "127.0.0.1", taken, "the controller")]).level is Level.OK

    def refuses(host, number):
        raise OSError(errno.EACCES, "no")

    assert "may not listen" in network.port("port", "0.0.0.0", 80, binding=refuses).found


def test_the_rendezvous_port_is_looked_at_where_a_site_has_several_machines(tmp_path, taken):
    assert network.rendezvous(tmp_path, None) == []
    SystemDisk().replace("X", tmp_path / "identity.json", json.dumps({"machines": 1, "port": taken}).encode())
    assert network.rendezvous(tmp_path, None) == []
    SystemDisk().replace("X", tmp_path / "identity.json", json.dumps({"machines": 2, "port": taken}).encode())
    assert worst(network.rendezvous(tmp_path, None)).level is Level.FAIL
    assert worst(network.rendezvous(tmp_path, None, "the agent of this folder runs")).level is Level.OK


@pytest.mark.parametrize(
    ("skew", "level"),
    [(0.0, Level.OK), (4.0, Level.OK), (-20.0, Level.WARN), (SKEW_S + 2, Level.FAIL), (-9999, Level.FAIL)],
)
def test_clocks_that_differ_are_told_and_by_how_much(skew, level):
    found = network.clock_skew(formatdate(1_000_000, usegmt=True), 1_000_000.4 + skew, 1_000_000.6 + skew)
    assert found is not None and worst([found]).level is level
    if level is not Level.OK:
        assert f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'}" in found.found


def test_a_date_that_is_none_is_a_warning_and_none_is_nothing():
    assert network.clock_skew(None, 0, 1) is None
    assert worst([network.clock_skew("yesterday", 0, 1)]).level is Level.WARN


class Answers(http.server.BaseHTTPRequestHandler):
    status, text = 200, b"ok\n"

    def do_GET(self):
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.text)))
        self.end_headers()
        self.wfile.write(self.text)

    def log_message(self, *_):
        pass


@pytest.fixture
def answering():
    """answering(status, text): the address of something that answers so."""
    started = []

    def start(status=200, text=b"ok\n", identity=None):
        handler = type("Handler", (Answers,), {"status": status, "text": text})
        listener = http.server.HTTPServer(("127.0.0.1", 0), handler)
        if identity is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(identity.files.certificate, identity.files.key)
            listener.socket = context.wrap_socket(listener.socket, server_side=True)
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        started.append((listener, thread))
        return f"http{'s' if identity else ''}://127.0.0.1:{listener.server_address[1]}"

    yield start
    for listener, thread in started:
        listener.shutdown()
        thread.join()
        listener.server_close()


def test_a_controller_that_is_well_and_one_that_is_not(answering):
    found = network.controller(answering(), network.Trust())
    assert worst(found).level is Level.OK
    assert [finding.check for finding in found] == ["reach", "tls", "controller", "clock"]
    sick = worst(network.controller(answering(503, b"the energy simulation makes no steps\n"), network.Trust()))
    assert sick.level is Level.FAIL and "makes no steps" in sick.found


def test_over_tls_only_the_right_controller_under_the_right_name_is_well(answering, tmp_path):
    now, mine, other = time.time(), tmp_path / "mine", tmp_path / "other"
    for folder_ in (mine, other):
        folder_.mkdir()
    identity = ensure(mine, ["127.0.0.1"], now, SystemDisk())
    stranger = ensure(other, ["127.0.0.1"], now, SystemDisk())
    found = network.controller(answering(identity=identity), network.Trust(authority=identity.authority))
    assert worst(found).level is Level.OK and "this controller's authority" in found[1].found
    wrong = worst(network.controller(answering(identity=identity), network.Trust(authority=stranger.authority)))
    assert wrong.check == "tls" and "could not be verified as the controller" in wrong.found
    named = network.Trust(authority=identity.authority, server_name="another.example")
    assert worst(network.controller(answering(identity=identity), named)).check == "tls"


def test_a_controller_that_cannot_be_reached_fails_with_the_reason(taken):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        refused = network.controller(f"http://127.0.0.1:{free.getsockname()[1]}", network.Trust())
    assert "check that the controller runs" in worst(refused).remedy
    unknown = network.controller("https://no.such.host.invalid:8765", network.Trust())
    assert "cannot be resolved" in worst(unknown).found


def test_https_without_anything_that_names_the_controller_is_a_warning(taken):
    found = network.controller(f"https://127.0.0.1:{taken}", network.Trust())
    assert worst(found).level is Level.WARN and "--token-file" in worst(found).remedy


def test_everything_at_once_on_a_controllers_folder(home, taken, monkeypatch):
    monkeypatch.setattr(machine, "zeroconf", lambda: [fine("zeroconf", "not asked")])
    found = diagnose(
        Asked(home=home, port=taken, url=f"http://127.0.0.1:{taken + 1 if taken < 65535 else 1}", torch=False)
    )
    levels = {finding.check: finding.level for finding in found}
    assert levels["port"] is Level.FAIL and levels["reach"] is Level.FAIL
    assert all(levels[name] is Level.OK for name in ("folder", "disk", "store", "ledger", "secrets"))


def test_a_folder_that_is_not_there_breaks_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(machine, "zeroconf", lambda: [])
    found = diagnose(Asked(home=tmp_path / "none", torch=False))
    assert worst(found).level is Level.WARN
