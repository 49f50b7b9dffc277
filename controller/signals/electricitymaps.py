"""Electricity Maps: average carbon intensity of grid zones, for accounting only.

The values are flow-traced averages (gCO2e/kWh); the provider dropped marginal
ones in 2024. An average does not fall to zero when renewable power is curtailed,
so it cannot show curtailment. Therefore no decision accepts an `Average`, and
`[signal] source` refuses this source by name.
Source: portal.electricitymaps.com, API v3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from controller.signals import http as webs
from controller.signals.answer import Unbelievable
from controller.signals.credentials import Credential
from curtail.grid.reading import check_value
from curtail.system.clock import Clock

ADDRESS = "https://api.electricitymap.org"
NAMES = ("ELECTRICITYMAPS_TOKEN",)


@dataclass(frozen=True, slots=True)
class Average:
    """The average intensity of a zone in the hour that starts at `at`. Never used for decisions."""

    zone: str
    at: float  # Unix time
    g_per_kwh: float  # gCO2e/kWh
    estimated: bool  # the source estimated it, because it has no measurement yet
    basis: str = "average"
    source: str = "electricitymaps"


class ElectricityMaps:
    """Fetches the averages of zones. Not thread-safe."""

    name = "electricitymaps"

    def __init__(self, web: httpx.Client, credential: Credential, clock: Clock) -> None:
        self._web = web
        (self._token,) = credential.values
        self._clock = clock

    def latest(self, zone: str) -> Average:
        """The newest average of `zone`. Raises: SignalError."""
        return _average(zone, self._ask("/v3/carbon-intensity/latest", zone))

    def history(self, zone: str) -> tuple[Average, ...]:
        """The averages of the last 24 hours, ascending. Raises: SignalError."""
        rows = self._ask("/v3/carbon-intensity/history", zone).get("history")
        if not isinstance(rows, list):
            raise Unbelievable("the answer has no history")
        return tuple(sorted((_average(zone, row) for row in rows), key=lambda average: average.at))

    def _ask(self, path: str, zone: str) -> dict[str, Any]:
        answer = webs.ask(self._web, self._clock, path, {"zone": zone}, {"auth-token": self._token})
        if answer.get("zone") != zone:
            raise Unbelievable(f"the answer is for zone {str(answer.get('zone'))[:40]}, not {zone}")
        return answer


def _average(zone: str, row: object) -> Average:
    if not isinstance(row, Mapping):
        raise Unbelievable("the answer does not have the documented form")
    value = row.get("carbonIntensity")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Unbelievable(f"the value of the answer is not a number: {str(value)[:40]}")
    problem = check_value(float(value))
    if problem:
        raise Unbelievable(problem)
    try:
        moment = datetime.fromisoformat(str(row.get("datetime")))
    except ValueError:
        raise Unbelievable("the answer has no time") from None
    if moment.tzinfo is None:
        raise Unbelievable("the time of the answer has no time zone")
    return Average(zone, moment.timestamp(), float(value), bool(row.get("isEstimated", False)))
