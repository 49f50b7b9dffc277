"""How often somebody may ask: token buckets, one for each credential, and one for each address that shows none.

Decides which request is too many and when to come again; pure, with the time as
an argument. A machine's own bucket is as large as its agent and job can fill in
ten times their normal pace, and its heartbeats have one of their own, so that a
job that asks too often never costs its site the permit. Units: requests, seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests a second in the long run, and so many at once."""

    per_s: float
    burst: float


CONTROL = Rate(50.0, 200.0)
"""Of one credential, but for heartbeats. A job asks about twice a second, most often four times, while it waits."""

HEARTBEATS = Rate(25.0, 50.0)
"""Of one credential. The shortest [fleet] heartbeat is 0.05 s."""

STRANGERS = Rate(100.0, 2000.0)
"""Of one address, for what shows no credential that was good before: a thousand agents behind one address may join
at once."""

MOST_KEYS = 20_000
"""Buckets that are kept. The one that was not used for longest goes first, and is full again when it comes back."""


@dataclass(slots=True)
class Bucket:
    """What may still be asked now. Refused requests take nothing."""

    rate: Rate
    level: float
    at: float  # when `level` was true

    def take(self, now: float) -> float:
        """One request at `now`; 0 if it is granted, else the seconds after which one would be."""
        self.level = min(self.rate.burst, self.level + max(0.0, now - self.at) * self.rate.per_s)
        self.at = now
        if self.level >= 1.0:
            self.level -= 1.0
            return 0.0
        return (1.0 - self.level) / self.rate.per_s


@dataclass(slots=True)
class Rates:
    """The buckets of all who ask."""

    most: int = MOST_KEYS
    _buckets: OrderedDict[str, Bucket] = field(default_factory=OrderedDict)

    def ask(self, credential: str, address: str, heartbeat: bool, now: float) -> float:
        """One control request; 0 if it may pass, else the seconds to wait.

        Args: credential: hash of what was shown, "" for nothing. address: whom it came from.
        """
        known = _own(credential, heartbeat)
        if credential and known in self._buckets:
            return self._bucket(known, HEARTBEATS if heartbeat else CONTROL, now).take(now)
        return self._bucket(f"address {address}", STRANGERS, now).take(now)

    def knows(self, credential: str) -> bool:
        """Was this credential good lately?"""
        return bool(credential) and _own(credential, False) in self._buckets

    def admit(self, credential: str, now: float) -> None:
        """This credential was found to be good: from now on it has buckets of its own."""
        for heartbeat, rate in ((False, CONTROL), (True, HEARTBEATS)):
            self._bucket(_own(credential, heartbeat), rate, now)

    def refuse(self, credential: str) -> None:
        """This credential is good no more."""
        for heartbeat in (False, True):
            self._buckets.pop(_own(credential, heartbeat), None)

    def _bucket(self, key: str, rate: Rate, now: float) -> Bucket:
        found = self._buckets.get(key)
        if found is None:
            found = self._buckets[key] = Bucket(rate, rate.burst, now)
            while len(self._buckets) > self.most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return found


def _own(credential: str, heartbeat: bool) -> str:
    return f"{'heartbeats' if heartbeat else 'control'} {credential}"
