"""What the controller knows of each site at this moment; soft state, rebuilt from heartbeats.

Nothing here is durable: after a restart every site is unheard-of until it
reports, and holds no permit until then. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class LiveSite:
    """One site as its last messages describe it."""

    site: str
    region: str
    state: str = "JOINING"
    phase: str = "paused"
    job: str | None = None
    watts: float | None = None  # measured, or None
    note: str = ""
    seen: float | None = None
    permit_until: float = float("-inf")
    reason: str = "not heard from yet"
    granted: bool = False
    checked_out_job: str | None = None  # the job that asked for work
    step: int = 0
    loss: float | None = None
    tokens_per_s: float = 0.0

    def heard(self, now: float, lost_after: float) -> bool:
        """Did it report within `lost_after` seconds?"""
        return self.seen is not None and now - self.seen <= lost_after

    def ready(self, now: float, lost_after: float) -> bool:
        """May it train, and has its job asked for work?"""
        return self.granted and self.heard(now, lost_after) and self.job_asked()

    def job_asked(self) -> bool:
        """Has the job that is alive asked for work? The first request may come before the heartbeat."""
        return self.checked_out_job is not None and self.job in (None, self.checked_out_job)


class Fleet:
    """All sites by name."""

    def __init__(self) -> None:
        self._sites: dict[str, LiveSite] = {}

    def add(self, site: str, region: str) -> LiveSite:
        """A site that joined anew."""
        self._sites[site] = LiveSite(site, region)
        return self._sites[site]

    def get(self, site: str, region: str) -> LiveSite:
        """The site, known or first heard of now."""
        return self._sites.get(site) or self.add(site, region)

    def drop(self, site: str) -> None:
        """The site left."""
        self._sites.pop(site, None)

    def __iter__(self) -> Iterator[LiveSite]:
        return iter(sorted(self._sites.values(), key=lambda live: live.site))
