"""Settles the ledger once an hour in a background thread of the controller.

Only live sources revise their past, so only these are queried. If a source fails, it
is queried again in the next hour. Nothing waits for this thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from controller.ledger.historians import open_historians
from controller.ledger.settlement import Call, Historian, settle
from controller.signals.select import SelectedSignal, Surroundings
from curtail.config import RunConfig
from curtail.errors import CurtailError
from curtail.system.clock import Clock

log = logging.getLogger("curtail.settle")

EVERY_S = 3600.0
BACK_S = 7 * 86400.0
"""How far back the hourly settlement checks for revised values; `curtail ledger settle` checks all rows."""

STOP_S = 2.0
"""Longest wait for the thread at shutdown; a thread that hangs in the network ends with the process."""


def live_settler(call: Call, config: RunConfig, chosen: SelectedSignal, around: Surroundings) -> Settler:
    """The settler of a run; with a replayed trace, which never changes, it does nothing."""
    historians: list[Historian] = []
    if chosen.trace is None:
        try:
            historians = open_historians(config, around, None)
        except CurtailError as error:  # training does not need settlement, and it can be done later by a command
            log.warning("the ledger is not settled while this controller runs: %s", error)
    return Settler(call, historians, around.clock)


class Settler:
    """Queries all historians and writes new revisions. Args: call: runs a function in a transaction of the store."""

    def __init__(self, call: Call, historians: Sequence[Historian], clock: Clock, every: float = EVERY_S) -> None:
        self._call, self._historians, self._clock, self._every = call, tuple(historians), clock, every
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)

    def start(self) -> None:
        """Start the thread; the first settlement is after one interval."""
        if self._historians:
            self._thread.start()

    def stop(self) -> None:
        """Stop, without waiting for a request under way."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def settle(self) -> None:
        """Settle once."""
        for historian in self._historians:
            now = self._clock.wall()
            try:
                report = settle(self._call, historian, now, now - BACK_S)
            except CurtailError as error:  # for example a full disk; retried in the next hour
                log.error("settling failed: %s", error)
                continue
            except Exception:  # a plug-in may raise anything, which must not end the training
                log.exception("settling failed")
                continue
            for problem in report.problems:
                log.warning("settling: %s", problem)
            if report.first or report.revised:
                log.info("settled %d rows (%s), revised %d", report.first, historian.basis, report.revised)

    def _run(self) -> None:
        while not self._end.wait(self._every):
            self.settle()
