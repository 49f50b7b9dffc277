"""Adds and removes the machines of all sites that have a provisioner.

`demand` decides whether a site's machines are wanted, `caps` whether they may be requested, `lifecycle`
what happens to each machine. Each state is stored before it is acted on. After a restart nothing is
done for a site before its provisioner was observed; machines that exist are adopted by their number.
Methods run inside a transaction on the store's thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from controller.provision.caps import DAY_S, Caps, Charge, forbids_request, forbids_staying
from controller.provision.demand import Demand, DemandFacts, boot_time, demand
from controller.provision.driver import Request
from controller.provision.lifecycle import (
    EXISTS,
    MachineEvent,
    MachineFacts,
    MachineState,
    Observed,
    advance_machine,
    next_machine_event,
    retry_s,
)
from controller.provision.observations import Observations
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import ProvisionedRow, SpanRow
from curtail.config import RunConfig, SiteSection
from curtail.grid.forecast import Forecast
from curtail.policy.rules import Verdict
from curtail.wire import TokenReply

BOOTS = 20
"""Latest times from request to join of a site from which the next one is estimated."""

BOOT_S = 60.0
"""Wall seconds from a request to a join that are assumed before any is measured."""

SHORT_LIFE_S = 120.0
"""Wall seconds; a machine that is lost sooner after its start counts as failed."""


@dataclass(frozen=True, slots=True)
class SiteView:
    """What the rest of the controller knows of a site, at one moment."""

    verdict: Verdict | None  # of the site, or of its region; None: there is none yet
    forecast: Forecast | None
    limit: float  # gCO2/kWh below which it may train
    heard: int  # number of its machines that report
    trains: bool  # its job trains
    start_s: float  # seconds of the controller's clock that a start of its job takes
    shortest_s: float  # shortest window in which the policy starts a job


@dataclass(frozen=True, slots=True)
class Moment:
    """The time on the clocks, and the run's state."""

    clock: float  # of the controller, seconds
    wall: float  # Unix seconds
    finished: bool  # the run has reached its budget


NewToken = Callable[[Transaction, str, str, float], TokenReply]
"""Creates a single-use join token: (transaction, site, region, seconds)."""


