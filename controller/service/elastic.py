"""Use cases of sites with a provisioner: their step, their status, and operators' orders.

Connects `controller.provision` with the scheduler and the fleet. Methods run inside one transaction on
the store's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, isinf

from controller.energy.clock import ReplayClock
from controller.fleet.live import Fleet
from controller.provision.caps import DAY_S, Charge, spent
from controller.provision.lifecycle import MachineState
from controller.provision.provisioner import Moment, Provisioner, SiteView
from controller.scheduling.scheduler import Scheduler
from controller.signals.replay import Source
from controller.store import Transaction
from controller.store.events import Event
from curtail import wire
from curtail.config import RunConfig
from curtail.errors import NotFound, WireError
from curtail.policy.costs import shortest_window
from curtail.system.clock import Clock

ACTIONS = ("up", "down", "auto")

Provisioning = Callable[[Event], Provisioner]
"""Makes the provisioner; gets what writes events."""


class ElasticSites:
    """The sites with a provisioner. Without a `provisioner` there are none."""

    def __init__(
        self, config: RunConfig, fleet: Fleet, scheduler: Scheduler, source: Source, replay: ReplayClock, clock: Clock,
        event: Event, provisioning: Provisioning | None,
    ) -> None:  # fmt: skip
        self._config, self._fleet, self._scheduler, self._source = config, fleet, scheduler, source
        self._replay, self._clock, self._event = replay, clock, event
        self._provisioner = provisioning(event) if provisioning is not None else None

    def restore(self, tx: Transaction) -> None:
        """Continue after a restart."""
        if self._provisioner is not None:
            self._provisioner.restore(tx)

    def step(self, tx: Transaction, now: float, finished: bool) -> None:
        """Request and release machines; after the scheduler's step. Args: now: controller clock."""
        if self._provisioner is not None and self._provisioner.sites:
            views = {name: self._view(name, now) for name in self._provisioner.sites}
            self._provisioner.step(tx, Moment(now, self._clock.wall(), finished), views)

    def _view(self, site: str, now: float) -> SiteView:
        section, live = self._config.sites[site], self._fleet.find(site)
        region, price = section.region, self._scheduler.price
        threshold = self._config.threshold(region)
        costs = self._config.costs(region) if live is None else self._scheduler.costs(live)
        mono, lost_after = self._clock.monotonic(), self._config.fleet.lost_after
        verdict = self._scheduler.regions.get(region) if live is None else self._scheduler.verdict(live)
        return SiteView(
            verdict=verdict,
            forecast=self._source.forecast(region, now, inf),
            limit=threshold if price is None else min(threshold, price.limit),
            heard=0 if live is None else sum(m.heard(mono, lost_after) for m in live.machines.values()),
            trains=live is not None and live.phase == "train" and live.heard(mono, lost_after),
            start_s=costs.start_s,
            shortest_s=shortest_window(costs, self._config.policy.min_window),
        )

    def machines(self) -> tuple[wire.MachineStatus, ...]:
        """All machines of the sites with a provisioner."""
        made, wall = self._provisioner, self._clock.wall()
        if made is None:
            return ()
        found = []
        for site, section in made.sites.items():
            for machine in range(section.machines):
                row = made.row(site, machine)
                absent = row.state == MachineState.ABSENT.value
                found.append(
                    wire.MachineStatus(
                        site,
                        machine,
                        row.state,
                        made.reason(site, machine, wall),
                        None if absent else max(0.0, wall - row.since_wall),
                        None if absent else made.expected_s(site, machine),
                        row.native,
                    )
                )
        return tuple(found)

    def status(self, tx: Transaction) -> wire.ProvisionStatus:
        """The demand of each site, and all machines."""
        made, now, wall, orders = self._provisioner, self._replay.now(), self._clock.wall(), tx.site_orders()
        sites = []
        for site, section in ({} if made is None else made.sites).items():
            assert made is not None
            wanted = made.demands.get(site)
            until = None if wanted is None or not wanted.wanted or isinf(wanted.until) else wanted.until - now
            sites.append(
                wire.SiteDemand(
                    site,
                    section.region,
                    section.provisioner,
                    wanted is not None and wanted.wanted,
                    "not decided yet" if wanted is None else wanted.reason,
                    until,
                    made.leads.get(site, 0.0),
                    orders.get(site, ("", ""))[0],
                )
            )
        charges = [
            Charge(span.price, wall if span.begun_wall is None else span.begun_wall, span.ended_wall)
            for span in tx.spans_since(wall - DAY_S)
        ]
        return wire.ProvisionStatus(tuple(sites), self.machines(), spent(charges, wall, wall))

    def order(self, tx: Transaction, request: wire.SiteOrder) -> wire.Ack:
        """Apply an operator's order. Raises: NotFound: no such site. WireError: unknown action, or no name."""
        sites = {} if self._provisioner is None else self._provisioner.sites
        if request.site not in sites:
            known = ", ".join(sorted(sites)) or "there is none"
            raise NotFound(f"no site {request.site!r} with a provisioner", f"sites with a provisioner: {known}")
        if request.action not in ACTIONS:
            raise WireError(f"there is no order {request.action!r}", f"use one of {', '.join(ACTIONS)}")
        if not request.by.strip():
            raise WireError("an order names who gives it", "give a name")
        if request.action == "auto":
            tx.drop_site_order(request.site)
        else:
            tx.put_site_order(request.site, request.action, request.by, self._clock.wall())
        self._event(tx, "provision", f"{request.by} ordered site {request.site}: {request.action}")
        return wire.Ack(True)
