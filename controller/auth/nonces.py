"""Signed requests that come often: each counts once, without a write to the disk.

A signer numbers what it signs: its nonce is the name of its life (16 hex digits,
drawn when its process starts) and a count. Kept in memory for each life are the
highest count that came and which of the last ones did, as in RFC 4303, 3.4.3: threads
of one process may overtake each other. What is not remembered any more is too old by
its time. After a restart of the controller a request of the last `SKEW_S` seconds
could be sent a second time, so what must never count twice (joins, commits) is kept in
the store (`controller.auth.credentials.first_time`). Times are Unix seconds. No locks: one thread.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from curtail.errors import AuthError
from curtail.security.signing import SKEW_S, Stamp

WINDOW = 64
"""Counts below the highest one that may still come."""

MOST_LIVES = 64
"""Remembered of one key: its agent and its last jobs. Only the key's holder can make more; the oldest goes."""

KEPT_S = 2 * SKEW_S + 1
"""How long a life is remembered after its latest request: no longer than that is any stamp of it accepted."""


@dataclass(slots=True)
class Life:
    """What came of one signer."""

    highest: int
    seen: int  # bit n: `highest` - n came
    used: float

    def take(self, count: int) -> bool:
        """Is this the first time of `count`, as far as that is known?"""
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
class Replays:
    """Which signed requests came, of all keys."""

    _keys: OrderedDict[str, OrderedDict[str, Life]] = field(default_factory=OrderedDict)

    def take(self, key: str, stamp: Stamp, now: float) -> None:
        """Remember a request whose signature and time were checked.

        Args: key: the public key it is signed with.
        Raises: AuthError: it came before, or so many after it that nobody can tell.
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
            raise AuthError("this signed request came before", "somebody sends again what was sent once")

    def _forget(self, now: float) -> None:
        """Drop the keys that were not used for longest, and of each the lives."""
        while self._keys:
            key, lives = next(iter(self._keys.items()))
            while lives and now - next(iter(lives.values())).used > KEPT_S:
                lives.popitem(last=False)
            if lives:
                return
            del self._keys[key]

    def count(self) -> int:
        """How many lives are remembered."""
        return sum(map(len, self._keys.values()))
