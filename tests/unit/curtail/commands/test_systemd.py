"""Units of systemd: what they say, when they are written, and that a ping is sent only by a loop that comes around."""

from __future__ import annotations

import asyncio
import configparser
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from doubles import FakeClock

from controller.http.server import Pulse
from curtail import __main__ as entry
from curtail.commands.systemd import install as service
from curtail.commands.systemd import units
from curtail.commands.systemd.install import Machine, Wanted, install
from curtail.errors import CurtailError, Refused, UsageError
from curtail.system.systemd import Notifier, take_notifier


def unit(kind, system=False, **changes):
    values = {"command": (sys.executable, "-m", "curtail", "x"), "folder": Path("/"), "environment": {}, "user": ""}
    return units.Unit(kind=kind, system=system, **(values | changes))


def parsed(text):
    """Section -> key -> all its values."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


BOTH = pytest.mark.parametrize("kind", [units.CONTROLLER, units.AGENT], ids=["controller", "agent"])


@BOTH
@pytest.mark.parametrize("system", [True, False])
def test_a_unit_is_watched_started_again_and_drains_before_it_is_killed(kind, system):
    text = units.text(unit(kind, system))
    assert text.startswith(units.MARK)
    configparser.ConfigParser(strict=False, interpolation=None).read_string(text)
    service_section = parsed(text)["Service"]
    assert service_section["Type"] == ["notify"] and service_section["KillMode"] == ["mixed"]
    assert service_section["Restart"] == ["on-failure"] and "LimitNOFILE" in service_section
    assert int(service_section["WatchdogSec"][0]) > 0
    drain = int(service_section["TimeoutStopSec"][0])
    assert drain >= (60 + 10 + 600 if kind is units.AGENT else 30), "a finished contribution may wait `upload_timeout`"
    assert parsed(text)["Install"]["WantedBy"] == ["multi-user.target" if system else "default.target"]


@pytest.mark.parametrize("system", [True, False])
def test_an_agents_unit_forbids_nothing_that_cuda_needs(system):
    text = units.text(unit(units.AGENT, system))
    # Every filter of system calls also makes NoNewPrivileges true, which stops the driver's setuid program.
    broken = ("NoNewPrivileges", "PrivateDevices", "DevicePolicy", "MemoryDenyWriteExecute", "SystemCallFilter",
              "RestrictRealtime", "LockPersonality", "RestrictSUIDSGID", "ProtectKernelTunables", "ProtectClock",
              "ProtectKernelModules", "RestrictNamespaces", "RestrictAddressFamilies", "ProtectHome")  # fmt: skip
    assert not [name for name in broken if f"{name}=" in text]
    assert "OOMPolicy=continue" in text and "LimitMEMLOCK=infinity" in text


@BOTH
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_nothing_wrong_with_a_unit(kind, system, tmp_path):
    words = (sys.executable, "-m", "curtail", "with space", 'a "quote"', "100%", "$HOME", "back\\slash", ";", "")
    path = tmp_path / "curtail-test.service"
    path.write_text(units.text(unit(kind, system, command=words, environment={"A": "1 2", "B": "%$\\"})))
    done = subprocess.run(
        ["systemd-analyze", *(() if system else ("--user",)), "--man=no", "verify", path], capture_output=True,
        text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    # Units of the machine that it looks at besides are not ours.
    assert not [line for line in done.stderr.splitlines() if "curtail-test" in line]


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("plain-word_1.x/y:z=", "plain-word_1.x/y:z="),
        ("two words", '"two words"'),
        ("", '""'),
        ("100%", "100%%"),
        ("$HOME", "$$HOME"),
        ('a"b\\', '"a\\"b\\\\"'),
        (";", '";"'),
    ],
)
def test_arguments_are_quoted_for_systemd(word, quoted):
    assert units.quote(word) == quoted


def test_an_argument_with_a_line_break_is_refused():
    with pytest.raises(UsageError, match="control characters"):
        service.unit_of(Wanted(units.AGENT, ("a\nExecStart=/bin/evil",), "x", False), Path("/"))


class FakeMachine:
    def __init__(self, tmp_path, **changes):
        self.calls = []
        values = {
            "environment": {"XDG_CONFIG_HOME": str(tmp_path / "config")},
            "booted": lambda: True,
            "call": lambda command: self.calls.append(list(command)) or 0,
            "system_folder": tmp_path / "system",
            "root": lambda: True,
            "systemctl": lambda: "/bin/systemctl",
        }
        self.machine = Machine(**(values | changes))


def wanted(**changes):
    values = {"kind": units.AGENT, "words": ("agent", "join"), "name": "curtail-agent", "system": False}
    return Wanted(**(values | changes))


def test_a_users_unit_and_a_systems_unit_are_written_and_systemd_is_told(tmp_path, capsys):
    fake = FakeMachine(tmp_path)
    assert install(wanted(), fake.machine) == 0
    path = tmp_path / "config" / "systemd" / "user" / "curtail-agent.service"
    assert parsed(path.read_text())["Service"]["ExecStart"] == [f"{sys.executable} -m curtail agent join"]
    captured = capsys.readouterr()
    assert captured.out == f"{path}\n" and "systemctl --user enable --now curtail-agent" in captured.err
    install(wanted(system=True, user="train"), fake.machine)
    text = (tmp_path / "system" / "curtail-agent.service").read_text()
    assert "User=train" in text and "ProtectSystem=full" in text
    assert fake.calls == [["/bin/systemctl", "--user", "daemon-reload"], ["/bin/systemctl", "daemon-reload"]]


def test_writing_it_again_replaces_our_own_unit_and_nobody_elses(tmp_path):
    fake = FakeMachine(tmp_path)
    path = tmp_path / "config" / "systemd" / "user" / "curtail-agent.service"
    install(wanted(), fake.machine)
    install(wanted(words=("agent", "join", "--site", "b")), fake.machine)
    assert "--site b" in path.read_text()
    path.write_text("[Service]\nExecStart=/bin/mine\n")
    with pytest.raises(Refused, match="was not written by curtail"):
        install(wanted(), fake.machine)
    assert "/bin/mine" in path.read_text()


def test_without_systemd_or_the_right_nothing_is_written_but_a_dry_run_prints(tmp_path, capsys):
    for changes in ({"booted": lambda: False}, {"systemctl": lambda: None}):
        with pytest.raises(CurtailError, match="does not run systemd"):
            install(wanted(), FakeMachine(tmp_path, **changes).machine)
        assert install(wanted(dry_run=True), FakeMachine(tmp_path, **changes).machine) == 0
        assert "[Service]" in capsys.readouterr().out
    with pytest.raises(Refused, match="only root"):
        install(wanted(system=True), FakeMachine(tmp_path, root=lambda: False).machine)
    with pytest.raises(UsageError, match="add --system"):
        install(wanted(user="x"), FakeMachine(tmp_path).machine)
    with pytest.raises(UsageError, match="is not a valid name"):
        install(wanted(name="../x"), FakeMachine(tmp_path).machine)
    assert not list(tmp_path.rglob("*.service"))


def test_the_command_prints_a_unit_that_starts_exactly_what_was_given(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["run.toml", "--home", "h", "--port", "9000"]
    assert entry.run(["controller", "service", "install", "--dry-run", "--", *words]) == 0
    made = parsed(capsys.readouterr().out)["Service"]
    assert made["ExecStart"] == [f"{sys.executable} -m curtail controller start {' '.join(words)}"]
    assert made["WorkingDirectory"] == [str(tmp_path)]
    words = ["https://10.0.0.1:8765", "--site", "a", "--region", "R", "--token-file", "t"]
    assert entry.run(["agent", "service", "install", "--dry-run", "--", *words]) == 0
    made = parsed(capsys.readouterr().out)["Service"]
    assert made["ExecStart"] == [f"{sys.executable} -m curtail agent join {' '.join(words)}"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["controller", "service", "install", "--dry-run", "--", "run.toml"], "missing option '--home'"),
        (["controller", "service", "install", "--dry-run", "--", "r", "--home", "h", "--nope"], "no such option"),
        (["agent", "service", "install", "--dry-run", "--", "--site", "a"], "missing option '--region'"),
        (
            ["agent", "service", "install", "--dry-run", "--", "--site", "a", "--region", "B", "--token-file", "-"],
            "a systemd unit cannot read a token from stdin",
        ),
    ],
)
def test_arguments_that_the_program_would_refuse_are_refused_before_anything_is_written(arguments, says, capsys):
    assert entry.run(arguments) == 2
    assert says in capsys.readouterr().err


# -- telling systemd ----------------------------------------------------------------


def test_pings_are_a_third_of_the_watchdogs_time_apart_and_children_do_not_inherit():
    environment = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7", "PATH": "/bin"}
    assert take_notifier(dict(environment), pid=7).every == 10.0
    assert take_notifier(dict(environment), pid=8).every == 0.0, "the watchdog is another process's"
    take_notifier(environment, pid=7)
    assert environment == {"PATH": "/bin"}
    assert take_notifier({}).every == 0.0


def test_a_loop_that_stands_still_sends_no_ping():
    sent = []
    notifier = Notifier("/run/x", 10.0, lambda address, message: sent.append(message))
    notifier.ready()
    for now in (0.0, 1.0, 9.9, 10.0, 15.0, 400.0):
        notifier.alive(now)
    notifier.stopping()
    assert sent == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1", b"STOPPING=1"]


@pytest.mark.parametrize(("sick", "pings"), [(None, 2), ("the energy simulation makes no steps", 0)])
def test_a_controller_whose_parts_stand_still_sends_no_ping(sick, pings):
    sent, clock = [], FakeClock(0.0)
    pulse = Pulse(Notifier("/run/x", 10.0, lambda _, message: sent.append(message)), clock, lambda: sick)
    for clock.t in (0.0, 20.0):
        asyncio.run(pulse.beat())
    assert sent == [b"WATCHDOG=1"] * pings


def test_without_systemd_and_without_its_answer_nothing_happens():
    def fails(address, message):
        raise OSError("nobody listens")

    Notifier("", 1.0, fails).alive(0.0)
    Notifier("/run/x", 1.0, fails).alive(0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux only")
@pytest.mark.parametrize("abstract", [True, False])
def test_the_message_arrives_at_systemds_socket(tmp_path, abstract):
    address = f"@curtail-test-{os.getpid()}" if abstract else str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if abstract else address)
        listener.settimeout(10)
        take_notifier({"NOTIFY_SOCKET": address}).ready()
        assert listener.recv(64) == b"READY=1"
