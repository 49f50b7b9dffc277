"""Nonce cache: rejects replays of signed requests, in memory, with a sliding window per signer.

A nonce is 16 hex digits that identify the signer's process, drawn at its start,
and a counter. For each process the cache keeps the highest counter and a bit mask
of the ones just below it, as in RFC 4303, section 3.4.3, because requests of
several threads can arrive out of order. Requests older than the cache fail the
check of their time. After a restart of the controller a request of the last
`SKEW_S` seconds could be replayed. So requests that must never count twice (joins,
commits) are also recorded in the store (`controller.auth.credentials.first_time`).
Why requests are signed in this way, and not by RFC 9421 or with client
certificates, is in `curtail.security.signing`. Times are Unix seconds. Not
thread-safe.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from curtail.errors import AuthError
from curtail.security.signing import SKEW_S, Stamp

WINDOW = 64
"""Size of the window: counters at most this far below the highest one may still arrive."""

MOST_LIVES = 64
"""Processes remembered per key: its agent and latest jobs. Only the key's owner can add more; the oldest is dropped."""

KEPT_S = 2 * SKEW_S + 1
"""How long a process is remembered after its latest request: after that, its time check refuses every old request."""


@dataclass(slots=True)
class Life:
    """The counters seen from one signing process."""

    highest: int
    seen: int  # bit n: counter `highest` - n was seen
    used: float

    def take(self, count: int) -> bool:
        """Record `count`. Returns: False if it was seen before or is below the window."""
        ahead = count - self.highest
        if ahead > 0:
            self.seen = ((self.seen << min(ahead, WINDOW)) | 1) & ((1 << WINDOW) - 1)
            self.highest = count
            return True
        bit = 1 << -ahead
        if -ahead >= WINDOW or self.seen & bit:
            return False
        self.seen |= bit
        return True


@dataclass(slots=True)
class NonceCache:
    """The nonce cache of all keys."""

    _keys: OrderedDict[str, OrderedDict[str, Life]] = field(default_factory=OrderedDict)

    def consume(self, key: str, stamp: Stamp, now: float) -> None:
        """Record the nonce of a request whose signature and time were checked.

        Args: key: the public key it is signed with.
        Raises: AuthError: it was seen before, or its counter is below the window.
        """
        self._forget(now)
        lives = self._keys.setdefault(key, OrderedDict())
        self._keys.move_to_end(key)
        name, count = stamp.nonce[:16], int(stamp.nonce[16:], 16)
        life = lives.get(name)
        if life is None:
            lives[name] = Life(count, 1, now)
            if len(lives) > MOST_LIVES:
                lives.popitem(last=False)
            return
        lives.move_to_end(name)
        life.used = max(life.used, now)
        if not life.take(count):
            raise AuthError("this signed request was seen before", "it may be a replay attack")

    def _forget(self, now: float) -> None:
        """Drop processes, and keys without any, that have not been used for `KEPT_S`."""
        while self._keys:
            key, lives = next(iter(self._keys.items()))
            while lives and now - next(iter(lives.values())).used > KEPT_S:
                lives.popitem(last=False)
            if lives:
                return
            del self._keys[key]

    def count(self) -> int:
        """Number of processes that are remembered."""
        return sum(map(len, self._keys.values()))
