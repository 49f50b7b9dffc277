"""`curtail doctor`: selects the checks for the given options, runs them and prints the findings.

Each check is a function that returns findings; no check changes anything. A finding
has a level, and a remedy unless the level is ok. The exit code is 1 if any check
fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from curtail.commands.doctor import folder, machine, network
from curtail.commands.doctor.finding import Check, Finding, Level, examine
from curtail.commands.doctor.folder import Kind
from curtail.security.token import Token

SCHEMA = 1
"""Version of the JSON format; raised when a field changes its meaning or is removed."""

MARKS = {Level.OK: "ok  ", Level.WARN: "WARN", Level.FAIL: "FAIL"}


@dataclass(frozen=True, slots=True)
class Asked:
    """The options of the command line."""

    url: str | None = None
    home: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8765
    rendezvous_port: int | None = None
    token: Token | None = None
    token_file: Path | None = None
    server_name: str | None = None
    torch: bool = True  # start processes that import torch


def checks(asked: Asked) -> Iterator[tuple[str, Check]]:
    """The names and functions of all checks for these options, in order."""
    yield "python", machine.versions
    yield "sqlite", machine.sqlite
    if asked.torch:
        yield "torch", machine.torch
        yield "gloo", machine.gloo
    yield "zeroconf", machine.zeroconf
    home = asked.home
    tokens = () if asked.token_file is None else (asked.token_file,)
    if home is not None:
        yield "folder", lambda: folder.state(home)
        yield "disk", lambda: folder.room(home)
        yield "running", lambda: folder.running(home)
        yield "store", lambda: folder.store(home)
        yield "rendezvous", lambda: network.rendezvous(home, asked.rendezvous_port, folder.agent_of(home))
    if home is not None or tokens:
        yield "secrets", lambda: folder.secrets(home or Path("/nowhere"), tokens)
    if home is not None and folder.kind_of(home) is Kind.CONTROLLER:
        yield "port", lambda: [network.port("port", asked.host, asked.port, _tenant(home))]
        yield "backlog", network.backlog
    url = asked.url
    if url is not None:
        yield "controller", lambda: network.controller(url, _trust(asked))


def _tenant(home: Path) -> str:
    """The process that is expected to use the controller's port, for display; empty if none."""
    pid = folder.process_of(home)
    return f"the controller of this folder runs, process {pid}" if folder.alive(pid) else ""


def _trust(asked: Asked) -> network.Trust:
    authority = None
    if asked.home is not None and folder.kind_of(asked.home) is not Kind.NONE:
        own = asked.home / ("tls/ca.pem" if folder.kind_of(asked.home) is Kind.CONTROLLER else "ca.pem")
        authority = own.read_text(encoding="utf-8") if own.is_file() else None
    return network.Trust(asked.token, authority, asked.server_name)


def diagnose(asked: Asked, told: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
    """Run the checks; `told` is called with each finding at once."""
    found = []
    for name, check in checks(asked):
        for finding in examine(name, check):
            told(finding)
            found.append(finding)
    return found


def line(finding: Finding) -> str:
    """One finding as a line of text."""
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{MARKS[finding.level]}  {finding.check:<11} {finding.found}{remedy}"


def run_doctor(asked: Asked, as_json: bool) -> int:
    """Run all checks and print the findings; returns 1 if any check fails, else 0."""
    found = diagnose(asked, (lambda finding: None) if as_json else (lambda finding: print(line(finding), flush=True)))
    failed = [finding for finding in found if finding.level is Level.FAIL]
    if as_json:
        findings = [asdict(finding) for finding in found]
        print(json.dumps({"schema_version": SCHEMA, "ok": not failed, "findings": findings}, indent=1))
    return 1 if failed else 0
