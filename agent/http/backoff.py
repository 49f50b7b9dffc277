"""Backoff after 429 and Retry-After, and jitter for pauses; pure.

After a 429 nothing is sent for the time in Retry-After plus a random part, so that
clients that were refused together do not retry together. For the same reason
pauses after failures and between heartbeats get jitter. Time and chance are
arguments. Heartbeats have their own limit, as in the controller. Units: seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LONGEST_S = 300.0
"""Upper limit of the Retry-After that is obeyed, before the random part is added."""

UNSAID_S = 1.0
"""Used if the response has no Retry-After, or one that is not a number of seconds."""

SHARE = 0.5
"""Longest random part, as a fraction of Retry-After."""


BETWEEN = 0.5
"""Jitter of a pause after a failure: the largest fraction by which it may be shortened."""


def spread(seconds: float, chance: float, most: float = BETWEEN) -> float:
    """A pause with jitter. It is never longer than `seconds`, so `seconds` is safe as an upper bound.

    Args: chance: random, from 0 to 1. most: the largest fraction by which the pause is shortened.
    """
    return seconds * (1.0 - most * chance)


@dataclass(slots=True)
class Throttle:
    """How long one agent or job must not send. Monotonic seconds."""

    _until: dict[bool, float] = field(default_factory=dict)

    def left(self, heartbeat: bool, now: float) -> float:
        """Seconds until a heartbeat, or another request, may be sent again; 0: now."""
        return max(0.0, self._until.get(heartbeat, 0.0) - now)

    def told(self, heartbeat: bool, header: str | None, now: float, chance: float) -> float:
        """Note a 429. Returns: seconds until the next request may be sent.

        Args: header: the response's Retry-After. chance: random, from 0 to 1.
        """
        named = float(header) if header and re.fullmatch(r"[0-9]{1,9}", header.strip()) else UNSAID_S
        seconds = min(LONGEST_S, named) * (1.0 + SHARE * chance)
        self._until[heartbeat] = now + seconds
        return seconds
