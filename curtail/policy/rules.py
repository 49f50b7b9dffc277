"""Rules for one region: whether its sites may train now, until when, and why.

If in doubt, do not train: an unknown or stale reading counts as not curtailed. A
site may train while its region's marginal carbon intensity (MCI) is below the
region's threshold. It starts only after a dwell time, or if the forecast says that
the window is worth a start. It stops as soon as the window ends, or shortly before
if the forecast says when. `judge` decides one region; `curtail.policy.decision`
decides all regions together. Pure functions. Units: MCI in gCO2/kWh, seconds of the
controller's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import inf

from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, unusable
from curtail.policy.costs import LONGEST_HOLD_S, SHORTEST_WINDOW_S, SiteCosts, shortest_window, worth_holding
from curtail.policy.override import Override

__all__ = [
    "Forecast", "Override", "Regime", "RegionRule", "Site", "Verdict", "Window",
    "judge", "regime_of", "regime_reason", "remember",
]  # fmt: skip

HOUR_S = 3600.0

FLAPPING = 4
"""Threshold crossings within an hour beyond which the dwell time doubles."""


NEWS_S = 60.0
"""Seconds that a holding site waits for the reading that ends its gap, because sources publish with a delay."""


class Regime(StrEnum):
    """How many sites may train: none, one, several."""

    PAUSED = "PAUSED"
    LOCAL = "LOCAL"
    FEDERATED = "FEDERATED"


@dataclass(frozen=True, slots=True)
class RegionRule:
    """A region's settings: the conditions under which its sites may train."""

    region: str
    threshold: float  # gCO2/kWh; training needs an MCI strictly below it
    max_age: float  # s; an older reading counts as unknown
    enter_dwell: float = 0.0  # s the MCI must have been below the threshold
    leave_lead: float = 0.0  # s before the forecast end of the window at which to stop
    start_age: float | None = None  # s; no site starts on an older reading; None: as `max_age`
    min_window: float = SHORTEST_WINDOW_S  # s; no site starts for a shorter window; needs a forecast and a `Site`
    leave_above: float | None = None  # gCO2/kWh at which a site stops (hysteresis); None: at the threshold


@dataclass(frozen=True, slots=True)
class Window:
    """A region's state between two decisions."""

    below_since: float | None = None  # since when the MCI has been below the threshold
    crossings: tuple[float, ...] = ()  # of the threshold, within the last hour

    def is_flapping(self, now: float) -> bool:
        """Did the region cross its threshold too often within the last hour?"""
        return sum(moment > now - HOUR_S for moment in self.crossings) > FLAPPING


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the sites of a region may train now, until when at most, and why."""

    region: str
    granted: bool
    until: float  # controller clock; a permit never outlives its reading
    reason: str
    curtailed: bool  # the MCI is known and below the threshold (for the ledger)
    hold: bool = False  # not granted, but keep the weights on the idle GPUs
    hold_until: float = -inf  # forecast end of a gap to hold through: the present one, or the one after `until`
    flags: tuple[str, ...] = ()  # for the ledger: override, suspect zero, flapping


@dataclass(frozen=True, slots=True)
class Site:
    """A site's costs, and whether its weights are on its GPUs."""

    costs: SiteCosts
    running: bool
    held_s: float = 0.0  # how long it has been holding


def remember(window: Window, rule: RegionRule, reading: Reading | None, now: float) -> Window:
    """The region's state after `reading` was seen at `now`."""
    usable = unusable(reading, now, rule.max_age) is None
    below = usable and reading is not None and reading.mci is not None and reading.mci < rule.threshold
    if below == (window.below_since is not None):
        return window
    crossings = (*(moment for moment in window.crossings if moment > now - HOUR_S), now)
    return Window(now if below else None, crossings)


