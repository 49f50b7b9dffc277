"""What the provisioners of all sites reported last: soft state, rebuilt after a restart.

The caller makes the calls of a site in order. So an observation says something about a machine only if
it was submitted after the machine's state last changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from controller.provision.calls import Caller, Poll, Release, Result
from controller.provision.driver import Request
from controller.provision.lifecycle import Observed

Machine = tuple[str, int]
"""(site, number of the machine)."""


class Observations:
    """The latest observations, and the calls that are under way."""

    def __init__(self, caller: Caller, poll: Poll) -> None:
        self._caller, self._poll = caller, poll
        self._seen: dict[str, list[Observed]] = {}
        self._submitted: Counter[str] = Counter()  # observations, per site
        self._finished: Counter[str] = Counter()
        self._valid_from: dict[Machine, int] = {}  # the first observation that counts
        self._requested: set[Machine] = set()  # requests under way
        self.failed: dict[Machine, str] = {}  # requests that failed
        self.errors: dict[str, str] = {}  # per site: why the latest call failed

    def known(self, site: str) -> bool:
        """Was the site observed since the controller's start?"""
        return site in self._seen

    def take(self) -> None:
        """Take over the caller's results."""
        for result in self._caller.results():
            self._take(result)

    def _take(self, result: Result) -> None:
        site, call = result.site, result.call
        if isinstance(call, Request):
            self._requested.discard((site, call.machine))
            if result.error:
                self.failed[site, call.machine] = result.error
            for seen in result.seen:
                self._seen.setdefault(site, []).append(seen)
        elif call is None:
            self._poll.done(site)
            self._finished[site] += 1
            if not result.error:
                self._seen[site] = list(result.seen)
        if result.error:
            self.errors[site] = result.error
        else:
            self.errors.pop(site, None)

    def poll(self, sites: Iterable[str]) -> None:
        """Submit the observations that are due."""
        for site in sites:
            if self._poll.due(site):
                self._poll.asked(site)
                self._submitted[site] += 1
                self._caller.submit(site, None)

    def request(self, site: str, request: Request) -> None:
        """Submit a request."""
        self._requested.add((site, request.machine))
        self.failed.pop((site, request.machine), None)
        self._caller.submit(site, request)

    def release(self, site: str, observed: Observed, grace_s: float, now: bool) -> None:
        """Submit a release."""
        self._caller.submit(site, Release(observed, grace_s, now))

    def requesting(self, site: str, machine: int) -> bool:
        """Is a request for the machine under way?"""
        return (site, machine) in self._requested

    def changed(self, site: str, machine: int) -> None:
        """The machine's state changed: only observations that begin now say that it is gone."""
        self._valid_from[site, machine] = self._submitted[site] + 1

    def of(self, site: str, machine: int) -> Observed | None:
        """The machine as it was observed last; None: nothing is known about it."""
        for seen in reversed(self._seen.get(site, [])):
            if seen.machine == machine:
                return seen
        if self.requesting(site, machine) or self._finished[site] < self._valid_from.get((site, machine), 1):
            return None
        return Observed(machine, "gone")

    def all_of(self, site: str) -> list[Observed]:
        """All machines of the site that were observed last, duplicates included."""
        return list(self._seen.get(site, []))
