"""When the next heartbeat is due, and how long they have been failing. Units: seconds of `Clock.monotonic`."""

from __future__ import annotations

from agent.decide import beat_s, retry_s
from agent.hooks import UNREACHABLE_S
from agent.lifecycle import State
from agent.options import Edges


class Beats:
    """The rhythm of one agent's heartbeats."""

    def __init__(self, edges: Edges) -> None:
        self.edges = edges
        self.failures = 0  # in a row
        self._next = self._failing_since = 0.0
        self._told: tuple[State, str] | None = None  # what the last one that was answered said

    def due(self, state: State, phase: str) -> bool:
        """Is it time for one, or is there something new to say?"""
        if self.edges.clock.monotonic() >= self._next:
            return True
        # While the controller cannot be reached, a change does not make it reachable.
        return self.failures == 0 and self._told != (state, phase)

    def at_once(self) -> None:
        """The next one is due now."""
        self._next = 0.0

    def answered(self, state: State, phase: str) -> bool:
        """One that said this was answered; were the ones before it not?"""
        again, self.failures, self._told = self.failures > 0, 0, (state, phase)
        return again

    def wait(self, heartbeat_s: float) -> None:
        """The next one is due after the run's interval, spread over the agents."""
        self._next = self.edges.clock.monotonic() + beat_s(heartbeat_s, self.edges.chance())

    def refused(self, heartbeat_s: float) -> None:
        """The credential was no good; the next one is due after the run's interval."""
        self._next = self.edges.clock.monotonic() + heartbeat_s

    def failed(self, sent: float, heartbeat_s: float) -> None:
        """One that was sent at `sent` was not answered."""
        self._failing_since = self._failing_since if self.failures else sent
        self.failures += 1
        self._next = self.edges.clock.monotonic() + retry_s(self.failures, heartbeat_s, self.edges.chance())

    def unreachable(self, sent: float) -> bool:
        """Has the controller been out of reach for so long that a machine may rest?"""
        return sent - self._failing_since >= UNREACHABLE_S