def judge(
    rule: RegionRule,
    window: Window,
    reading: Reading | None,
    now: float,
    forecast: Forecast | None = None,
    *,
    site: Site | None = None,
    price: float | None = None,
    override: Override | None = None,
    doubt: str = "",
) -> Verdict:
    """The verdict on one region; `window` must already have seen `reading`.

    Args:
        site: the costs of starting, stopping and holding; None: ignore these costs.
        price: the price in force in gCO2/kWh, for a deadline or a budget; it applies if below the threshold.
        doubt: why not to trust the reading although it is usable by itself; empty: trust it.
    """
    if override is not None and override.holds(now):
        return _ordered(rule, override, now)
    problem = doubt or unusable(reading, now, rule.max_age)
    if problem:
        return Verdict(rule.region, False, now, problem, False, flags=("suspect zero",) if doubt else ())
    assert reading is not None and reading.mci is not None
    limit, name = _limit(rule, price)
    running = site is not None and site.running
    # the hysteresis band applies only to running sites, and not under a price
    leave_at = max(limit, rule.leave_above or limit) if running and not name else limit
    curtailed = reading.mci < rule.threshold
    present = _present(reading, now, forecast)
    if max(present, reading.mci) >= leave_at:
        awaited = _awaited(site, limit, forecast, present, now)
        if awaited is not None:
            reason = (
                f"MCI {reading.mci:.0f} is not below {limit:.0f} g/kWh{name}; the gap is over according to the forecast"
            )
            return Verdict(rule.region, False, awaited, reason, curtailed, hold=True, hold_until=awaited)
        return _dirty(rule, max(present, reading.mci), limit, name, now, forecast, site, curtailed)
    problem = "" if running else _too_early(rule, window, reading, now, forecast, site, limit)
    if problem:
        return Verdict(rule.region, False, now, problem, curtailed, flags=_flags(window, now))
    until, hold_until = reading.point_time + rule.max_age, -inf
    lead = max(rule.leave_lead, site.costs.stop_s if site else 0.0)
    if forecast is not None:
        end = forecast.first_at_or_above(leave_at, now, until + lead)
        if end is not None and site is not None and running:
            back = _gap_to_hold(site, limit, forecast, end, reading.mci)
            lead, hold_until = (lead, -inf) if back is None else (0.0, back)
        if end is not None and end <= now + lead:
            reason = f"the window is forecast to end in {end - now:.0f} s"
            return Verdict(rule.region, False, now, reason, curtailed)
        until = until if end is None else min(until, end - lead)
    reason = f"MCI {reading.mci:.0f} is below {leave_at:.0f} g/kWh{name}"
    flags = _flags(window, now) if curtailed else (*_flags(window, now), "not curtailed")
    return Verdict(rule.region, True, until, reason, curtailed, hold_until=hold_until, flags=flags)


def _ordered(rule: RegionRule, override: Override, now: float) -> Verdict:
    # training under an override is never booked as curtailed
    until = override.until if override.train else now
    return Verdict(rule.region, override.train, until, override.reason(now), False, flags=("override",))


def _limit(rule: RegionRule, price: float | None) -> tuple[float, str]:
    if price is None or price >= rule.threshold:
        return rule.threshold, ""
    return price, ", the price in force"


def _present(reading: Reading, now: float, forecast: Forecast | None) -> float:
    """The forecast value for `now` if it is newer than the reading; otherwise -inf."""
    point = None if forecast is None else forecast.since(now)
    value = None if forecast is None else forecast.value_at(now)
    return -inf if point is None or value is None or point <= reading.point_time else value


def _flags(window: Window, now: float) -> tuple[str, ...]:
    return ("flapping",) if window.is_flapping(now) else ()


def _dirty(
    rule: RegionRule, mci: float, limit: float, name: str, now: float,
    forecast: Forecast | None, site: Site | None, curtailed: bool,
) -> Verdict:  # fmt: skip
    reason = f"MCI {mci:.0f} is not below {limit:.0f} g/kWh{name}"
    if forecast is not None and site is not None and site.running:
        back = forecast.first_below(limit, now, now + 2 * SHORTEST_WINDOW_S)
        after = None if back is None else forecast.value_at(back)
        if back is not None and after is not None and _holds(site, back - now, mci, after, limit):
            reason += f"; holding for {back - now:.0f} s costs less than a start"
            return Verdict(rule.region, False, back, reason, curtailed, hold=True, hold_until=back)
    return Verdict(rule.region, False, now, reason, curtailed)


