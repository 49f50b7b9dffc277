"""Text of the systemd units for controllers and agents: restart, watchdog, limits and stopping.

systemd terminates a unit's main process first and lets it drain its job
(KillMode=mixed); anything left after TimeoutStopSec is killed.

Options left out on purpose: everything that sets NoNewPrivileges for an agent
(including every system call filter), because the NVIDIA driver may create its device
files through a setuid program; PrivateDevices, because of the GPUs;
MemoryDenyWriteExecute, because kernels are compiled at run time. In user units systemd
cannot create all namespaces, so those options are only in system units.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "# Written by `curtail`; the same command writes it anew."

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

FINAL_CODES = "2 3 4 7"
"""Exit codes after which a restart would fail again: usage, not found, not allowed, conflict."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Settings that differ between controller and agent."""

    description: str
    start_s: int  # start timeout
    stop_s: int  # stop timeout
    watchdog_s: int  # watchdog timeout
    options: tuple[str, ...]  # of the service
    system_options: tuple[str, ...]  # further options for a system unit


CONTROLLER = Kind(
    "curtail controller",
    # The first start creates the initial weights; a start after a crash checks the whole store.
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
        # If the kernel kills a rank for lack of memory, only the job has failed; the agent continues.
        "OOMPolicy=continue",
    ),
    system_options=("PrivateTmp=yes", "ProtectSystem=full", "ProtectControlGroups=yes"),
)


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters of one unit."""

    kind: Kind
    command: Sequence[str]
    folder: Path  # working directory, for relative paths in the command
    environment: Mapping[str, str]
    system: bool  # a system unit instead of a user unit
    user: str = ""  # user of a system unit; "": root


def quote(word: str) -> str:
    """`word` as one argument of a unit's command line, systemd.service(5)."""
    if any(ord(letter) < 32 for letter in word):
        raise ValueError("the command line of a unit must not contain control characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return escaped if re.fullmatch(r"[\w@+=:,./%$-]+", word) else f'"{escaped}"'


def text(unit: Unit) -> str:
    """The contents of the unit file. Raises: ValueError: an argument that a unit cannot hold."""
    kind = unit.kind
    # Environment= does not expand dollars, so they are not escaped there.
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
