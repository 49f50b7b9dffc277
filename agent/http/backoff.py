"""Backoff: how long to wait before the controller is asked again.

After a rate limit (429, Retry-After) nothing is sent for the time it names and a
random share more; pauses after failures and between heartbeats are spread at random.
So clients that failed together do not return together. Heartbeats have a limit of
their own, as at the controller. Pure: time and chance are arguments. Units: seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LONGEST_S = 300.0
"""The longest Retry-After that is obeyed, before the random share."""

UNSAID_S = 1.0
"""Used if the answer has no Retry-After, or one that is not a number of seconds."""

SHARE = 0.5
"""The largest random addition, as a fraction of the Retry-After."""

BETWEEN = 0.5
"""The largest random reduction of a pause after a failure, as a fraction of it."""


def spread(seconds: float, chance: float, most: float = BETWEEN) -> float:
    """A pause shortened at random; never longer than `seconds`, so that others may count on it.

    Args: chance: from 0 to 1. most: the fraction of the pause that chance may take off.
    """
    return seconds * (1.0 - most * chance)


@dataclass(slots=True)
class Throttle:
    """The rate limits that the controller has set one agent or job. Units: monotonic seconds."""

    _until: dict[bool, float] = field(default_factory=dict)

    def left(self, heartbeat: bool, now: float) -> float:
        """Seconds until a heartbeat, or any other request, may be sent."""
        return max(0.0, self._until.get(heartbeat, 0.0) - now)

    def told(self, heartbeat: bool, header: str | None, now: float, chance: float) -> float:
        """The controller answered 429; returns the seconds until the next request.

        Args: header: its Retry-After. chance: from 0 to 1.
        """
        named = float(header) if header and re.fullmatch(r"[0-9]{1,9}", header.strip()) else UNSAID_S
        seconds = min(LONGEST_S, named) * (1.0 + SHARE * chance)
        self._until[heartbeat] = now + seconds
        return seconds
