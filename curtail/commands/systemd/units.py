"""The text of systemd units for a controller and for agents.

Decides how they are started again, watched, limited and ended; nothing here
writes a file. systemd ends a unit's main process first and lets it drain its
job (KillMode=mixed); only what is left after TimeoutStopSec is killed.

What is not there, and why: anything that makes NoNewPrivileges true for an
agent (that also every filter of system calls does), because the NVIDIA driver
may have to make its devices through a setuid program; PrivateDevices, because
of the GPUs; MemoryDenyWriteExecute, because compiled kernels are made at run
time. In a user's own units systemd cannot make all name spaces, so those options
are in the system's units only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "# Written by `curtail`; the same command writes it anew."

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

FINAL_CODES = "2 3 4 7"
"""Exit codes after which another start would fail the same way: usage, not found, not allowed, conflict."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What differs between the two programs."""

    description: str
    start_s: int  # until it must be ready
    stop_s: int  # until it must have ended
    watchdog_s: int  # longest time between two pings
    options: tuple[str, ...]  # of the service
    system_options: tuple[str, ...]  # of the service, if it is the system's


CONTROLLER = Kind(
    "curtail controller",
    # The first start makes the initial weights; a start after a crash reads the whole store.
    start_s=3600,
    stop_s=60,
    watchdog_s=60,
    options=("LimitNOFILE=65536", "NoNewPrivileges=yes", "RestrictRealtime=yes", "LockPersonality=yes"),
    system_options=(
        "PrivateTmp=yes",
        "PrivateDevices=yes",
        "ProtectSystem=full",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectControlGroups=yes",
        "RestrictSUIDSGID=yes",
    ),
)

AGENT = Kind(
    "curtail agent",
    start_s=600,
    # 60 s to drain, 10 s from SIGTERM to SIGKILL, and [rounds] upload_timeout (10 min) for a finished contribution.
    stop_s=720,
    watchdog_s=180,
    options=(
        "LimitNOFILE=65536",
        "LimitMEMLOCK=infinity",
        # A rank that the kernel kills for memory is a job that failed, not the end of the agent.
        "OOMPolicy=continue",
    ),
    system_options=("PrivateTmp=yes", "ProtectSystem=full", "ProtectControlGroups=yes"),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """One unit as it is asked for."""

    kind: Kind
    command: Sequence[str]
    folder: Path  # relative paths of the command are below it
    environment: Mapping[str, str]
    system: bool  # of the whole machine, not of one user
    user: str = ""  # whom the system's unit runs as; "": root


def quote(word: str) -> str:
    """`word` as one argument of a unit's command line, systemd.service(5)."""
    if any(ord(letter) < 32 for letter in word):
        raise ValueError("a command line of a unit cannot hold control characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w@+=:,./%$-]+", word) else f'"{escaped}"'


def text(unit: Unit) -> str:
    """The unit's file. Raises: ValueError: an argument that no unit can hold."""
    kind = unit.kind
    # In Environment= a dollar is a dollar.
    variables = [f"Environment={quote(f'{k}={v}').replace('$$', '$')}" for k, v in sorted(unit.environment.items())]
    service = [
        "Type=notify",
        "NotifyAccess=main",
        *([f"User={unit.user}"] if unit.user else []),
        f"WorkingDirectory={str(unit.folder).replace('%', '%%')}",
        *variables,
        f"ExecStart={' '.join(map(quote, unit.command))}",
        "Restart=on-failure",
        "RestartSec=10",
        f"RestartPreventExitStatus={FINAL_CODES}",
        f"WatchdogSec={kind.watchdog_s}",
        f"TimeoutStartSec={kind.start_s}",
        f"TimeoutStopSec={kind.stop_s}",
        "KillMode=mixed",
        "KillSignal=SIGTERM",
        "UMask=0077",
        *kind.options,
        *(kind.system_options if unit.system else ()),
    ]
    sections = {
        "Unit": [
            f"Description={kind.description}",
            *(["Wants=network-online.target", "After=network-online.target"] if unit.system else []),
            "StartLimitIntervalSec=0",
        ],
        "Service": service,
        "Install": [f"WantedBy={'multi-user.target' if unit.system else 'default.target'}"],
    }
    blocks = ["\n".join([f"[{name}]", *lines]) for name, lines in sections.items()]
    return "\n\n".join([MARK, *blocks]) + "\n"
