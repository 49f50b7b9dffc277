"""A person's order for a region: train, or pause, whatever its grid emits.

An order is limited in time, names who gave it, and everything trained under it
is booked as not curtailed. Units: seconds of the controller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

LONGEST_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Override:
    """An order that holds in [since, until).

    Raises: ValueError: it lasts longer than a day, ends before it begins, or names nobody.
    """

    train: bool  # False: pause
    since: float
    until: float
    by: str
    why: str = ""  # the person's reason

    def __post_init__(self) -> None:
        if not isfinite(self.until) or not 0 < self.until - self.since <= LONGEST_S:
            raise ValueError(f"an override lasts at most {LONGEST_S / 3600:.0f} hours, and ends after it began")
        if not self.by:
            raise ValueError("an override names who ordered it")

    def holds(self, now: float) -> bool:
        """Is it in force at `now`?"""
        return self.since <= now < self.until

    def reason(self, now: float) -> str:
        """Why the sites of the region do what they do."""
        order = "to train" if self.train else "to pause"
        return f"{self.by} ordered the sites {order} for another {self.until - now:.0f} s" + (
            f": {self.why}" if self.why else ""
        )
