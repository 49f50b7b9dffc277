"""Progress reports to the controller: a thread sends the latest one every second.

The answer may ask to end the round at the next step. Lost reports are ignored: the
job rides through an outage, and whether it may train is the agent's concern.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from agent.http.client import Control
from agent.job.agent_link import JobEnvironment
from curtail import wire
from curtail.errors import CurtailError, Refused

PROGRESS_S = 1.0
"""Seconds between two progress reports."""


class ProgressReporter:
    """The latest progress of rank 0, and whether the controller asked to end the round."""

    def __init__(self, env: JobEnvironment, control: Control) -> None:
        self._env, self._control = env, control
        self._latest: wire.Progress | None = None
        self._ending: int | None = None  # the round that the controller asked to end
        self._stop = threading.Event()

    def begin_round(self) -> None:
        """A new round begins: nobody asked to end it yet."""
        self._ending = None

    def should_end(self, number: int) -> bool:
        """Whether the controller asked to end round `number` at the next step."""
        return self._ending == number

    def report(self, number: int, steps: int, tokens: int, loss: float | None, tokens_per_s: float) -> wire.Progress:
        """So many steps and tokens of round `number` are done; to be sent within a second."""
        env = self._env
        self._latest = wire.Progress(env.site, env.fence, env.job, number, steps, tokens, loss, tokens_per_s)
        return self._latest

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Send reports from a thread while the block runs."""
        thread = threading.Thread(target=self._send, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _send(self) -> None:
        sent: wire.Progress | None = None
        while not self._stop.wait(PROGRESS_S):
            latest = self._latest
            if latest is None or latest is sent:
                continue
            try:
                reply = self._control.progress(latest)
                sent = latest
                if reply.end_round:
                    self._ending = latest.round
            except Refused:
                # The round closed without this site, or its fence is old: further steps would be lost.
                self._ending = latest.round
            except CurtailError:
                continue
