"""The run's regime: how many sites may train, for how long it has been so, and why.

The first three functions are pure; `RegimeTracker` asks them at each step of the energy simulation and for the status.
Times are seconds of the controller's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from controller.fleet.live import Fleet
from controller.scheduling.permits import run_refusal
from controller.scheduling.scheduler import Scheduler
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import RunRow
from curtail.policy.rules import Regime, Verdict, regime_of, regime_reason
from curtail.system.clock import Clock


@dataclass(frozen=True, slots=True)
class SiteStanding:
    """What the regime depends on at one site."""

    site: str
    region: str
    heard: bool  # has it reported within `lost_after`?
    away: bool  # are its machines switched off, so that its silence is no fault?
    verdict: Verdict | None  # its own; None: there is none


def training_sites(refusal: str, sites: Iterable[SiteStanding]) -> list[str]:
    """Names of the sites that may train: heard from, and with a verdict that lets them.

    Args: refusal: why no site of the run may train; "": nothing forbids it.
    """
    if refusal:
        return []
    return [site.site for site in sites if site.heard and site.verdict is not None and site.verdict.granted]


def explain_regime(regime: Regime, refusal: str, sites: Sequence[SiteStanding], regions: Mapping[str, Verdict]) -> str:
    """One sentence on why this is the regime.

    Args: refusal: as `training_sites`. regions: the verdict on each region.
    """
    if refusal:
        return refusal
    heard = {site.site: site.region for site in sites if site.heard}
    away = {site.site: site.region for site in sites if site.away}
    if not heard and away:
        return regime_reason(regime, regions, away)
    if not heard and sites:
        return f"no site is heard from: {', '.join(site.site for site in sites)}"
    return regime_reason(regime, regions, heard, {s.site: s.verdict for s in sites if s.verdict is not None})


def advance_regime(run: RunRow, regime: Regime, now: float) -> dict[str, object]:
    """The run's columns at `now`: its clock, the seconds of each regime, and the new regime if it is another one."""
    seconds = dict(run.regime_seconds)
    seconds[run.regime] = seconds.get(run.regime, 0.0) + max(0.0, now - run.clock)
    values: dict[str, object] = {"clock": now, "regime_seconds": seconds}
    if regime.value != run.regime:
        values |= {"regime": regime.value, "regime_since": now}
    return values


class RegimeTracker:
    """The regime in force. Its methods run on the store's thread.

    Args: lost_after: real seconds after which a site counts as silent. away: are the site's machines switched off?
    """

    def __init__(
        self,
        fleet: Fleet,
        scheduler: Scheduler,
        clock: Clock,
        lost_after: float,
        away: Callable[[str], bool],
        event: Event,
    ) -> None:
        self._fleet, self._scheduler, self._clock = fleet, scheduler, clock
        self._lost_after, self._away, self._event = lost_after, away, event

    def step(self, tx: Transaction, run: RunRow, now: float, disk: str) -> None:
        """Note the regime from `now` on, with an event if it is another one.

        Args: disk: why the controller's disk allows no training; "": it has room.
        """
        refusal, sites = _refusal(run, disk), self._sites()
        regime = regime_of(training_sites(refusal, sites))
        if regime.value != run.regime:
            reason = explain_regime(regime, refusal, sites, self._scheduler.regions)
            self._event(tx, "regime", f"{regime.value}: {reason}")
        tx.set_run(**advance_regime(run, regime, now))

    def reason(self, run: RunRow, disk: str) -> str:
        """One sentence on why the regime is what it is. Args: disk: as `step`."""
        return explain_regime(Regime(run.regime), _refusal(run, disk), self._sites(), self._scheduler.regions)

    def _sites(self) -> tuple[SiteStanding, ...]:
        now, verdicts = self._clock.monotonic(), self._scheduler.sites
        return tuple(
            SiteStanding(
                live.site,
                live.region,
                live.heard(now, self._lost_after),
                self._away(live.site),
                verdicts.get(live.site),
            )
            for live in self._fleet
        )


def _refusal(run: RunRow, disk: str) -> str:
    # The regime is what the last step made it, however long ago that was.
    return run_refusal(run.state, 0.0, disk)
