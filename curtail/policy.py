"""Which sites may train now: readings in, permits out, each with its reason.

When in doubt, do not train: an unknown or stale reading is not curtailed. A
site is permitted while its region's marginal carbon intensity (MCI) is below
the region's threshold, has been so for `enter_dwell` seconds, and no forecast
says that this ends within `leave_lead` seconds. Leaving has no dwell: power
that is no longer curtailed is not used. Nothing here reads a clock, a file or
the network. Units: MCI in gCO2/kWh, seconds of the controller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from curtail.reading import Reading, unusable


class Regime(StrEnum):
    """How many sites may train: none, one, several."""

    PAUSED = "PAUSED"
    LOCAL = "LOCAL"
    FEDERATED = "FEDERATED"


@dataclass(frozen=True, slots=True)
class RegionRule:
    """What a region must fulfil before its sites may train."""

    region: str
    threshold: float  # gCO2/kWh; training needs an MCI strictly below it
    max_age: float  # s; an older reading counts as unknown
    enter_dwell: float = 0.0  # s the MCI must have been below the threshold
    leave_lead: float = 0.0  # s before a forecast end of the window at which to leave


@dataclass(frozen=True, slots=True)
class Window:
    """What is remembered of a region between two decisions."""

    below_since: float | None = None  # start of the present spell below the threshold


@dataclass(frozen=True, slots=True)
class Verdict:
    """May the sites of a region train now, until when at most, and why."""

    region: str
    granted: bool
    until: float  # controller clock; a permit never outlives its reading
    reason: str
    curtailed: bool  # the MCI is known and below the threshold (the ledger's question)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Expected MCI of a region: `points` are (start of validity, gCO2/kWh), ascending."""

    region: str
    points: tuple[tuple[float, float], ...]

    def first_at_or_above(self, threshold: float, start: float, stop: float) -> float | None:
        """The first moment in [start, stop] at which the forecast reaches `threshold`."""
        for moment, value in self.points:
            if moment > stop:
                return None
            if moment >= start and value >= threshold:
                return moment
        return None


def remember(window: Window, rule: RegionRule, reading: Reading | None, now: float) -> Window:
    """The region's memory after seeing `reading` at `now`."""
    if unusable(reading, now, rule.max_age) is not None:
        return Window(None)
    assert reading is not None and reading.mci is not None
    if reading.mci >= rule.threshold:
        return Window(None)
    return window if window.below_since is not None else Window(now)


def judge(
    rule: RegionRule, window: Window, reading: Reading | None, now: float, forecast: Forecast | None = None
) -> Verdict:
    """The verdict on one region; `window` must already have seen `reading`."""

    def no(reason: str, curtailed: bool = False) -> Verdict:
        return Verdict(rule.region, False, now, reason, curtailed)

    problem = unusable(reading, now, rule.max_age)
    if problem is not None:
        return no(problem)
    assert reading is not None and reading.mci is not None
    if reading.mci >= rule.threshold:
        return no(f"MCI {reading.mci:.0f} is not below {rule.threshold:.0f} g/kWh")
    below_for = now - window.below_since if window.below_since is not None else 0.0
    if below_for < rule.enter_dwell:
        return no(f"curtailed for {below_for:.0f} s, training starts after {rule.enter_dwell:.0f} s", curtailed=True)
    until = reading.point_time + rule.max_age
    if forecast is not None:
        end = forecast.first_at_or_above(rule.threshold, now, now + rule.leave_lead)
        if end is not None:
            return no(f"the window ends in {end - now:.0f} s by the forecast", curtailed=True)
        far_end = forecast.first_at_or_above(rule.threshold, now, until + rule.leave_lead)
        if far_end is not None:
            until = min(until, far_end - rule.leave_lead)
    return Verdict(rule.region, True, until, f"MCI {reading.mci:.0f} is below {rule.threshold:.0f} g/kWh", True)


def regime_of(training_sites: Iterable[str]) -> Regime:
    """The regime, from the names of the sites that may train."""
    count = len(set(training_sites))
    return Regime.PAUSED if count == 0 else Regime.LOCAL if count == 1 else Regime.FEDERATED


def regime_reason(regime: Regime, verdicts: Mapping[str, Verdict], sites: Mapping[str, str]) -> str:
    """One sentence on why this is the regime; `sites` maps site names to regions."""
    if not sites:
        return "no site has joined"
    if regime is not Regime.PAUSED:
        names = sorted(site for site, region in sites.items() if region in verdicts and verdicts[region].granted)
        return f"curtailed: {', '.join(names)}"
    reasons = {region: verdicts[region].reason for region in sorted(set(sites.values())) if region in verdicts}
    return "; ".join(f"{region}: {reason}" for region, reason in reasons.items()) or "no reading has arrived yet"
