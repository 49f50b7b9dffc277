"""`curtail agent join`: keeps one machine in a run, from its first contact until it leaves.

Sets up what `agent.loop` needs: the folder, the connection, and the signal
handlers for an orderly shutdown.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import types
from collections.abc import Iterator

from agent.controller_trust import ControllerTrust
from agent.home import open_home
from agent.loop import Agent
from agent.options import Edges, JoinOptions, Stop
from curtail.errors import UsageError
from curtail.security.token import parse_token
from curtail.system.clock import Clock
from curtail.system.process import on_signals
from curtail.system.systemd import take_notifier

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def run(options: JoinOptions, edges: Edges | None = None, stop: Stop | None = None) -> int:
    """Keep this machine in the run until the run is finished or the agent is told to stop.

    Returns: the exit code: 0, or 130 after SIGINT.
    Raises: CurtailError: the agent could not join, or the controller refused it.
    """
    # First remove NOTIFY_SOCKET from the environment: jobs must not notify systemd in the agent's name.
    edges, stop = edges or Edges(notifier=take_notifier(os.environ)), stop or Stop()
    for what, name in (("site", options.site), ("region", options.region)):
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is not a valid name of a {what}", "use at most 63 letters, digits, '.', '_' and '-'"
            )
    token = parse_token(options.token) if options.token else None  # reports a typo before any request is sent
    with open_home(options.home, edges.disk) as home, _signals(stop, edges.clock):
        url = options.url or edges.find(options.discover_s).url
        control = edges.open_control(
            url, ControllerTrust(home, edges.disk, token, options.server_name, options.insecure)
        )
        with control.http:
            agent = Agent(options, edges, home, control, stop)
            agent.first_contact()
            edges.notifier.ready()
            return agent.live()


@contextlib.contextmanager
def _signals(stop: Stop, clock: Clock) -> Iterator[None]:
    """While the block runs, SIGINT, SIGTERM and SIGHUP shut the agent down in order.

    A SIGHUP that is ignored at the start, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signal handlers; the caller uses `stop` instead
        return

    def ask(number: int, frame: types.FrameType | None) -> None:
        stop.on_signal(number, clock.monotonic())

    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    with on_signals((signal.SIGINT, signal.SIGTERM, *hangup), ask):
        yield


__all__ = ["Edges", "JoinOptions", "Stop", "run"]
