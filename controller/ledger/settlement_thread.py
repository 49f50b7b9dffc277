"""Settles the ledger while the controller runs: once an hour, in a thread of its own.

Only live sources change their past, so only these are asked again. A source that
fails is asked in the next hour; nothing waits for this thread but the store.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from controller.ledger.historians import open_historians
from controller.ledger.settlement import Call, Historian, settle
from controller.signals.select import Signal, Surroundings
from curtail.config import RunConfig
from curtail.errors import CurtailError
from curtail.system.clock import Clock

log = logging.getLogger("curtail.settle")

EVERY_S = 3600.0
BACK_S = 7 * 86400.0
"""How far back the hourly settlement looks for revised values; `curtail ledger settle` looks at all rows."""

STOP_S = 2.0
"""Longest wait for the thread at the end; one that hangs in the network dies with the process."""


def live_settler(call: Call, config: RunConfig, chosen: Signal, around: Surroundings) -> Settler:
    """The settler of a run; it has nothing to do where a trace is replayed, which stays as it is."""
    historians: list[Historian] = []
    if chosen.trace is None:
        try:
            historians = open_historians(config, around, None)
        except CurtailError as error:  # training does not need it, and a person can settle later
            log.warning("the ledger is not settled while this controller runs: %s", error)
    return Settler(call, historians, around.clock)


class Settler:
    """Asks every historian, writes what is new. Args: call: runs a function in a transaction of the store."""

    def __init__(self, call: Call, historians: Sequence[Historian], clock: Clock, every: float = EVERY_S) -> None:
        self._call, self._historians, self._clock, self._every = call, tuple(historians), clock, every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)

    def start(self) -> None:
        """Begin; the first time after one interval."""
        if self._historians:
            self._thread.start()

    def stop(self) -> None:
        """Ask no more; an answer under way is not waited for."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def settle(self) -> None:
        """Settle once."""
        for historian in self._historians:
            now = self._clock.wall()
            try:
                report = settle(self._call, historian, now, now - BACK_S)
            except CurtailError as error:  # the store has no room; the next hour tries again
                log.error("settling failed: %s", error)
                continue
            except Exception:  # a plug-in may raise anything; training must not end by it
                log.exception("settling failed")
                continue
            for problem in report.problems:
                log.warning("settling: %s", problem)
            if report.first or report.revised:
                log.info("settled %d rows (%s), revised %d", report.first, historian.basis, report.revised)

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self.settle()
