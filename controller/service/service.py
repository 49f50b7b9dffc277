"""The use cases: join, leave, heartbeat, rounds, tick, status.

One object holds the soft state (what sites last said, the latest verdicts) and
changes it only on the store's thread, inside the transaction that makes the
durable part true; so there are no locks and no half-done request. Decisions
are in curtail.policy, controller.rounds.lifecycle, controller.store.sample_pool,
curtail.carbon.accounting, controller.service.admission and controller.fleet.crew.
Two clocks: the controller's clock (`replay`), in which readings, regimes and
energy live, and real time for permits and deadlines.
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
from controller.ledger.recorder import Booking
from controller.rounds.coordinator import RoundKeeper
from controller.rounds.lifecycle import MemberEvent
from controller.rounds.publish import Merger
from controller.scheduling.scheduler import Deciding
from controller.service import snapshot
from controller.service.access import Access
from controller.service.sites import Sites
from controller.signals.replay import Source
from controller.store import Store, Transaction
from controller.store.rows import MachineRow, RunRow
from curtail import wire
from curtail.carbon.accounting import ATTRIBUTED
from curtail.config import RunConfig
from curtail.errors import NotFound, Refused, WireError
from curtail.policy.rules import Regime, Verdict, regime_of, regime_reason
from curtail.security.signing import Stamp
from curtail.system.clock import Clock, EvenClock

log = logging.getLogger("curtail.service")

TICK_LIMIT_S = 5.0
"""Real seconds without a step of the energy simulation after which no permit is given."""

HOLD_RETRY_S = 0.5
"""How soon a job asks again that holds its weights through a short gap."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the service is made of."""

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


