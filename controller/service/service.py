"""The use cases: join, leave, heartbeat, rounds, tick, override.

One object holds the soft state: the last report of each site, the latest
verdicts. It changes only on the store's thread, in the transaction that writes
the durable part, so no locks are needed and no request is applied partly. Decisions
are pure functions of curtail.policy, controller.scheduling, controller.rounds,
controller.service.admission and controller.fleet.crew.
Two clocks: the controller's clock (`replay`) for readings, regimes and energy;
real time for permits and deadlines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from controller.aggregation.outer_step import MergeResult, MergeSpec
from controller.auth import credentials, tokens
from controller.auth.credentials import Forbidden
from controller.energy.clock import ReplayClock
from controller.energy.microgrid import Supply
from controller.files.disk_space import Room, Unwatched
from controller.files.uploads import Uploads
from controller.files.versions import Versions
from controller.fleet.live import Fleet, LiveSite
from controller.fleet.power_commands import Runner
from controller.fleet.power_switch import Now, Switches
from controller.ledger.recorder import EnergyLedger
from controller.rounds.coordinator import RoundCoordinator
from controller.rounds.lifecycle import MemberEvent
from controller.rounds.publish import Merger
from controller.scheduling import permits
from controller.scheduling.permits import PermitFacts
from controller.scheduling.regime import RegimeTracker
from controller.scheduling.scheduler import Scheduler
from controller.service.access import Access
from controller.service.elastic import ElasticSites, Provisioning
from controller.service.sites import Sites
from controller.signals.replay import Source
from controller.store import Store, Transaction
from controller.store.rows import MachineRow, RunRow
from curtail import wire
from curtail.carbon.accounting import ATTRIBUTED
from curtail.config import RunConfig
from curtail.errors import NotFound, Refused, WireError
from curtail.policy.rules import Regime
from curtail.security.signing import Stamp
from curtail.system.clock import Clock, EvenClock

log = logging.getLogger("curtail.service")


@dataclass(frozen=True, slots=True)
class ServiceDeps:
    """Dependencies of the service."""

    store: Store
    config: RunConfig
    source: Source
    replay: ReplayClock
    clock: Clock
    versions: Versions
    uploads: Uploads
    merger: Merger
    room: Room = field(default_factory=Unwatched)
    commands: Runner | None = None  # None: no machine is switched off or on
    perfect_forecast: bool = False  # the source's forecast is the signal's own future
    provisioning: Provisioning | None = None  # None: no site has a provisioner


class Service:
    """All use cases. Methods that take a `Transaction` run on the store's thread."""

    def __init__(self, parts: ServiceDeps) -> None:
        self.config = parts.config
        self.store = parts.store
        self.source = parts.source
        self.replay = parts.replay
        self.room = parts.room
        self._short = ""  # the disk's state at the last event about it
        self.clock = parts.clock
        self.even = EvenClock(parts.clock)  # of rounds: their deadlines are stored
        self.versions = parts.versions
        self.fleet = Fleet()
        self.energy_ledger = EnergyLedger(parts.config, parts.replay.speed)
        self.rounds = RoundCoordinator(
            parts.config, parts.versions, parts.uploads, parts.merger, self._event, self._merge_ended
        )
        self.sites = Sites(
            parts.config, self.even, parts.replay, self.fleet, self.energy_ledger, self.rounds.release_site, self._event
        )
        self.switches = Switches(parts.config, parts.commands, self._event)
        self.access = Access(parts.config, parts.clock, self.sites, self._event)
        self.scheduler = Scheduler(
            parts.config, parts.source, parts.replay, parts.clock, self.fleet, self.energy_ledger, self._event,
            self.switches.away, parts.perfect_forecast,
        )  # fmt: skip
        self.readings, self.verdicts = self.scheduler.readings, self.scheduler.regions
        self.regime = RegimeTracker(
            self.fleet, self.scheduler, parts.clock, parts.config.fleet.lost_after, self.switches.away, self._event
        )
        self.elastic = ElasticSites(
            parts.config, self.fleet, self.scheduler, parts.source, parts.replay, parts.clock, self._event,
            parts.provisioning,
        )  # fmt: skip
        self.supplies: dict[str, Supply] = {}  # by region
        self._last_tick: float | None = None  # monotonic
        self._resumed = parts.clock.monotonic()

    def resume(self, tx: Transaction) -> None:
        """Continue from the store; called once, before any other method."""
        run = self._run(tx)
        tx.begin_chain()
        self.energy_ledger.restore(tx, self.replay.now())
        for site in tx.sites():
            if not site.left_run:
                self.sites.enter(tx, site)
        self.switches.restore(tx, self._moment(run))
        self.elastic.restore(tx)
        fleet = self.config.fleet
        self.rounds.resume(tx, self.even.wall(), fleet.lost_after)
        self.scheduler.restore(tx)
        # No persisted regime is trusted: the first tick decides anew.
        tx.set_run(regime=Regime.PAUSED.value, regime_since=run.clock)
        self._event(tx, "controller", f"the controller started at version {tx.latest_version().version}")

    # -- agents ----------------------------------------------------------------

    def join(self, tx: Transaction, request: wire.JoinRequest, stamp: Stamp | None = None) -> wire.JoinReply:
        """Admit an agent. Its machine gets a new fencing token; requests with older ones are refused from now on.

        Args: stamp: of the request, whose signature with `request.key` was checked.
        Raises: AuthError: wrong token, or a replayed request. Refused: another protocol, a site that belongs to
        another key, or that the other machines describe differently. NotFound: no such region. WireError: no name,
        or an invalid number of machines.
        """
        now = self.clock.wall()
        before = tx.machine(request.site, request.agent)
        joined = before is not None and request.key != "" and before.key == request.key
        token = tokens.admit(tx, request.token, request.site, request.region, joined, now)
        if stamp is not None:
            credentials.first_time(tx, request.key, stamp, now)
        if request.protocol != wire.PROTOCOL:
            raise Refused(
                f"the agent speaks protocol {request.protocol}, this controller {wire.PROTOCOL}",
                "install the same curtail on both",
            )
        if request.region not in self.config.regions:
            known = ", ".join(sorted(self.config.regions))
            raise NotFound(f"the run has no region {request.region!r}", f"use one of {known}")
        fence, credential = self.sites.join(tx, request, token)
        return wire.JoinReply(credential, fence, self.config.fleet.heartbeat, self._run(tx).id)

    def leave(self, tx: Transaction, who: MachineRow, request: wire.LeaveRequest) -> wire.Ack:
        """The agent stops for good."""
        self._check_fence(who, request.site, request.fence)
        live = self.fleet.find(who.site)
        if live is not None and self.switches.left(live, who.agent):
            return wire.Ack(True)  # its machine is switched off; the site stays, to be switched on again
        self.sites.leave(tx, who, request.reason)
        if self.fleet.find(who.site) is None:
            self.switches.forget(tx, who.site)
        return wire.Ack(True)

    def heartbeat(self, tx: Transaction, who: MachineRow, beat: wire.Heartbeat) -> wire.HeartbeatReply:
        """Record a machine's report. The reply says whether it may train, until when, and in which crew."""
        self._check_fence(who, beat.site, beat.fence)
        if beat.phase not in (*ATTRIBUTED, "paused"):
            raise WireError(f"there is no energy phase {beat.phase!r}")
        if beat.watts is not None and beat.watts < 0:
            raise WireError("measured power cannot be negative")
        if beat.power is not None and min(v or 0.0 for v in wire.counts(beat.power)) < 0:
            raise WireError("measured energy cannot be negative")
        run = self._run(tx)
        now = self.clock.monotonic()
        live = self.sites.live(tx, who)
        machine = self.sites.heard(tx, live, who, beat)
        if self._last_tick is not None and live.site not in self.scheduler.sites:
            self.scheduler.step(tx, run, self.replay.now())  # it was silent, or has just joined
        facts, lost_after = self._permit_facts(run, live, now), self.config.fleet.lost_after
        lead = live.lead
        live.permit = permits.grant_permit(facts, "" if lead is None else live.waits(lead, now, lost_after))
        permit = permits.grant_permit(facts, live.waits(machine, now, lost_after))
        live.promised = (now if live.promised is None else live.promised) if permit.granted else None
        self.switches.still_starting(live)
        self._book(tx, live, self.replay.now())
        return wire.HeartbeatReply(
            granted=permit.granted,
            valid_s=permit.valid_s(now),
            reason=permit.reason,
            finished=run.state == permits.FINISHED,
            heartbeat_s=self.config.fleet.heartbeat,
            regime=run.regime,
            crew=live.crew_of(machine, now, lost_after),
            credential=credentials.next_credential(tx, who, self.clock.wall()),
            hold_s=live.permit.hold_s(now) if machine.job is not None else 0.0,
        )

    def _permit_facts(self, run: RunRow, live: LiveSite, now: float) -> PermitFacts:
        return PermitFacts(
            run_state=run.state,
            step_age_s=None if self._last_tick is None else now - self._last_tick,
            disk=self.room.reason,
            switching_off=self.switches.going_down(live.site),
            verdict=self.scheduler.sites.get(live.site),
            now=now,
            clock=self.replay.now(),
            speed=self.replay.speed,
            permit_s=self.config.policy.permit,
        )

    # -- rounds ------------------------------------------------------------------

    def checkout(self, tx: Transaction, who: MachineRow, request: wire.CheckoutRequest) -> wire.CheckoutReply:
        """Assign work to the job of a site with a permit; only the site's lead may ask."""
        self._check_fence(who, request.site, request.fence)
        run = self._run(tx)
        now = self.clock.monotonic()
        live = self.sites.live(tx, who)
        refused = permits.refuse_work(
            live.permit,
            run_state=run.state,
            disk=self.room.reason,
            reported=live.seen is not None,
            closing=request.closing,
            now=now,
        )
        if refused is not None:
            return refused
        if live.expected > 1 and live.crew_state.crew is None:
            return wire.CheckoutReply(
                "wait", "waiting for the reports of the site's other machines", permits.RETRY_S, None
            )
        if not live.led(who.agent):
            return wire.CheckoutReply("leave", "another machine of the site leads now", 0.0, None)
        live.checked_out_job = request.job
        ready = {s.site for s in self.fleet if s.ready(now, self.config.fleet.lost_after)} | {who.site}
        return self.rounds.checkout(tx, request, self.even.wall(), frozenset(ready))

    def progress(self, tx: Transaction, who: MachineRow, progress: wire.Progress) -> wire.ProgressReply:
        """Record a job's progress in its round."""
        self._check_fence(who, progress.site, progress.fence)
        live = self.sites.live(tx, who)
        if not live.led(who.agent):
            return wire.ProgressReply(True, "another machine of the site leads now")
        live.step, live.loss, live.tokens_per_s = progress.step, progress.loss, progress.tokens_per_s
        live.working_on, live.round_tokens = progress.round, progress.tokens
        self.energy_ledger.trained(live.site, progress.job, progress.round, progress.step, progress.tokens)
        return self.rounds.progress(tx, progress)

    def commit(self, tx: Transaction, who: MachineRow, request: wire.CommitRequest) -> wire.Receipt:
        """Make a contribution durable."""
        self._check_fence(who, request.site, request.fence)
        receipt = self.rounds.commit(tx, request, self.even.wall())
        if not receipt.repeated:
            self.energy_ledger.trained(who.site, request.job, request.round, request.steps, request.tokens, True)
            blob = tx.blob(request.blob)
            self.energy_ledger.carried(who.site, 0 if blob is None else blob.size)
        return receipt

    def _merge_ended(self, spec: MergeSpec, result: MergeResult | None) -> None:
        self.store.submit(lambda tx: self._publish(tx, spec, result)).add_done_callback(_log_failure)

    def _publish(self, tx: Transaction, spec: MergeSpec, result: MergeResult | None) -> None:
        self.rounds.publish(tx, spec, result, self.even.wall())
        run = self._run(tx)
        if run.state == "RUNNING" and run.tokens == run.sample_limit * run.sequence_len:
            tx.set_run(state=permits.FINISHED)
            self._event(tx, "run", f"the token budget is reached: {run.tokens} tokens")

    # -- time --------------------------------------------------------------------

    def tick(self, now: float, supplies: Mapping[str, Supply]) -> None:
        """One step of the energy simulation: read the signal, decide, book energy, end rounds. Runs in its thread."""
        self.room.measure(len(self.fleet))
        self.store.call(lambda tx: self._tick(tx, now, supplies))

    def _tick(self, tx: Transaction, now: float, supplies: Mapping[str, Supply]) -> None:
        run, mono = self._run(tx), self.clock.monotonic()
        self._last_tick = mono
        self.supplies = dict(supplies)
        for region, supply in supplies.items():
            if supply.stored_wh is not None:
                tx.put_stored(region, supply.stored_wh, now)
        self.scheduler.step(tx, run, now)
        for live in self.fleet:
            self.sites.gather(tx, live)
            heard = live.heard(mono, self.config.fleet.lost_after)
            live.permit = permits.withdraw_permit(
                live.permit,
                heard=heard,
                seen_age_s=None if live.seen is None else mono - live.seen,
                verdict=self.scheduler.sites.get(live.site),
                disk=self.room.reason,
            )
            if not heard and not live.permit.is_live(mono):
                live.phase = "paused"  # its permit has expired, so its job has drained and it draws standing power
            self._switch(tx, live, run)
            self._book(tx, live, now)
        self.elastic.step(tx, now, run.state == permits.FINISHED)
        self._tell_room(tx)
        self.regime.step(tx, run, now, self.room.reason)
        self.rounds.sweep(tx, self.even.wall(), self._gone)

    def _tell_room(self, tx: Transaction) -> None:
        """Write an event when the disk runs short and when it has room again, and none in between."""
        if bool(self.room.reason) != bool(self._short):
            self._event(tx, "disk", self.room.reason or "the controller's disk has room again, training goes on")

            def told(reason: str = self.room.reason) -> None:
                self._short = reason

            tx.after_commit.append(told)

    def _gone(self, site: str, job: str) -> tuple[MemberEvent, str] | None:
        live = self.fleet.find(site)
        if live is None:
            return MemberEvent.JOB_ENDED, "its agent left"
        now = self.clock.monotonic()
        if live.seen is None:
            silent = now - self._resumed
            late = silent > self.config.fleet.lost_after
            return (MemberEvent.SILENT, f"silent for {silent:.0f} s since the controller's start") if late else None
        if not live.heard(now, self.config.fleet.lost_after):
            return MemberEvent.SILENT, f"silent for {now - live.seen:.0f} s"
        if job not in (live.job, live.checked_out_job):
            return MemberEvent.JOB_ENDED, "its job ended without a commit"
        return None

    def _switch(self, tx: Transaction, live: LiveSite, run: RunRow) -> None:
        """Switch the site's machines off or on when its region stops or may start."""
        now, horizon = self._moment(run), self.switches.horizon(live.site)
        forecast = self.source.forecast(live.region, now.clock, horizon) if horizon > 0 else None
        price, verdict = self.scheduler.price, self.scheduler.verdict(live)
        assert verdict is not None, "the step that switches has decided before"
        self.switches.step(tx, live, now, verdict, forecast, None if price is None else price.limit)

    def _moment(self, run: RunRow) -> Now:
        return Now(self.replay.now(), self.clock.wall(), self.clock.monotonic(), run.state == permits.FINISHED)

    # -- energy ------------------------------------------------------------------

    def power(self, region: str) -> float:
        """Power that the region's sites draw now, W, PUE included; for the energy simulation. Any thread."""
        return self.energy_ledger.drawn.of(region)

    def _book(self, tx: Transaction, live: LiveSite, now: float) -> None:
        self.energy_ledger.book_with_region(
            tx, live, self.fleet, now, self.clock.monotonic(), self.readings.get(live.region), self.scheduler.verdict,
            self.supplies.get(live.region),
        )  # fmt: skip

    # -- operators ------------------------------------------------------------------

    def override(self, tx: Transaction, request: wire.OverrideRequest) -> wire.Ack:
        """Apply an operator's override for a region from now on.

        Raises: NotFound, WireError: as `controller.scheduling.overrides`.
        """
        now = self.replay.now()
        self.scheduler.orders.place(tx, request, now, self.clock.wall())
        if self._last_tick is not None:
            self.scheduler.step(tx, self._run(tx), now)
        return wire.Ack(True)

    # -- health and events ----------------------------------------------------------------

    def seconds_since_tick(self) -> float:
        """Real seconds since the last step of the energy simulation; any thread."""
        return 0.0 if self._last_tick is None else self.clock.monotonic() - self._last_tick

    def _check_fence(self, who: MachineRow, site: str, fence: int) -> None:
        if site != who.site:
            raise Forbidden(f"this credential belongs to site {who.site!r}, not to {site!r}")
        if fence != who.fence:
            raise Refused(
                f"fencing token {fence} of site {site} is out of date, {who.fence} is current",
                "another agent of this site joined",
            )

    def _run(self, tx: Transaction) -> RunRow:
        run = tx.run()
        assert run is not None, "the run is created before the service starts"
        return run

    def tell(self, kind: str, text: str) -> None:
        """Write an event; any thread."""
        self.store.submit(lambda tx: self._event(tx, kind, text)).add_done_callback(_log_failure)

    def _event(self, tx: Transaction, kind: str, text: str) -> None:
        tx.add_event(self.replay.now(), self.clock.wall(), kind, text)
        tx.after_commit.append(lambda: log.info("%s: %s", kind, text))


def _log_failure(future: Future[None]) -> None:
    error = future.exception()
    if error is not None:
        log.error("writing an event to the store failed: %s", error)
