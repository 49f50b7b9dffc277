"""The decision at each step: from readings and sites to a verdict for each site and region.

Collects the inputs of `curtail.policy.decision.decide`, keeps its state, and records
readings and the opening and closing of regions. The planner calls the same function,
so a plan shows what would happen. Only overrides are durable; after a restart the
costs of sites are learned again from the ledger's rows. Methods run inside one
transaction on the store's thread; times are the controller's clock.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from math import inf
from statistics import median

from controller.energy.clock import ReplayClock
from controller.fleet.live import Fleet, LiveSite
from controller.ledger.recorder import EnergyLedger
from controller.rounds.lifecycle import Member
from controller.scheduling.goal import COMMITS, RunGoal, RunProgress, make_goal
from controller.scheduling.overrides import Overrides
from controller.scheduling.site_costs import Learned, costs, learn
from controller.signals.replay import Source
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import RunRow
from curtail.carbon.accounting import LedgerEntry
from curtail.config import RunConfig
from curtail.grid.reading import Reading
from curtail.policy.costs import SiteCosts
from curtail.policy.decision import SiteView, decide
from curtail.policy.price import Price
from curtail.policy.rules import RegionRule, Site, Verdict, Window
from curtail.system.clock import Clock


def rules(config: RunConfig) -> dict[str, RegionRule]:
    """The rules of each region, from the run file."""
    policy = config.policy
    return {
        region: RegionRule(
            region,
            config.threshold(region),
            policy.max_reading_age,
            policy.enter_dwell,
            policy.leave_lead,
            policy.oldest_start,
            policy.min_window,
            policy.leave_above,
        )
        for region in config.regions
    }


class Scheduler:
    """The verdicts in force.

    Args:
        away: whether the site's machines are switched off, so that its silence is no fault.
        perfect: the forecast is the signal's own future.
    """

    def __init__(
        self,
        config: RunConfig,
        source: Source,
        replay: ReplayClock,
        clock: Clock,
        fleet: Fleet,
        energy_ledger: EnergyLedger,
        event: Event,
        away: Callable[[str], bool],
        perfect: bool,
    ) -> None:
        self._config, self._source, self._replay, self._clock = config, source, replay, clock
        self._fleet, self._energy_ledger, self._event = fleet, energy_ledger, event
        self._away, self._perfect = away, perfect
        self._rules = rules(config)
        self._windows: dict[str, Window] = {}
        self._learned: dict[str, Learned] = {}
        self._costs: dict[tuple[str, str], SiteCosts] = {}  # of a site in a region, until its own are measured
        self._last_row = 0
        self.orders = Overrides(config.regions, event)
        self.readings: dict[str, Reading] = {}
        self.regions: dict[str, Verdict] = {}  # for display: the best verdict of its sites, or a site's there
        self.sites: dict[str, Verdict] = {}  # of sites that are present, or could be switched on
        self.price: Price | None = None
        self.aim: RunGoal | None = None

    def restore(self, tx: Transaction) -> None:
        """Continue after a restart: load overrides, learn the costs of sites. No old verdict is kept."""
        self.orders.restore(tx)
        self._learn(tx)

    def step(self, tx: Transaction, run: RunRow, now: float) -> None:
        """Read the signal and decide on all sites together."""
        for region in self._rules:
            self._read(tx, region, now)
        self.orders.expire(tx, now, self._clock.wall())
        self._learn(tx)
        mono, lost_after = self._clock.monotonic(), self._config.fleet.lost_after
        here = [live for live in self._fleet if live.heard(mono, lost_after) or self._away(live.site)]
        views = {live.site: self._view(live.region, now, live) for live in here}
        # A region without a site gets a verdict, too: it is displayed, and its zeros help to detect a broken signal.
        empty = {region: f"region {region}" for region in self._rules if region not in {live.region for live in here}}
        views |= {name: self._view(region, now, None) for region, name in empty.items()}
        self.aim = self._aim(tx, run, now)
        decision = decide(views, self.aim.goal, now, self.price)
        self.price = decision.price
        self._windows = {view.rule.region: decision.windows[name] for name, view in views.items()}
        self.sites = {live.site: decision.verdicts[live.site] for live in here}
        for live in here:
            held = self.sites[live.site].hold
            live.held_since = (live.held_since if live.held_since is not None else now) if held else None
        for region in self._rules:
            verdicts = [decision.verdicts[name] for name, view in views.items() if view.rule.region == region]
            self._tell(tx, region, max(verdicts, key=lambda verdict: (verdict.granted, verdict.hold)))

    def verdict(self, live: LiveSite) -> Verdict | None:
        """The site's own verdict, or its region's if it is silent; None before the first step."""
        return self.sites.get(live.site) or self.regions.get(live.region)

    def costs(self, live: LiveSite) -> SiteCosts:
        """Costs of a start, a stop and an exchange at the site, measured or assumed."""
        key = (live.site, live.region)
        if key not in self._costs:
            self._costs[key] = costs(self.learned(live.site), self._config.costs(live.region))
        return self._costs[key]

    def learned(self, site: str) -> Learned:
        """The costs measured from a site's ledger rows."""
        return self._learned.get(site, Learned())

    def _read(self, tx: Transaction, region: str, now: float) -> None:
        reading = self._source.reading(region, now)
        last = self.readings.get(region)
        self.readings[region] = reading
        if last is not None:
            tx.after_rollback.append(lambda: self.readings.update({region: last}))
        said = (reading.point_time, reading.mci, reading.reason)
        if last is not None and (last.point_time, last.mci, last.reason) == said:
            return
        known_before = last is None or last.mci is not None
        if reading.mci is not None or known_before:  # write one row when a period without readings begins
            tx.add_reading(region, reading.point_time, reading.mci, reading.source, reading.reason)
        if reading.mci is None and known_before:
            self._event(tx, "signal", f"{region}: {reading.reason}")

    def _learn(self, tx: Transaction) -> None:
        rows = tx.entries_after(self._last_row)
        first = next(rows, None)
        if first is None:
            return
        known = self._last_row, self._learned
        tx.after_rollback.append(lambda: self._unlearn(*known))
        self._learned = learn(self._noted(itertools.chain([first], rows)), self._learned)
        self._costs.clear()

    def _noted(self, rows: Iterable[tuple[int, LedgerEntry]]) -> Iterator[LedgerEntry]:
        for self._last_row, entry in rows:
            yield entry

    def _unlearn(self, last_row: int, learned: dict[str, Learned]) -> None:
        self._last_row, self._learned = last_row, learned
        self._costs.clear()

    def _view(self, region: str, now: float, live: LiveSite | None) -> SiteView:
        site = None
        if live is not None:
            running = live.running(self._clock.monotonic(), self._config.fleet.lost_after)
            site = Site(self.costs(live), running, 0.0 if live.held_since is None else now - live.held_since)
        return SiteView(
            self._rules[region],
            self._windows.get(region, Window()),
            self.readings[region],
            self._source.forecast(region, now, inf),
            site,
            self.orders.of(region, now),
            self._source.second(region, now),
        )

    def _aim(self, tx: Transaction, run: RunRow, now: float) -> RunGoal:
        live = tx.live_round()
        training = set()
        if live is not None:
            training = {m.site for m in tx.members(live.round) if Member(m.state) is Member.TRAINING}
        under_way = sum(
            site.round_tokens
            for site in self._fleet
            if live is not None and site.working_on == live.round and site.site in training
        )
        waiting = sum(member.tokens for member in tx.waiting(Member.COMMITTED.value))
        exchanges = [self.costs(site).sync_s for site in self._fleet]
        progress = RunProgress(
            left=max(0, run.sample_limit * run.sequence_len - run.tokens - waiting - under_way),
            commits=tx.recent_speeds(COMMITS),
            reported=[site.tokens_per_s for site in self._fleet if site.phase == "train"],
            spent_kg=self._energy_ledger.present(now)[0].kg_attributed
            if self._config.policy.budget_kg is not None
            else 0.0,
            sync_s=median(exchanges) if exchanges else self._config.policy.sync,
        )
        return make_goal(self._config, run, self._replay.speed, progress, self._perfect)

    def _tell(self, tx: Transaction, region: str, verdict: Verdict) -> None:
        before = self.regions.get(region)
        self.regions[region] = verdict
        if before is None or before.granted != verdict.granted:
            word = "may train" if verdict.granted else "must not train"
            self._event(tx, "policy", f"{region} {word}: {verdict.reason}")