class Service:
    """All use cases. Methods that take a `Transaction` run on the store's thread."""

    def __init__(self, parts: Parts) -> None:
        self.config = parts.config
        self.store = parts.store
        self.source = parts.source
        self.replay = parts.replay
        self.room = parts.room
        self._short = ""  # what the disk's room was when an event last told of it
        self.clock = parts.clock
        self.even = EvenClock(parts.clock)  # of rounds: their deadlines are stored
        self.versions = parts.versions
        self.fleet = Fleet()
        self.booking = Booking(parts.config, parts.replay.speed)
        self.rounds = RoundKeeper(
            parts.config, parts.versions, parts.uploads, parts.merger, self._event, self._merge_ended
        )
        self.sites = Sites(
            parts.config, self.even, parts.replay, self.fleet, self.booking, self.rounds.release_site, self._event
        )
        self.switches = Switches(parts.config, parts.commands, self._event)
        self.access = Access(parts.config, parts.clock, self.sites, self._event)
        self.deciding = Deciding(
            parts.config, parts.source, parts.replay, parts.clock, self.fleet, self.booking, self._event,
            self.switches.away, parts.perfect_forecast,
        )  # fmt: skip
        self.readings, self.verdicts = self.deciding.readings, self.deciding.regions
        self.supplies: dict[str, Supply] = {}  # by region
        self._last_tick: float | None = None  # monotonic
        self._resumed = parts.clock.monotonic()

    def resume(self, tx: Transaction) -> None:
        """Continue from what the store holds; to be called once before anything else."""
        run = self._run(tx)
        tx.begin_chain()
        self.booking.restore(tx, self.replay.now())
        for site in tx.sites():
            if not site.left_run:
                self.sites.enter(tx, site)
        self.switches.restore(tx, self._moment(run))
        fleet = self.config.fleet
        self.rounds.resume(tx, self.even.wall(), fleet.lost_after)
        self.deciding.restore(tx)
        # No persisted regime is trusted: the first tick decides anew.
        tx.set_run(regime=Regime.PAUSED.value, regime_since=run.clock)
        self._event(tx, "controller", f"the controller started at version {tx.latest_version().version}")

    # -- agents ----------------------------------------------------------------

    def join(self, tx: Transaction, request: wire.JoinRequest, stamp: Stamp | None = None) -> wire.JoinReply:
        """Admit an agent: a new epoch of its machine begins, older ones are refused from now on.

        Args: stamp: of the request, whose signature with `request.key` was checked.
        Raises: AuthError: wrong token, or a request that came before. Refused: another protocol, a site that is
        somebody else's, or of which the others say something else. NotFound: no region. WireError: no name, no
        number of machines.
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
            return wire.Ack(True)  # its machine goes down; the site stays, to be switched on again
        self.sites.leave(tx, who, request.reason)
        if self.fleet.find(who.site) is None:
            self.switches.forget(tx, who.site)
        return wire.Ack(True)

    def heartbeat(self, tx: Transaction, who: MachineRow, beat: wire.Heartbeat) -> wire.HeartbeatReply:
        """Note what the machine does and say whether it may train, for how long, and with which others."""
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
        if self._last_tick is not None and live.site not in self.deciding.sites:
            self.deciding.step(tx, run, self.replay.now())  # it was silent, or has just come
        self._permit(run, live, now)
        granted, reason, until = live.granted, live.reason, live.permit_until
        lost_after = self.config.fleet.lost_after
        if granted and live.lead is not None and (why := live.waits(live.lead, now, lost_after)):
            live.granted, live.reason, live.permit_until, live.hold_until = False, why, float("-inf"), float("-inf")
        if granted and (why := live.waits(machine, now, lost_after)):
            granted, reason = False, why
        live.promised = (now if live.promised is None else live.promised) if granted else None
        self.switches.still_starting(live)
        self._book(tx, live, self.replay.now())
        return wire.HeartbeatReply(
            granted=granted,
            valid_s=max(0.0, until - now) if granted else 0.0,
            reason=reason,
            finished=run.state == "FINISHED",
            heartbeat_s=self.config.fleet.heartbeat,
            regime=run.regime,
            crew=live.crew_of(machine, now, lost_after),
            credential=credentials.next_credential(tx, who, self.clock.wall()),
            hold_s=max(0.0, live.hold_until - now) if machine.job is not None else 0.0,
        )

    def _permit(self, run: RunRow, live: LiveSite, now: float) -> None:
        verdict = self.deciding.sites.get(live.site)
        live.hold_until = float("-inf")
        stopped = self._last_tick is None or now - self._last_tick > TICK_LIMIT_S
        if run.state == "FINISHED":
            live.granted, live.reason = False, "the token budget is reached"
        elif stopped:
            live.granted, live.reason = False, "the energy simulation makes no steps; see the controller's log"
        elif self.room.reason:
            live.granted, live.reason = False, self.room.reason
        elif self.switches.going_down(live.site):
            live.granted, live.reason = False, "its machines are being switched off"
        elif verdict is None:
            live.granted, live.reason = False, "no reading has arrived yet"
        else:
            seconds = min(self.config.policy.permit, (verdict.until - self.replay.now()) / self.replay.speed)
            live.granted, live.reason = verdict.granted and seconds > 0, verdict.reason
            live.permit_until = now + seconds
            if verdict.hold_until > float("-inf"):
                # A permit's length more than the gap, or the site would leave just before it hears that it may go on.
                gap = (verdict.hold_until - self.replay.now()) / self.replay.speed
                live.hold_until = now + max(0.0, gap) + self.config.policy.permit
        if not live.granted:
            live.permit_until = float("-inf")

    # -- rounds ------------------------------------------------------------------

    def checkout(self, tx: Transaction, who: MachineRow, request: wire.CheckoutRequest) -> wire.CheckoutReply:
        """Work for a job whose site holds a permit, and whose machine leads the site."""
        self._check_fence(who, request.site, request.fence)
        run = self._run(tx)
        now = self.clock.monotonic()
        live = self.sites.live(tx, who)
        if run.state == "FINISHED":
            return wire.CheckoutReply("leave", "the token budget is reached", 0.0, None)
        if not request.closing:
            if live.seen is None:
                # After a restart of the controller the job may ask before its agent has reported.
                return wire.CheckoutReply("wait", "waiting for the agent's next report", 0.5, None)
            if live.permit_until <= now < live.hold_until:
                return wire.CheckoutReply("wait", f"holding: {live.reason}", HOLD_RETRY_S, None)
            if live.permit_until <= now:
                return wire.CheckoutReply("leave", f"no permit: {live.reason}", 0.0, None)
            if self.room.reason:
                return wire.CheckoutReply("leave", f"no permit: {self.room.reason}", 0.0, None)
        if live.expected > 1 and live.muster.crew is None:
            return wire.CheckoutReply("wait", "waiting for the reports of the site's other machines", 0.5, None)
        if not live.led(who.agent):
            return wire.CheckoutReply("leave", "another machine of the site leads now", 0.0, None)
        live.checked_out_job = request.job
        ready = {s.site for s in self.fleet if s.ready(now, self.config.fleet.lost_after)} | {who.site}
        return self.rounds.checkout(tx, request, self.even.wall(), frozenset(ready))

    def progress(self, tx: Transaction, who: MachineRow, progress: wire.Progress) -> wire.ProgressReply:
        """Note how far the site is."""
        self._check_fence(who, progress.site, progress.fence)
        live = self.sites.live(tx, who)
        if not live.led(who.agent):
            return wire.ProgressReply(True, "another machine of the site leads now")
        live.step, live.loss, live.tokens_per_s = progress.step, progress.loss, progress.tokens_per_s
        live.working_on, live.round_tokens = progress.round, progress.tokens
        self.booking.trained(live.site, progress.job, progress.round, progress.step, progress.tokens)
        return self.rounds.progress(tx, progress)

    def commit(self, tx: Transaction, who: MachineRow, request: wire.CommitRequest) -> wire.Receipt:
        """Make a contribution durable."""
        self._check_fence(who, request.site, request.fence)
        receipt = self.rounds.commit(tx, request, self.even.wall())
        if not receipt.repeated:
            self.booking.trained(who.site, request.job, request.round, request.steps, request.tokens, True)
            blob = tx.blob(request.blob)
            self.booking.carried(who.site, 0 if blob is None else blob.size)
        return receipt

    def _merge_ended(self, spec: MergeSpec, result: MergeResult | None) -> None:
        self.store.submit(lambda tx: self._publish(tx, spec, result)).add_done_callback(_log_failure)

    def _publish(self, tx: Transaction, spec: MergeSpec, result: MergeResult | None) -> None:
        self.rounds.publish(tx, spec, result, self.even.wall())
        run = self._run(tx)
        if run.state == "RUNNING" and run.tokens == run.sample_limit * run.sequence_len:
            tx.set_run(state="FINISHED")
            self._event(tx, "run", f"the token budget is reached: {run.tokens} tokens")

    # -- time --------------------------------------------------------------------

    def tick(self, now: float, supplies: Mapping[str, Supply]) -> None:
        """One step of the energy simulation: read, decide, book, end rounds. Called in its thread."""
        self.room.look(len(self.fleet))
        self.store.call(lambda tx: self._tick(tx, now, supplies))

    def _tick(self, tx: Transaction, now: float, supplies: Mapping[str, Supply]) -> None:
        run, mono = self._run(tx), self.clock.monotonic()
        self._last_tick = mono
        self.supplies = dict(supplies)
        for region, supply in supplies.items():
            if supply.stored_wh is not None:
                tx.put_stored(region, supply.stored_wh, now)
        self.deciding.step(tx, run, now)
        for live in self.fleet:
            self.sites.gather(tx, live)
            if not live.heard(mono, self.config.fleet.lost_after):
                live.granted = False
                if live.seen is not None:
                    live.reason = f"silent for {mono - live.seen:.0f} s"
                if live.permit_until <= mono:
                    # Its permit has lapsed, so its job has drained: it draws standing power.
                    live.phase = "paused"
            elif (verdict := self.deciding.sites.get(live.site)) is not None and not verdict.granted:
                live.granted, live.reason = False, verdict.reason
            elif self.room.reason:
                live.granted, live.reason = False, self.room.reason
            self._switch(tx, live, run)
            self._book(tx, live, now)
        self._tell_room(tx)
        self._set_regime(tx, run, now)
        self.rounds.sweep(tx, self.even.wall(), self._gone)

    def _tell_room(self, tx: Transaction) -> None:
        """An event when the disk runs short, and when it has room again; not at every megabyte."""
        if bool(self.room.reason) != bool(self._short):
            self._event(tx, "disk", self.room.reason or "the controller's disk has room again, training goes on")

            def told(reason: str = self.room.reason) -> None:
                self._short = reason

            tx.after_commit.append(told)

    def _set_regime(self, tx: Transaction, run: RunRow, now: float) -> None:
        seconds = dict(run.regime_seconds)
        seconds[run.regime] = seconds.get(run.regime, 0.0) + max(0.0, now - run.clock)
        regime = regime_of(self.training_sites(run))
        values: dict[str, object] = {"clock": now, "regime_seconds": seconds}
        if regime.value != run.regime:
            values |= {"regime": regime.value, "regime_since": now}
            self._event(tx, "regime", f"{regime.value}: {self.reason(run, regime)}")
        tx.set_run(**values)

    def training_sites(self, run: RunRow) -> list[str]:
        """Sites that may train now: heard from, in a region that may train, budget and room left."""
        if run.state == "FINISHED" or self.room.reason:
            return []
        now = self.clock.monotonic()
        return [
            live.site
            for live in self.fleet
            if live.heard(now, self.config.fleet.lost_after)
            and (verdict := self.deciding.sites.get(live.site)) is not None
            and verdict.granted
        ]

    def reason(self, run: RunRow, regime: Regime) -> str:
        """One sentence on why this is the regime."""
        if run.state == "FINISHED":
            return "the token budget is reached"
        if self.room.reason:
            return self.room.reason
        now = self.clock.monotonic()
        heard = {s.site: s.region for s in self.fleet if s.heard(now, self.config.fleet.lost_after)}
        silent = [s.site for s in self.fleet if s.site not in heard]
        if not heard and (away := {s.site: s.region for s in self.fleet if self.switches.away(s.site)}):
            return regime_reason(regime, self.verdicts, away)
        if not heard and silent:
            return f"no site is heard from: {', '.join(silent)}"
        return regime_reason(regime, self.verdicts, heard, self.deciding.sites)

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
        """Switch the site's machines off or on, if its region stops or may start."""
        now, horizon = self._moment(run), self.switches.horizon(live.site)
        forecast = self.source.forecast(live.region, now.clock, horizon) if horizon > 0 else None
        price = self.deciding.price
        self.switches.step(tx, live, now, self._verdict(live), forecast, None if price is None else price.limit)

    def _verdict(self, live: LiveSite) -> Verdict:
        """The site's own verdict, or its region's where it is silent."""
        return self.deciding.sites.get(live.site) or self.verdicts[live.region]

    def _moment(self, run: RunRow) -> Now:
        return Now(self.replay.now(), self.clock.wall(), self.clock.monotonic(), run.state == "FINISHED")

    # -- energy ------------------------------------------------------------------

    def power(self, region: str) -> float:
        """W the region's sites draw now, PUE included; for the energy simulation, any thread."""
        return self.booking.drawn.of(region)

    def _book(self, tx: Transaction, live: LiveSite, now: float) -> None:
        before = self.booking.drawn.of(live.region)
        drawn = self.booking.draws(live)
        supply = self.supplies.get(live.region)
        share = 1.0 if supply is None else supply.grid_share(drawn)
        # What one site draws more, own power does not give: then the others get less of it, too.
        shared = supply is not None and share != supply.grid_share(before)
        for site in [other for other in self.fleet if other.region == live.region] if shared else [live]:
            heard = site.heard(self.clock.monotonic(), self.config.fleet.lost_after)
            verdict = self.deciding.sites.get(site.site) or self.verdicts.get(site.region)
            self.booking.book(tx, site, now, self.readings.get(site.region), verdict, share, heard)

    # -- people ------------------------------------------------------------------

    def override(self, tx: Transaction, request: wire.OverrideRequest) -> wire.Ack:
        """Carry out a person's order for a region, from now on.

        Raises: NotFound, WireError: as `controller.scheduling.overrides`.
        """
        now = self.replay.now()
        self.deciding.orders.place(tx, request, now, self.clock.wall())
        if self._last_tick is not None:
            self.deciding.step(tx, self._run(tx), now)
        return wire.Ack(True)

    # -- the rest ----------------------------------------------------------------

    def status(self, tx: Transaction) -> wire.Status:
        """One snapshot for every view."""
        return snapshot.make(tx, self)

    def seconds_since_tick(self) -> float:
        """Real seconds since the last step of the energy simulation; any thread."""
        return 0.0 if self._last_tick is None else self.clock.monotonic() - self._last_tick

    def authenticate(self, tx: Transaction, credential: str) -> MachineRow:
        """The machine a credential belongs to. Raises: AuthError."""
        return credentials.machine_of(tx, credential, self.clock.wall())

    def _check_fence(self, who: MachineRow, site: str, fence: int) -> None:
        if site != who.site:
            raise Forbidden(f"this credential belongs to site {who.site!r}, not to {site!r}")
        if fence != who.fence:
            raise Refused(
                f"epoch {fence} of site {site} is over, {who.fence} is current", "another agent of this site joined"
            )

    def _run(self, tx: Transaction) -> RunRow:
        run = tx.run()
        assert run is not None, "the run is created before the service starts"
        return run

    def tell(self, kind: str, text: str) -> None:
        """Note one line in the event log; any thread."""
        self.store.submit(lambda tx: self._event(tx, kind, text)).add_done_callback(_log_failure)

    def _event(self, tx: Transaction, kind: str, text: str) -> None:
        tx.add_event(self.replay.now(), self.clock.wall(), kind, text)
        tx.after_commit.append(lambda: log.info("%s: %s", kind, text))


def _log_failure(future: Future[None]) -> None:
    error = future.exception()
    if error is not None:
        log.error("what was to be noted in the store failed: %s", error)
