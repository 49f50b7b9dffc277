"""Rate limits: one token bucket per credential, one per address for unauthenticated requests.

Decides which request is one too many and when to try again. Pure: the time is an argument.
A credential's bucket allows ten times the normal rate of an agent and its job. Heartbeats have
a bucket of their own, so that a job that sends too many requests never costs its site the permit.
Units: requests, seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from curtail.system.token_bucket import TokenBucket


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second in the long run, and how many at once."""

    per_s: float
    burst: float


CONTROL = Rate(50.0, 200.0)
"""Of one credential, heartbeats apart. A waiting job sends two requests per second, at most four."""

HEARTBEATS = Rate(25.0, 50.0)
"""Heartbeats of one credential. The shortest [fleet] heartbeat is 0.05 s."""

STRANGERS = Rate(100.0, 2000.0)
"""Of one address, for requests without a credential that was accepted before. A thousand agents behind one address may
join at once."""

MOST_KEYS = 20_000
"""Buckets kept. The least recently used one is dropped first; it would be full again when needed."""


@dataclass(slots=True)
class Rates:
    """The buckets of all senders."""

    most: int = MOST_KEYS
    _buckets: OrderedDict[str, TokenBucket] = field(default_factory=OrderedDict)

    def ask(self, credential: str, address: str, heartbeat: bool, now: float) -> float:
        """One control request: 0 if it is allowed, else the seconds to wait.

        Args: credential: hash of the credential shown, "" for none. address: of the sender.
        """
        known = _own(credential, heartbeat)
        if credential and known in self._buckets:
            return self._bucket(known, HEARTBEATS if heartbeat else CONTROL, now).ask(now)
        return self._bucket(f"address {address}", STRANGERS, now).ask(now)

    def knows(self, credential: str) -> bool:
        """Was this credential accepted recently?"""
        return bool(credential) and _own(credential, False) in self._buckets

    def admit(self, credential: str, now: float) -> None:
        """This credential was accepted: from now on it has its own buckets."""
        for heartbeat, rate in ((False, CONTROL), (True, HEARTBEATS)):
            self._bucket(_own(credential, heartbeat), rate, now)

    def refuse(self, credential: str) -> None:
        """This credential was rejected: it loses its buckets."""
        for heartbeat in (False, True):
            self._buckets.pop(_own(credential, heartbeat), None)

    def _bucket(self, key: str, rate: Rate, now: float) -> TokenBucket:
        found = self._buckets.get(key)
        if found is None:
            found = self._buckets[key] = TokenBucket.full(rate.per_s, rate.burst, now)
            while len(self._buckets) > self.most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return found


def _own(credential: str, heartbeat: bool) -> str:
    return f"{'heartbeats' if heartbeat else 'control'} {credential}"
