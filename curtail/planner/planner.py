"""Planner: discrete-event simulation of a run on modelled sites under a recorded signal.

It uses the controller's own policy (`curtail.policy.decision`) and ledger
(`curtail.carbon.accounting`); only the sites are modelled. A site is paused, loads
(`start`), trains, exchanges (`sync`), holds its weights through a short gap, or
drains. Time jumps from event to event and nothing changes in between, so sums are
exact. No clock, no files, no randomness. Units: seconds of the trace, W, g/kWh.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from math import inf

from curtail.carbon import accounting
from curtail.carbon.accounting import RUNNING, Entry, Interval, Totals
from curtail.grid.reading import Reading
from curtail.grid.trace import Trace
from curtail.planner.observed_signal import Sight
from curtail.policy.costs import SiteCosts
from curtail.policy.decision import Goal, View, decide
from curtail.policy.price import Price
from curtail.policy.rules import RegionRule, Site, Verdict, Window

NEXT = {"start": "train", "sync": "train", "drain": "paused"}
"""Successor of each phase that ends by itself."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run to simulate; each region has one site."""

    trace: Trace  # the true signal, used by the ledger
    sights: Mapping[str, Sight]  # the signal as the policy observes it
    rules: Mapping[str, RegionRule]
    costs: Mapping[str, SiteCosts]
    load_w: float  # while a site starts
    work: float  # site-seconds of training
    goal: Goal  # the planner updates its `work`, the remaining site-seconds