def _awaited(site: Site | None, limit: float, forecast: Forecast | None, present: float, now: float) -> float | None:
    """Until when a holding site waits for the late reading that ends its gap; None: it does not wait."""
    if site is None or site.held_s <= 0 or forecast is None or not -inf < present < limit:
        return None
    since = forecast.since(now)
    return None if since is None or now >= since + NEWS_S else since + NEWS_S


def _gap_to_hold(site: Site, limit: float, forecast: Forecast, end: float, mci: float) -> float | None:
    """The end of the gap that begins at `end`, if the site should hold through it."""
    back = forecast.first_below(limit, end, end + 2 * SHORTEST_WINDOW_S)
    during = forecast.value_at(end)
    return back if back is not None and during is not None and _holds(site, back - end, during, mci, limit) else None


def _holds(site: Site, gap_s: float, mci_gap: float, mci_after: float, limit: float) -> bool:
    # the limit is on the whole hold, for forecasts that keep postponing the end of the gap
    short = site.held_s + gap_s <= LONGEST_HOLD_S
    return short and worth_holding(site.costs, gap_s, mci_gap, mci_after, limit)


def _too_early(
    rule: RegionRule, window: Window, reading: Reading, now: float,
    forecast: Forecast | None, site: Site | None, limit: float,
) -> str:  # fmt: skip
    """Why no site may start now although the MCI is below `limit`; empty if one may."""
    flapping = window.is_flapping(now)
    confirmed = False
    if site is not None:
        age = now - reading.point_time
        if rule.start_age is not None and age > rule.start_age:
            return f"the reading is {age:.0f} s old; a start needs one at most {rule.start_age:.0f} s old"
        if forecast is not None:
            needed = shortest_window(site.costs, rule.min_window)
            end = forecast.first_at_or_above(limit, now, now + needed)
            if end is not None and end < now + needed:
                return f"the window is forecast to end in {end - now:.0f} s; a start needs {needed:.0f} s"
            confirmed = now + needed <= forecast.known_until
    below_for = now - window.below_since if window.below_since is not None else 0.0
    dwell = 0.0 if confirmed and not flapping else rule.enter_dwell * (2.0 if flapping else 1.0)
    if below_for < dwell:
        words = f"; the MCI crossed the threshold more than {FLAPPING} times within an hour" if flapping else ""
        return f"curtailed for {below_for:.0f} s; training starts after {dwell:.0f} s{words}"
    return ""


def regime_of(training_sites: Iterable[str]) -> Regime:
    """The regime, from the names of the sites that may train."""
    count = len(set(training_sites))
    return Regime.PAUSED if count == 0 else Regime.LOCAL if count == 1 else Regime.FEDERATED


def regime_reason(
    regime: Regime, verdicts: Mapping[str, Verdict], sites: Mapping[str, str], own: Mapping[str, Verdict] | None = None
) -> str:
    """Why this is the regime, in one sentence.

    Args: verdicts: of regions. sites: name -> region. own: verdicts of sites that differ from their regions'.
    """
    if not sites:
        return "no site has joined"
    if regime is not Regime.PAUSED:
        found = {site: (own or {}).get(site, verdicts.get(region)) for site, region in sites.items()}
        granted = {site: verdict for site, verdict in sorted(found.items()) if verdict is not None and verdict.granted}
        ordered = [site for site, verdict in granted.items() if "override" in verdict.flags]
        clean = [site for site in granted if site not in ordered]
        parts = [f"curtailed: {', '.join(clean)}"] * bool(clean) + [f"ordered: {', '.join(ordered)}"] * bool(ordered)
        return "; ".join(parts)
    reasons = {region: verdicts[region].reason for region in sorted(set(sites.values())) if region in verdicts}
    return "; ".join(f"{region}: {reason}" for region, reason in reasons.items()) or "no reading has arrived yet"
