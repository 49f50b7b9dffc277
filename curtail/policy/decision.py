"""Decides which sites may train now, over all regions, with a reason for each.

The controller and the planner share `decide`. It rejects readings that look like an
outage, sets the price that meets a deadline or a budget, and judges every region. If
more regions are open than the run can use, it keeps the cleanest. A view is one site
with its region: each site has its own view. A region without sites has one view
without a site, which is judged but affects nothing else. Pure: the caller stores the
state between decisions (`Decision.windows`, `Decision.price`) and passes it back.
Units: gCO2/kWh, site-seconds, seconds of the controller's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

from curtail.grid.forecast import Forecast
from curtail.grid.reading import Reading, check_value, unusable
from curtail.policy.costs import worth_joining
from curtail.policy.price import SAFETY, Outlook, Price, Rounds, budget_price, clearing_price
from curtail.policy.rules import Override, Regime, RegionRule, Site, Verdict, Window, judge, regime_of, remember

REPLAN_S = 300.0
"""Shortest time in seconds between two computations of the price. It is longer if much time is left: 1/`NEAR_PARTS`
of the time left, or 1/`FAR_PARTS` of the part beyond `FAR_S` (three days), where forecasts say little anyway."""
NEAR_PARTS, FAR_S, FAR_PARTS = 180.0, 72 * 3600.0, 48.0

AGREEMENT = 25.0
"""gCO2/kWh by which a second source may differ and still confirm a zero."""

ROUNDS = Rounds(600.0, 30.0)

SWITCH_G = 10.0
"""gCO2/kWh by which another site must be cleaner before it replaces a site that is training (hysteresis)."""


@dataclass(frozen=True, slots=True)
class View:
    """One site, and what is known of its region at the time of a decision."""

    rule: RegionRule
    window: Window
    reading: Reading | None
    forecast: Forecast | None
    site: Site | None  # None: the region has no site now
    override: Override | None = None
    second: Reading | None = None  # from another source, to confirm a suspect zero


@dataclass(frozen=True, slots=True)
class Goal:
    """The run's goal; with all fields None: train as soon as possible below the thresholds."""

    work: float | None = None  # remaining training in site-seconds
    deadline: float | None = None  # controller clock
    budget_kg: float | None = None  # kg that the remaining training may emit
    safety: float = SAFETY
    max_sites: int | None = None  # limit on sites that train at once; None: no limit
    rounds: Rounds = ROUNDS


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdicts, and the state that the next decision needs."""

    verdicts: Mapping[str, Verdict]
    windows: Mapping[str, Window]
    price: Price | None
    regime: Regime


def doubts(views: Mapping[str, View], now: float) -> dict[str, str]:
    """Regions whose reading looks like an outage of its source, and why.

    A failing source once served exact zeros for everything for hours. So zeros in all
    regions at once, or for the whole next day, count only if a second source agrees.
    """
    known = {name: view.reading.mci for name, view in views.items() if view.reading and view.reading.mci is not None}
    regions = {view.rule.region for view in views.values()}  # sites of one region share one reading
    everywhere = len(regions) > 1 and bool(known) and all(mci == 0.0 for mci in known.values())
    found: dict[str, str] = {}
    for name, view in views.items():
        if known.get(name) != 0.0 or _agrees(view, now):
            continue
        if everywhere:
            found[name] = "all regions read exactly 0 at once, as in an outage, and no second source agrees"
        elif view.forecast is not None and view.forecast.is_all_zero(now):
            found[name] = "the forecast is exactly 0 for a whole day, as in an outage, and no second source agrees"
    return found


def _agrees(view: View, now: float) -> bool:
    second = view.second
    if second is None or second.mci is None or unusable(second, now, view.rule.max_age):
        return False
    return check_value(second.mci) is None and second.mci <= AGREEMENT and second.mci < view.rule.threshold


def decide(views: Mapping[str, View], goal: Goal, now: float, price: Price | None = None) -> Decision:
    """Decide which sites may train at `now`.

    Args: price: of the last decision; it is kept until it is due for a new computation.
    """
    windows = {name: remember(view.window, view.rule, view.reading, now) for name, view in views.items()}
    price = price_in_force(views, goal, now, price)
    limit = None if price is None else price.limit
    suspect = doubts(views, now)
    verdicts: dict[str, Verdict] = {}
    for name, view in views.items():
        verdicts[name] = judge(
            view.rule, windows[name], view.reading, now, view.forecast,
            site=view.site, price=limit, override=view.override, doubt=suspect.get(name, ""),
        )  # fmt: skip
    verdicts = _cleanest(views, goal, _worth_it(views, verdicts, goal, limit, now), now)
    training = (name for name, v in verdicts.items() if v.granted and views[name].site is not None)
    return Decision(verdicts, windows, price, regime_of(training))


def price_in_force(views: Mapping[str, View], goal: Goal, now: float, last: Price | None) -> Price | None:
    """The price at `now`: the last one while it is fresh; None without a deadline, a budget or forecasts."""
    if goal.work is None or (goal.deadline is None and goal.budget_kg is None):
        return None
    cap = max((view.rule.threshold for view in views.values()), default=0.0)
    if goal.deadline is not None and now >= goal.deadline:
        return Price(cap, "the deadline has passed", -inf)
    sites = [view for view in views.values() if view.site is not None]
    if not sites:
        return Price(cap, "no price is set while no site has joined", -inf)
    known = [view.forecast.known_until for view in sites if view.forecast is not None]
    if len(known) < len(sites):
        return Price(cap, "no price can be set without a forecast for every region", -inf)
    stop = min(*known, inf if goal.deadline is None else goal.deadline)
    if last is not None and now < last.made + _stands(stop - now):
        return last
    outlooks = [_outlook(view, view.site, now, stop) for view in sites if view.site is not None]
    if goal.deadline is None:
        assert goal.budget_kg is not None
        return budget_price(outlooks, goal.work, goal.budget_kg, goal.rounds, now)
    # the time beyond the forecast horizon takes its proportional part of the work
    part = (stop - now) / (goal.deadline - now)
    return clearing_price(outlooks, goal.work * part, goal.safety, goal.rounds, now, last.limit if last else None)


def _stands(left: float) -> float:
    if left == inf:
        return REPLAN_S
    return max(REPLAN_S, left / NEAR_PARTS, (left - FAR_S) / FAR_PARTS)


def _outlook(view: View, site: Site, now: float, stop: float) -> Outlook:
    reading, forecast = view.reading, view.forecast
    assert forecast is not None
    first = reading.mci if reading is not None and unusable(reading, now, view.rule.max_age) is None else None
    since = forecast.since(now)
    if first is None or (reading is not None and since is not None and since > reading.point_time):
        first = forecast.value_at(now)
    segments = forecast.segments(now, stop, first, view.rule.threshold)
    return Outlook(view.rule.region, view.rule.threshold, now, segments, site.costs, site.running, view.rule.min_window)


def _worth_it(
    views: Mapping[str, View], verdicts: dict[str, Verdict], goal: Goal, price: float | None, now: float
) -> dict[str, Verdict]:
    """Deny a second site whose exchanges would cost more training time than it adds."""
    ends = {
        name: _end(views[name], price, now)
        for name, verdict in verdicts.items()
        if verdict.granted and views[name].site is not None
    }
    training = [name for name in ends if _running(views[name])]
    if len(training) != 1:
        return verdicts
    found = dict(verdicts)
    for name, end in ends.items():
        view = views[name]
        if view.site is None or view.site.running or "override" in verdicts[name].flags or view.forecast is None:
            continue
        shared = min(end, ends[training[0]]) - now
        if not worth_joining(view.site.costs, end - now, shared, goal.rounds.length_s):
            reason = (
                f"in {end - now:.0f} s it would add less training than the exchanges would cost it and"
                f" {_said(views, training[0], view)}"
            )
            found[name] = replace(verdicts[name], granted=False, until=now, reason=reason)
    return found


def _running(view: View) -> bool:
    return view.site is not None and view.site.running


def _said(views: Mapping[str, View], name: str, asks: View) -> str:
    region = views[name].rule.region
    return region if region != asks.rule.region else "the other site there"


def _end(view: View, price: float | None, now: float) -> float:
    if view.forecast is None:
        return inf
    limit = view.rule.threshold if price is None else min(price, view.rule.threshold)
    end = view.forecast.first_at_or_above(limit, now, inf)
    return inf if end is None else end


def _cleanest(views: Mapping[str, View], goal: Goal, verdicts: dict[str, Verdict], now: float) -> dict[str, Verdict]:
    """Limit the open sites to `goal.max_sites`: overridden ones first, then the cleanest, preferring running ones."""
    open_now = [name for name, verdict in verdicts.items() if verdict.granted and views[name].site is not None]
    if goal.max_sites is None or len(open_now) <= goal.max_sites:
        return verdicts

    def rank(name: str) -> tuple[bool, float, str]:
        reading = views[name].reading
        mci = max(0.0, reading.mci) if reading is not None and reading.mci is not None else inf
        return "override" not in verdicts[name].flags, mci - (SWITCH_G if _running(views[name]) else 0.0), name

    for name in sorted(open_now, key=rank)[goal.max_sites :]:
        reason = f"{goal.max_sites} cleaner sites already train, the most that the run can use"
        verdicts[name] = replace(verdicts[name], granted=False, until=now, reason=reason)
    return verdicts
