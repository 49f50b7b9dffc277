"""What the sites of each region draw together, kept up as single sites change. No clock, no store."""

from __future__ import annotations

import math


class Drawn:
    """Present draw in W by site, and its sums by region.

    A sum is made anew from its sites when one of them changes, never added to: so
    it has no drift, and costs nothing while nobody changes. One thread writes;
    `of` may be asked by any.
    """

    def __init__(self) -> None:
        self._region_of: dict[str, str] = {}
        self._sites: dict[str, dict[str, float]] = {}
        self._sums: dict[str, float] = {}

    def put(self, site: str, region: str, watts: float) -> None:
        """The site draws so much now, in this region."""
        known = self._region_of.get(site)
        if known == region and self._sites[region][site] == watts:
            return
        if known is not None and known != region:
            self.drop(site)
        self._region_of[site] = region
        self._sites.setdefault(region, {})[site] = watts
        self._sum(region)

    def drop(self, site: str) -> None:
        """The site is gone."""
        region = self._region_of.pop(site, None)
        if region is not None:
            del self._sites[region][site]
            self._sum(region)

    def of(self, region: str) -> float:
        """W that the region's sites draw together; 0.0 without sites."""
        return self._sums.get(region, 0.0)

    def _sum(self, region: str) -> None:
        self._sums[region] = math.fsum(self._sites[region].values())
