"""Manual overrides: an operator orders a region to train or to pause, regardless of its MCI.

An override has a time limit and names who ordered it. Everything trained under it
is booked as not curtailed. Units: seconds of the controller's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

LONGEST_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Override:
    """An override that holds in [since, until).

    Raises: ValueError: it lasts longer than a day, ends before it begins, or names nobody.
    """

    train: bool  # False: pause
    since: float
    until: float
    by: str
    why: str = ""  # the operator's reason

    def __post_init__(self) -> None:
        if not isfinite(self.until) or not 0 < self.until - self.since <= LONGEST_S:
            raise ValueError(f"an override must last more than 0 and at most {LONGEST_S / 3600:.0f} hours")
        if not self.by:
            raise ValueError("an override must name who ordered it")

    def holds(self, now: float) -> bool:
        """Is it in force at `now`?"""
        return self.since <= now < self.until

    def reason(self, now: float) -> str:
        """The override as the reason of a verdict."""
        order = "to train" if self.train else "to pause"
        return f"{self.by} ordered the sites {order} for another {self.until - now:.0f} s" + (
            f": {self.why}" if self.why else ""
        )
