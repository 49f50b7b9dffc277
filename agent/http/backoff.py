"""When a controller that asked for patience (429, Retry-After) may be asked again.

Decides how long nothing is sent, with a random share on top, so that all who were
told the same do not come back at the same moment; and, to the same end, how pauses
after failures and between heartbeats are spread. Pure: time and chance are arguments.
Heartbeats are counted on their own, as the controller does it. Seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LONGEST_S = 300.0
"""Whatever a controller says, it is asked again after so many seconds at most, before the share of chance."""

UNSAID_S = 1.0
"""Where the answer names no time, or one that is no number of seconds."""

SHARE = 0.5
"""The most that chance adds, as a part of what was asked for."""


BETWEEN = 0.5
"""The most that chance takes off a pause after a failure."""


def spread(seconds: float, chance: float, most: float = BETWEEN) -> float:
    """A pause that is not the same for all. Never longer than `seconds`, which others may count on.

    Args: chance: from 0 to 1. most: the part of it that chance may take off.
    """
    return seconds * (1.0 - most * chance)


@dataclass(slots=True)
class Throttle:
    """What one agent or job was told. Monotonic seconds."""

    _until: dict[bool, float] = field(default_factory=dict)

    def left(self, heartbeat: bool, now: float) -> float:
        """Seconds during which nothing of this kind may be sent."""
        return max(0.0, self._until.get(heartbeat, 0.0) - now)

    def told(self, heartbeat: bool, header: str | None, now: float, chance: float) -> float:
        """The controller refused a request; seconds until the next one.

        Args: header: its Retry-After. chance: from 0 to 1.
        """
        named = float(header) if header and re.fullmatch(r"[0-9]{1,9}", header.strip()) else UNSAID_S
        seconds = min(LONGEST_S, named) * (1.0 + SHARE * chance)
        self._until[heartbeat] = now + seconds
        return seconds
