"""`curtail agent join`: one machine in a run, from its first contact until it leaves.

Puts together what `agent.loop` needs: the folder, the connection, and the signals
that end an agent in order.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import types
from collections.abc import Iterator

from agent.controller_trust import Trust
from agent.home import open_home
from agent.loop import Agent
from agent.options import Edges, JoinOptions, Stop
from curtail.errors import UsageError
from curtail.security.token import parse_token
from curtail.system.process import on_signals
from curtail.system.systemd import take_notifier

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def run(options: JoinOptions, edges: Edges | None = None, stop: Stop | None = None) -> int:
    """Keep this machine in the run until it is finished or the agent is told to stop.

    Returns: the exit code: 0, or 130 after SIGINT.
    Raises: CurtailError: the agent could not join, or was turned away.
    """
    # Out of the environment first: the jobs must not speak for the agent.
    edges, stop = edges or Edges(notifier=take_notifier(os.environ)), stop or Stop()
    for what, name in (("site", options.site), ("region", options.region)):
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name of a {what}", "use letters, digits, '.', '_' and '-', at most 63")
    token = parse_token(options.token) if options.token else None  # mistyped: said before anybody is asked
    with open_home(options.home, edges.disk) as home, _signals(stop):
        url = options.url or edges.find(options.discover_s).url
        control = edges.open_control(url, Trust(home, edges.disk, token, options.server_name, options.insecure))
        with control.http:
            agent = Agent(options, edges, home, control, stop)
            agent.first_contact()
            edges.notifier.ready()
            return agent.live()


@contextlib.contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM end the agent in order while the block runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals belong to the main thread; the caller stops through `stop`
        return

    def ask(number: int, frame: types.FrameType | None) -> None:
        stop.ask(number)

    with on_signals((signal.SIGINT, signal.SIGTERM), ask):
        yield


__all__ = ["Edges", "JoinOptions", "Stop", "run"]
