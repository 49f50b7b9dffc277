"""The agent's options with their defaults, its injected dependencies, and its stop request.

`Edges` holds the dependencies that tests replace with fakes. `Stop` says whether
a person or the system asked the agent to end. Units: seconds.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent import launcher
from agent.controller_trust import ControllerTrust, open_control
from agent.hooks import Commands
from agent.http.client import Control
from agent.launcher import Spawn
from agent.network import local_address
from agent.power import PowerMeter, choose_meter
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import Disk, SystemDisk
from curtail.system.mdns import AnnouncedController, find_controller
from curtail.system.systemd import Notifier


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """The options of `curtail agent join`."""

    url: str | None  # None: search the network
    site: str
    region: str
    home: Path
    token: str | None = None  # needed only while there is no valid credential
    ranks: int = 0  # 0: one per CUDA device, or 1
    threads: int = 0  # per rank; 0: this machine's cores, split
    device_batch_samples: int = 0  # per rank and pass on this machine; 0: as the run file says
    discover_s: float = 3.0
    machines: int = 1  # machines of the site, including this one
    address: str | None = None  # where the site's other machines reach this one; None: `local_address`
    rendezvous_port: int = 29400  # on this machine, for the job of several machines
    link_bytes_s: float = 0.0  # bandwidth limit of a job's transfers, bytes per second; 0: none
    server_name: str | None = None  # name expected in the controller's certificate; None: the host of its address
    insecure: bool = False  # plain HTTP to another machine is allowed
    replace: bool = False  # with an operator's token: replace a machine that has another key
    hooks: Commands = field(default_factory=Commands)  # run when the machine pauses and resumes


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Edges:
    """The injected dependencies of the loop; tests pass fakes."""

    clock: Clock = field(default_factory=SystemClock)
    disk: Disk = field(default_factory=SystemDisk)
    spawn: Spawn = launcher.system_spawn
    meter: PowerMeter = field(default_factory=choose_meter)
    find: Callable[[float], AnnouncedController] = find_controller
    open_control: Callable[[str, ControllerTrust], Control] = open_control
    local_address: Callable[[str], str] = local_address
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    say: Callable[[str], None] = _say
    notifier: Notifier = field(default_factory=Notifier)
    chance: Callable[[], float] = random.random  # jitter, from 0 to 1


REPEAT_S = 1.0
"""Seconds within which repeated signals of the system count as one: when a session ends, shell and kernel both send
SIGHUP; Slurm and a batch script may both send SIGTERM."""


@dataclass(slots=True)
class Stop:
    """Whether a person or the system asked the agent to end, and by which signal."""

    number: int | None = None
    kill: Callable[[], None] = lambda: None
    since: float = 0.0  # monotonic seconds of the first signal

    def on_signal(self, number: int, now: float) -> None:
        """`ask`, unless the signal repeats the first one (`REPEAT_S`). Ctrl-C always counts.

        Raises: SystemExit: at the second request.
        """
        if self.number is None:
            self.since = now
        elif number != signal.SIGINT and now - self.since < REPEAT_S:
            return
        self.ask(number)

    def ask(self, number: int) -> None:
        """The first call asks for an orderly shutdown. The second call kills the job and exits.

        Raises: SystemExit: at the second call.
        """
        if self.number is None:
            self.number = number
            return
        self.kill()
        raise SystemExit(128 + number)