@dataclass(slots=True)
class SiteState:
    """One modelled site."""

    phase: str = "paused"
    until: float = inf  # end of the phase, if it ends by itself
    held_since: float = inf
    starts: int = 0
    window: Window = field(default_factory=Window)
    verdict: Verdict | None = None
    interval: Interval | None = None
    totals: Totals = field(default_factory=Totals)
    dirty_train_s: float = 0.0

    @property
    def running(self) -> bool:
        return self.phase in RUNNING


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a simulated run."""

    complete: bool
    finished: float  # when the last site had drained, or the trace ended
    done: float  # site-seconds of training
    totals: Totals
    sites: Mapping[str, SiteState]
    spells: tuple[tuple[float, str, str], ...]  # (time, region, new phase and its reason) of every change


class Planner:
    """Simulates one scenario; `run` may be called once.

    Args: note: called with every row of the ledger when it is closed.
    """

    def __init__(self, scenario: Scenario, note: Callable[[Entry], None] | None = None) -> None:
        self._s = scenario
        self._note = note
        self._sites = {region: SiteState() for region in scenario.sights}
        self._left = scenario.work
        self._price: Price | None = None
        self._round_end = inf
        self._readings: dict[str, tuple[Reading, float]] = {}
        self._spells: list[tuple[float, str, str]] = []

    def run(self) -> Outcome:
        """Simulate the scenario until its work is done or its trace ends."""
        now, points, end = self._s.trace.start, self._points(), self._s.trace.end
        following = next(points, inf)
        while True:
            while following <= now:
                following = next(points, inf)
            self._end_phases(now)
            if self._left > 0 and now < end:
                self._decide(now)
            else:
                self._stop_all(now)
            self._rounds(now)
            self._book(now)
            if now >= end or (self._left <= 0 and all(s.phase == "paused" for s in self._sites.values())):
                return self._outcome(now)
            then = min(following, self._next(now))
            self._left = max(0.0, self._left - self._training() * (then - now))
            if self._left < 1e-6:
                self._left = 0.0
            now = then

    # -- time ------------------------------------------------------------------

    def _points(self) -> Iterator[float]:
        """All times at which the true or the observed signal changes, ascending, and the end of the trace."""
        trace = self._s.trace
        moments = {*trace.stamps, trace.end}
        for sight in self._s.sights.values():
            moments.update(point + sight.delay for point, _ in sight.course)
        return iter(sorted(moment for moment in moments if trace.start < moment <= trace.end))

    def _next(self, now: float) -> float:
        """The time of the next event other than a change of the signal."""
        moments = [self._s.trace.end, self._round_end]
        training = self._training()
        if training:
            moments.append(now + self._left / training)
        for region, site in self._sites.items():
            moments.append(site.until)
            if site.verdict is not None and site.verdict.until > now:
                moments.append(site.verdict.until)
            since = site.window.below_since
            if not site.running and since is not None:
                dwell = self._s.rules[region].enter_dwell
                moments += (moment for moment in (since + dwell, since + 2 * dwell) if moment > now)
        # an event that rounding puts at or before `now` would loop forever
        return max(min(moments), now + 1e-6)

    def _training(self) -> int:
        return sum(site.phase == "train" for site in self._sites.values())

    # -- state changes -----------------------------------------------------------

    def _end_phases(self, now: float) -> None:
        for site in self._sites.values():
            if site.until <= now + 1e-9:
                site.phase, site.until = NEXT[site.phase], inf

    def _decide(self, now: float) -> None:
        goal = replace(self._s.goal, work=self._left)
        if goal.budget_kg is not None:
            spent = sum(site.totals.kg_attributed for site in self._sites.values())
            goal = replace(goal, budget_kg=goal.budget_kg - spent)
        views = {region: self._view(region, site, now) for region, site in self._sites.items()}
        decision = decide(views, goal, now, self._price)
        self._price = decision.price
        for region, site in self._sites.items():
            site.window, site.verdict = decision.windows[region], decision.verdicts[region]
            self._obey(region, site, site.verdict, now)

    def _view(self, region: str, site: SiteState, now: float) -> View:
        held = now - site.held_since if site.phase == "hold" else 0.0
        known = Site(self._s.costs[region], site.running, held)
        return View(
            self._s.rules[region], site.window, self._reading(region, now), self._s.sights[region].forecast, known
        )

    def _reading(self, region: str, now: float) -> Reading:
        known = self._readings.get(region)
        if known is None or now >= known[1]:
            known = self._readings[region] = self._s.sights[region].reading(now)
        return known[0]

    def _obey(self, region: str, site: SiteState, verdict: Verdict, now: float) -> None:
        costs = self._s.costs[region]
        before = site.phase
        if verdict.granted and site.phase == "paused":
            site.phase, site.until, site.starts = "start", now + costs.start_s, site.starts + 1
        elif verdict.granted and site.phase == "hold":
            site.phase, site.until = "train", inf
        elif verdict.hold and site.phase in ("train", "sync"):
            site.phase, site.until, site.held_since = "hold", inf, now
        elif not verdict.granted and not verdict.hold and site.running:
            site.phase, site.until = "drain", now + costs.stop_s
        if site.phase != before:
            self._spells.append((now, region, f"{site.phase}: {verdict.reason}"))

    def _stop_all(self, now: float) -> None:
        reason = "the work is done" if self._left <= 0 else "the trace ended"
        for region, site in self._sites.items():
            if site.running:
                self._obey(region, site, Verdict(region, False, now, reason, False), now)

    def _rounds(self, now: float) -> None:
        rounds = self._s.goal.rounds
        training = [site for site in self._sites.values() if site.phase == "train"]
        if len(training) < 2:
            self._round_end = inf
        elif self._round_end == inf:
            self._round_end = now + rounds.length_s
        elif now >= self._round_end - 1e-9:
            self._round_end = inf
            if rounds.sync_s > 0:
                for site in training:
                    site.phase, site.until = "sync", now + rounds.sync_s

    # -- the ledger --------------------------------------------------------------

    def _watts(self, region: str, phase: str) -> float:
        costs = self._s.costs[region]
        if phase == "train":
            return costs.train_w
        if phase == "paused":
            return costs.paused_w
        return self._s.load_w if phase == "start" else costs.idle_w

    def _book(self, now: float) -> None:
        trace = self._s.trace
        index = bisect_right(trace.stamps, now) - 1
        for region, site in self._sites.items():
            mci = None if now >= trace.end else trace.values[region][index]
            last = site.interval
            if last is not None and last.phase == site.phase and last.mci == mci:
                continue
            wanted = Interval(
                site=region, region=region, phase=site.phase, t0=now, watts=self._watts(region, site.phase),
                method="modelled", pue=1.0, grid_share=1.0, mci=mci,
                curtailed=mci is not None and mci < self._s.rules[region].threshold,
            )  # fmt: skip
            if last is not None:
                self._count(site, accounting.close(last, now))
            site.interval = wanted

    def _count(self, site: SiteState, entry: Entry | None) -> None:
        if entry is None:
            return
        site.totals = accounting.add(site.totals, (entry,))
        if self._note is not None:
            self._note(entry)
        if entry.phase == "train" and not entry.curtailed:
            site.dirty_train_s += entry.t1 - entry.t0

    def _outcome(self, now: float) -> Outcome:
        for site in self._sites.values():
            if site.interval is not None:
                self._count(site, accounting.close(site.interval, now))
        total = Totals()
        for site in self._sites.values():
            total = Totals(*(getattr(total, f.name) + getattr(site.totals, f.name) for f in fields(Totals)))
        return Outcome(self._left <= 0, now, self._s.work - self._left, total, self._sites, tuple(self._spells))