class Provisioner:
    """The machines of all sites with a provisioner.

    Args: speed: seconds of the controller's clock in a real one. url: of the controller, for agents.
    """

    def __init__(
        self, config: RunConfig, run: str, observations: Observations, speed: float, url: str, new_token: NewToken,
        event: Event,
    ) -> None:  # fmt: skip
        self._config, self._run, self._calls, self._speed, self._url = config, run, observations, speed, url
        self._new_token, self._event = new_token, event
        self.sites = {name: site for name, site in config.sites.items() if site.provisioner != "static"}
        section = config.provision
        self._caps = Caps(section.most_machines, section.most_per_hour, section.most_per_day)
        self._rows: dict[tuple[str, int], ProvisionedRow] = {}
        self._idle_since: dict[str, float] = {}  # controller clock
        self._asked_to_end: dict[tuple[str, str], tuple[float, bool]] = {}  # (site, native id) -> Unix time, for good
        self.demands: dict[str, Demand] = {}
        self.leads: dict[str, float] = {}

    def restore(self, tx: Transaction) -> None:
        """Load the machines from the store."""
        self._rows = {(row.site, row.machine): row for row in tx.provisioned() if row.site in self.sites}

    def step(self, tx: Transaction, now: Moment, views: Mapping[str, SiteView]) -> None:
        """Do what is due for all sites."""
        if not self.sites:
            return
        self._calls.take()
        orders = tx.site_orders()
        for name, section in self.sites.items():
            view = views[name]
            self.demands[name] = self._demand(tx, name, section, now, view, orders.get(name, ("", ""))[0])
            if not self._calls.known(name):
                continue
            for machine in self._order(name, section):
                self._step_machine(tx, name, section, machine, now, view)
            self._release_strangers(name, section, now)
        # After the commit, so that an observation begins after the states that it is compared with.
        tx.after_commit.append(lambda: self._calls.poll(self.sites))

    def row(self, site: str, machine: int) -> ProvisionedRow:
        """The machine's row."""
        return self._rows.get((site, machine)) or ProvisionedRow(site, machine, MachineState.ABSENT.value, 0.0)

    def reason(self, site: str, machine: int, now_wall: float) -> str:
        """Why the machine is in its state."""
        row, wanted = self.row(site, machine), self.demands.get(site)
        state = MachineState(row.state)
        if not self._calls.known(site):
            return self._calls.errors.get(site, "waiting for the provisioner's first answer")
        if state is MachineState.BACKOFF:
            return f"{row.note}; requested again in {max(0.0, row.retry_wall - now_wall):.0f} s"
        if state in (MachineState.HELD, MachineState.RELEASING):
            return row.note
        if state is MachineState.ABSENT or wanted is None:
            return "" if wanted is None else wanted.reason
        seen = self._calls.of(site, machine)
        return "; ".join(filter(None, ["" if seen is None else seen.reason, self._calls.errors.get(site, "")]))

    def expected_s(self, site: str, machine: int) -> float | None:
        """Seconds until the machine starts, by its provisioner's estimate."""
        seen = self._calls.of(site, machine)
        return None if seen is None else seen.expected_s

    # -- deciding --------------------------------------------------------------

    def _order(self, site: str, section: SiteSection) -> Sequence[int]:
        """Machines in the order of decisions: released from the highest on, requested from the lowest on."""
        numbers = range(section.machines)
        wanted = self.demands[site].wanted
        return numbers if wanted else numbers[::-1]

    def _demand(
        self, tx: Transaction, site: str, section: SiteSection, now: Moment, view: SiteView, order: str
    ) -> Demand:
        boot_s = boot_time(tx.boots(site, BOOTS), BOOT_S) * self._speed
        lead = section.lead if section.lead is not None else boot_s + view.start_s
        self.leads[site] = lead
        granted = view.verdict is not None and view.verdict.granted
        since = self._idle_since.setdefault(site, now.clock)
        if granted or view.trains:
            self._idle_since[site] = since = now.clock
        present = any(self._exists(site, machine) for machine in range(section.machines))
        return demand(
            DemandFacts(
                now=now.clock,
                granted=granted,
                reason="no reading has arrived yet" if view.verdict is None else view.verdict.reason,
                forecast=view.forecast,
                limit=view.limit,
                lead=lead,
                shortest=max(section.shortest, view.shortest_s),
                present=present,
                idle_s=now.clock - since,
                order=order,
                finished=now.finished,
            )
        )

    def _exists(self, site: str, machine: int) -> bool:
        return MachineState(self.row(site, machine).state) in EXISTS

    def _charges(self, tx: Transaction, now: Moment) -> list[Charge]:
        """Machines that exist count from now on while they have not started."""
        return [
            Charge(span.price, now.wall if span.begun_wall is None else span.begun_wall, span.ended_wall)
            for span in tx.spans_since(now.wall - DAY_S)
        ]

    def _step_machine(
        self, tx: Transaction, site: str, section: SiteSection, machine: int, now: Moment, view: SiteView
    ) -> None:
        row, wanted = self.row(site, machine), self.demands[site]
        charges = self._charges(tx, now)
        reserve = section.grace + 2.0 * self._config.provision.poll
        stay = forbids_staying(self._caps, charges, now.wall, reserve) if section.price > 0 else ""
        cap = stay or forbids_request(self._caps, charges, section.price, now.wall, reserve)
        too_old = row.requested_wall > 0 and now.wall - row.requested_wall >= section.longest
        facts = MachineFacts(
            now=now.wall,
            wanted=wanted.wanted and not (stay and MachineState(row.state) in EXISTS),
            cap=cap,
            observed=self._calls.of(site, machine),
            failed=(site, machine) in self._calls.failed,
            joined=view.heard > machine,
            since=row.since_wall,
            retry_at=row.retry_wall,
            booting_since=row.started_wall,
            boot_limit=section.boot_limit,
            too_old=too_old,
        )
        event = next_machine_event(MachineState(row.state), facts)
        if event is not None:
            why = stay or (f"it is {section.longest:.0f} s old" if too_old else wanted.reason)
            self._take(tx, row, section, now, event, cap if event is MachineEvent.CAPPED else why)
        elif MachineState(row.state) is MachineState.REQUESTED and not self._calls.requesting(site, machine):
            if facts.observed is not None and facts.observed.state == "gone":
                self._request(tx, row, section, now)  # the controller ended before it made the request
        elif MachineState(row.state) is MachineState.RELEASING and facts.observed is not None:
            self._end(site, facts.observed, section, now, row.since_wall)

    # -- acting ----------------------------------------------------------------

    def _take(
        self, tx: Transaction, row: ProvisionedRow, section: SiteSection, now: Moment, event: MachineEvent, why: str
    ) -> None:
        state = advance_machine(MachineState(row.state), event)
        site, machine = row.site, row.machine
        seen = self._calls.of(site, machine)
        after = replace(row, state=state.value, since_wall=now.wall, note=why)
        if seen is not None and seen.native:
            after = replace(after, native=seen.native)
        if event in (MachineEvent.FAILED, MachineEvent.LOST):
            after = self._failed(after, row, now, event)
        elif event is MachineEvent.STARTED:
            after = replace(after, started_wall=now.wall)
            self._set_span(tx, row, begun_wall=now.wall)
        elif event is MachineEvent.JOINED:
            after = replace(after, failures=0, retry_wall=0.0)
            self._set_span(tx, row, boot_s=now.wall - row.requested_wall)
        elif event is MachineEvent.OVERDUE:
            after = replace(
                after, note=f"its agent did not join within {section.boot_limit:.0f} s", failures=row.failures + 1
            )
        if state in (MachineState.ABSENT, MachineState.BACKOFF, MachineState.HELD):
            after = self._over(tx, after, now)
        self._event(tx, "provision", f"{site} machine {machine}: {state.value} ({after.note or why})")
        self._put(tx, after)
        if event is MachineEvent.WANTED:
            self._request(tx, after, section, now)

    def _failed(self, after: ProvisionedRow, row: ProvisionedRow, now: Moment, event: MachineEvent) -> ProvisionedRow:
        site, machine = row.site, row.machine
        lived = row.started_wall is not None and now.wall - row.started_wall >= SHORT_LIFE_S
        failures = 0 if lived else row.failures + 1
        note = self._calls.failed.pop((site, machine), "") if event is MachineEvent.FAILED else "the machine has ended"
        pause = 0.0 if lived else retry_s(failures)
        return replace(after, note=note, failures=failures, retry_wall=now.wall + pause)

    def _over(self, tx: Transaction, row: ProvisionedRow, now: Moment) -> ProvisionedRow:
        """The machine does not exist any more: end its span, delete its token."""
        if row.span is not None:
            tx.set_span(row.span, ended_wall=now.wall)
        if row.token:
            tx.drop_token(row.token)
        return replace(row, span=None, token="", native="", key="", requested_wall=0.0, started_wall=None)

    def _set_span(self, tx: Transaction, row: ProvisionedRow, **values: float | None) -> None:
        if row.span is not None:
            tx.set_span(row.span, **values)

    def _put(self, tx: Transaction, row: ProvisionedRow) -> None:
        key = (row.site, row.machine)
        before = self._rows.get(key)
        if row.state == MachineState.ABSENT.value and not row.failures:
            tx.drop_provisioned(*key)
        else:
            tx.put_provisioned(row)
        self._rows[key] = row
        self._calls.changed(*key)

        def undo() -> None:
            if before is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = before

        tx.after_rollback.append(undo)

    def _request(self, tx: Transaction, row: ProvisionedRow, section: SiteSection, now: Moment) -> None:
        """Have the machine made, with a new token, after the commit."""
        wanted = self.demands[row.site]
        seconds = min(section.longest, max(0.0, wanted.until - now.clock) / self._speed + section.grace)
        token = self._new_token(tx, row.site, section.region, section.longest)
        if row.token:
            tx.drop_token(row.token)
        key = row.key or secrets.token_hex(8)
        span = row.span
        if span is None:
            span = tx.add_span(SpanRow(row.site, row.machine, key, section.price, now.wall))
        requested = row.requested_wall or now.wall
        self._put(tx, replace(row, key=key, token=token.id, span=span, requested_wall=requested))
        request = Request(
            self._run, row.site, section.region, row.machine, section.machines, key, section.join_url or self._url,
            token.token, seconds, section.grace, section.agent_options,
        )  # fmt: skip
        tx.after_commit.append(lambda: self._calls.request(row.site, request))

    def _end(self, site: str, observed: Observed, section: SiteSection, now: Moment, since: float) -> None:
        """Ask a machine to drain; end it when its grace is over. Repeated, because a call may fail."""
        key = (site, observed.native or str(observed.machine))
        asked, for_good = self._asked_to_end.get(key, (0.0, False))
        late = now.wall - since >= section.grace
        if observed.state != "gone" and ((late and not for_good) or now.wall - asked >= section.grace):
            self._asked_to_end[key] = (now.wall, late)
            self._calls.release(site, observed, section.grace, late)

    def _release_strangers(self, site: str, section: SiteSection, now: Moment) -> None:
        """Release machines of this run that no row answers for: duplicates, and those beyond `machines`."""
        kept: dict[int, str] = {}
        for observed in self._calls.all_of(site):
            if kept.get(observed.machine) == observed.native:
                continue
            row = self.row(site, observed.machine)
            own = MachineState(row.state) in EXISTS and row.native in ("", observed.native)
            if own and observed.machine < section.machines and observed.machine not in kept:
                kept[observed.machine] = observed.native
                continue
            if self._calls.requesting(site, observed.machine):
                continue
            asked, _ = self._asked_to_end.get((site, observed.native or str(observed.machine)), (now.wall, False))
            self._end(site, observed, section, now, asked)
