"""Calls the drivers in a thread of its own, because their programs may take seconds.

The store's thread submits calls and takes results. A call that was submitted and not made when the
controller ends is lost; the provisioner's stored states say what is due. Seconds are monotonic.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from controller.provision.driver import Driver, ProvisionError, Request
from controller.provision.lifecycle import Observed
from curtail.system.clock import Clock

log = logging.getLogger("curtail.provision")


@dataclass(frozen=True, slots=True)
class Release:
    """A machine to be released."""

    observed: Observed
    grace_s: float
    now: bool  # its grace is over


@dataclass(frozen=True, slots=True)
class Result:
    """How a call ended."""

    site: str
    call: Request | Release | None  # None: an observation
    seen: tuple[Observed, ...] = ()
    error: str = ""


class Caller(Protocol):
    """Makes calls; tests make them at once."""

    def submit(self, site: str, call: Request | Release | None) -> None:
        """Have a call made: a request, a release, or (None) an observation."""
        ...

    def results(self) -> list[Result]:
        """The results since the last time, in order."""
        ...


def make_call(driver: Driver, site: str, call: Request | Release | None) -> Result:
    """Make one call of a driver; errors become part of the result."""
    try:
        if isinstance(call, Request):
            return Result(site, call, (driver.ensure(call),))
        if isinstance(call, Release):
            driver.release(call.observed, call.grace_s, call.now)
            return Result(site, call)
        return Result(site, None, tuple(driver.observe()))
    except ProvisionError as error:
        return Result(site, call, error=str(error))


class CallThread:
    """Makes the calls of all sites one after the other."""

    def __init__(self, drivers: Mapping[str, Driver]) -> None:
        self._drivers = drivers
        self._calls: queue.SimpleQueue[tuple[str, Request | Release | None] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="provision", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the calls that were submitted."""
        self._calls.put(None)
        self._thread.join(timeout=5.0)

    def submit(self, site: str, call: Request | Release | None) -> None:
        self._calls.put((site, call))

    def results(self) -> list[Result]:
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def _serve(self) -> None:
        while (entry := self._calls.get()) is not None:
            site, call = entry
            try:
                self._results.put(make_call(self._drivers[site], site, call))
            except Exception as error:  # a driver's bug must not end provisioning of the other sites
                log.exception("the provisioner of %s failed", site)
                self._results.put(Result(site, call, error=f"{type(error).__name__}: {error}"))


class Poll:
    """When each site is observed: every `interval_s` seconds, and at once after a call."""

    def __init__(self, clock: Clock, interval_s: float) -> None:
        self._clock, self._interval_s = clock, interval_s
        self._next: dict[str, float] = {}
        self._asked: set[str] = set()

    def due(self, site: str) -> bool:
        """Is an observation due, and none under way?"""
        return site not in self._asked and self._clock.monotonic() >= self._next.get(site, 0.0)

    def asked(self, site: str) -> None:
        """An observation was submitted."""
        self._asked.add(site)

    def done(self, site: str) -> None:
        """An observation ended."""
        self._asked.discard(site)
        self._next[site] = self._clock.monotonic() + self._interval_s
