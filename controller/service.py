"""The use cases: join, leave, heartbeat, rounds, tick, status.

One object holds the soft state (what sites last said, the latest verdicts) and
changes it only on the store's thread, inside the transaction that makes the
durable part true; so there are no locks and no half-done request. Decisions
are in curtail.policy, controller.rounds, controller.leases,
controller.accounts, controller.admission and controller.crew. Two clocks: the controller's clock (`replay`), in which
readings, regimes and energy live, and real time for permits and deadlines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from controller import auth, snapshot
from controller.blobs import Uploads
from controller.booking import Booking
from controller.energy import ReplayClock
from controller.fleet import Fleet, LiveSite
from controller.merge import MergeResult, MergeSpec
from controller.merging import Merger
from controller.roundkeeper import RoundKeeper
from controller.rounds import MemberEvent
from controller.rows import MachineRow, RunRow
from controller.sites import Sites
from controller.store import Store, Transaction
from controller.versions import Versions
from curtail import wire
from curtail.clock import Clock
from curtail.config import RunConfig
from curtail.errors import AuthError, NotFound, Refused, WireError
from curtail.policy import Forecast, Regime, RegionRule, Verdict, Window, judge, regime_of, regime_reason, remember
from curtail.reading import Reading

log = logging.getLogger("curtail.service")

TICK_LIMIT_S = 5.0
"""Real seconds without a step of the energy simulation after which no permit is given."""


class Source(Protocol):
    """Where readings come from."""

    def reading(self, region: str, now: float) -> Reading:
        """What is known of `region` at `now`; never raises."""
        ...

    def forecast(self, region: str, now: float, horizon: float) -> Forecast | None:
        """What is expected within `horizon` seconds, or None."""
        ...

    def ended(self, now: float) -> bool:
        """Will no reading come any more?"""
        ...


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


class Service:
    """All use cases. Methods that take a `Transaction` run on the store's thread."""

    def __init__(self, parts: Parts) -> None:
        self.config = parts.config
        self.store = parts.store
        self.source = parts.source
        self.replay = parts.replay
        self.clock = parts.clock
        self.versions = parts.versions
        self.fleet = Fleet()
        self.booking = Booking(parts.config)
        self.rounds = RoundKeeper(
            parts.config, parts.versions, parts.uploads, parts.merger, self._event, self._merge_ended
        )
        self.sites = Sites(
            parts.config, parts.clock, parts.replay, self.fleet, self.booking, self.rounds.release_site, self._event
        )
        self.readings: dict[str, Reading] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.grid: dict[str, float] = {}
        self._windows: dict[str, Window] = {}
        self._draw: dict[str, float] = {}
        self._last_tick: float | None = None  # monotonic
        self._resumed = parts.clock.monotonic()
        self._rules = {
            region: RegionRule(
                region,
                parts.config.threshold(region),
                parts.config.policy.max_reading_age,
                parts.config.policy.enter_dwell,
                parts.config.policy.leave_lead,
            )
            for region in parts.config.regions
        }

    def resume(self, tx: Transaction) -> None:
        """Continue from what the store holds; to be called once before anything else."""
        run = self._run(tx)
        self.booking.restore(tx)
        for site in tx.sites():
            if not site.left_run:
                self.sites.enter(tx, site)
        fleet = self.config.fleet
        self.rounds.extend(tx, self.clock.wall() + fleet.lost_after)
        # No persisted regime is trusted: the first tick decides anew.
        tx.set_run(regime=Regime.PAUSED.value, regime_since=run.clock)
        self._event(tx, "controller", f"the controller started at version {tx.latest_version().version}")

    # -- agents ----------------------------------------------------------------

    def join(self, tx: Transaction, request: wire.JoinRequest) -> wire.JoinReply:
        """Admit an agent: a new epoch of its machine begins, older ones are refused from now on.

        Raises: AuthError: wrong token. Refused: another protocol, a site that is somebody else's, or of which the
        others say something else. NotFound: no region. WireError: no name, no number of machines.
        """
        token = auth.parse_token(request.token)
        stored = tx.join_token(token.id)
        if stored is None or not auth.matches(token.secret, stored):
            raise AuthError("the join token is not known here", "copy the file join-token of this controller's folder")
        if request.protocol != wire.PROTOCOL:
            raise Refused(
                f"the agent speaks protocol {request.protocol}, this controller {wire.PROTOCOL}",
                "install the same curtail on both",
            )
        if request.region not in self.config.regions:
            known = ", ".join(sorted(self.config.regions))
            raise NotFound(f"the run has no region {request.region!r}", f"use one of {known}")
        fence, credential = self.sites.join(tx, request)
        return wire.JoinReply(credential, fence, self.config.fleet.heartbeat, self._run(tx).id)

    def leave(self, tx: Transaction, who: MachineRow, request: wire.LeaveRequest) -> wire.Ack:
        """The agent stops for good."""
        self._check_fence(who, request.site, request.fence)
        self.sites.leave(tx, who, request.reason)
        return wire.Ack(True)

    def heartbeat(self, tx: Transaction, who: MachineRow, beat: wire.Heartbeat) -> wire.HeartbeatReply:
        """Note what the machine does and say whether it may train, for how long, and with which others."""
        self._check_fence(who, beat.site, beat.fence)
        if beat.phase not in ("paused", "start", "train", "sync", "drain"):
            raise WireError(f"there is no energy phase {beat.phase!r}")
        if beat.watts is not None and beat.watts < 0:
            raise WireError("measured power cannot be negative")
        run = self._run(tx)
        now = self.clock.monotonic()
        live = self.sites.live(tx, who)
        machine = self.sites.heard(tx, live, who, beat)
        self._permit(run, live, now)
        granted, reason, until = live.granted, live.reason, live.permit_until
        lost_after = self.config.fleet.lost_after
        if granted and live.lead is not None and (why := live.waits(live.lead, now, lost_after)):
            live.granted, live.reason, live.permit_until = False, why, float("-inf")
        if granted and (why := live.waits(machine, now, lost_after)):
            granted, reason = False, why
        self._book(tx, live, self.replay.now())
        return wire.HeartbeatReply(
            granted=granted,
            valid_s=max(0.0, until - now) if granted else 0.0,
            reason=reason,
            finished=run.state == "FINISHED",
            heartbeat_s=self.config.fleet.heartbeat,
            regime=run.regime,
            crew=live.crew_of(machine, now, lost_after),
        )

    def _permit(self, run: RunRow, live: LiveSite, now: float) -> None:
        verdict = self.verdicts.get(live.region)
        stopped = self._last_tick is None or now - self._last_tick > TICK_LIMIT_S
        if run.state == "FINISHED":
            live.granted, live.reason = False, "the token budget is reached"
        elif stopped:
            live.granted, live.reason = False, "the energy simulation makes no steps; see the controller's log"
        elif verdict is None:
            live.granted, live.reason = False, "no reading has arrived yet"
        else:
            seconds = min(self.config.policy.permit, (verdict.until - self.replay.now()) / self.replay.speed)
            live.granted, live.reason = verdict.granted and seconds > 0, verdict.reason
            live.permit_until = now + seconds
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
            if live.permit_until <= now:
                return wire.CheckoutReply("leave", f"no permit: {live.reason}", 0.0, None)
        if live.expected > 1 and live.muster.crew is None:
            return wire.CheckoutReply("wait", "waiting for the reports of the site's other machines", 0.5, None)
        if not live.led(who.agent):
            return wire.CheckoutReply("leave", "another machine of the site leads now", 0.0, None)
        live.checked_out_job = request.job
        ready = {s.site for s in self.fleet if s.ready(now, self.config.fleet.lost_after)} | {who.site}
        return self.rounds.checkout(tx, request, self.clock.wall(), frozenset(ready))

    def progress(self, tx: Transaction, who: MachineRow, progress: wire.Progress) -> wire.ProgressReply:
        """Note how far the site is."""
        self._check_fence(who, progress.site, progress.fence)
        live = self.sites.live(tx, who)
        if not live.led(who.agent):
            return wire.ProgressReply(True, "another machine of the site leads now")
        live.step, live.loss, live.tokens_per_s = progress.step, progress.loss, progress.tokens_per_s
        return self.rounds.progress(tx, progress)

    def commit(self, tx: Transaction, who: MachineRow, request: wire.CommitRequest) -> wire.Receipt:
        """Make a contribution durable."""
        self._check_fence(who, request.site, request.fence)
        return self.rounds.commit(tx, request, self.clock.wall())

    def _merge_ended(self, spec: MergeSpec, result: MergeResult | None) -> None:
        self.store.submit(lambda tx: self._publish(tx, spec, result)).add_done_callback(_log_failure)

    def _publish(self, tx: Transaction, spec: MergeSpec, result: MergeResult | None) -> None:
        self.rounds.publish(tx, spec, result, self.clock.wall())
        run = self._run(tx)
        if run.state == "RUNNING" and run.tokens == run.sample_limit * run.sequence_len:
            tx.set_run(state="FINISHED")
            self._event(tx, "run", f"the token budget is reached: {run.tokens} tokens")

    # -- time --------------------------------------------------------------------

    def tick(self, now: float, grid: Mapping[str, float]) -> None:
        """One step of the energy simulation: read, decide, book, end rounds. Called in its thread."""
        self.store.call(lambda tx: self._tick(tx, now, grid))

    def _tick(self, tx: Transaction, now: float, grid: Mapping[str, float]) -> None:
        run, mono = self._run(tx), self.clock.monotonic()
        self._last_tick = mono
        self.grid = dict(grid)
        for region, rule in self._rules.items():
            self._judge(tx, region, rule, now)
        for live in self.fleet:
            self.sites.gather(tx, live)
            if not live.heard(mono, self.config.fleet.lost_after):
                live.granted = False
                if live.seen is not None:
                    live.reason = f"silent for {mono - live.seen:.0f} s"
                if live.permit_until <= mono:
                    # Its permit has lapsed, so its job has drained: it draws standing power.
                    live.phase = "paused"
            elif not self.verdicts[live.region].granted:
                live.granted, live.reason = False, self.verdicts[live.region].reason
            self._book(tx, live, now)
        self._set_regime(tx, run, now)
        self.rounds.sweep(tx, self.clock.wall(), self._gone)

    def _judge(self, tx: Transaction, region: str, rule: RegionRule, now: float) -> None:
        reading = self.source.reading(region, now)
        last = self.readings.get(region)
        if last is None or (last.point_time, last.mci, last.reason) != (
            reading.point_time,
            reading.mci,
            reading.reason,
        ):
            known_before = last is None or last.mci is not None
            if reading.mci is not None or known_before:  # one row at the start of an unknown spell
                tx.add_reading(region, reading.point_time, reading.mci, reading.source, reading.reason)
            if reading.mci is None and known_before:
                self._event(tx, "signal", f"{region}: {reading.reason}")
        self.readings[region] = reading
        window = remember(self._windows.get(region, Window()), rule, reading, now)
        self._windows[region] = window
        forecast = self.source.forecast(region, now, rule.max_age + rule.leave_lead)
        verdict = judge(rule, window, reading, now, forecast)
        before = self.verdicts.get(region)
        if before is None or before.granted != verdict.granted:
            word = "may train" if verdict.granted else "must not train"
            self._event(tx, "policy", f"{region} {word}: {verdict.reason}")
        self.verdicts[region] = verdict

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
        """Sites that may train now: heard from, in a region that may train, budget left."""
        if run.state == "FINISHED":
            return []
        now = self.clock.monotonic()
        return [
            live.site
            for live in self.fleet
            if live.heard(now, self.config.fleet.lost_after)
            and live.region in self.verdicts
            and self.verdicts[live.region].granted
        ]

    def reason(self, run: RunRow, regime: Regime) -> str:
        """One sentence on why this is the regime."""
        if run.state == "FINISHED":
            return "the token budget is reached"
        now = self.clock.monotonic()
        heard = {s.site: s.region for s in self.fleet if s.heard(now, self.config.fleet.lost_after)}
        silent = [s.site for s in self.fleet if s.site not in heard]
        if not heard and silent:
            return f"no site is heard from: {', '.join(silent)}"
        return regime_reason(regime, self.verdicts, heard)

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

    # -- energy ------------------------------------------------------------------

    def power(self, region: str) -> float:
        """W the region's sites draw now, PUE included; for the energy simulation, any thread."""
        return self._draw.get(region, 0.0)

    def _book(self, tx: Transaction, live: LiveSite, now: float) -> None:
        draw = self._draw.get(live.region, 0.0)
        share = min(1.0, self.grid.get(live.region, draw) / draw) if draw > 0 else 1.0
        if abs(share - 1.0) < 0.01:
            share = 1.0
        self.booking.book(tx, live, now, self.readings.get(live.region), self.verdicts.get(live.region), share)
        totals: dict[str, float] = {}
        for other in self.fleet:
            pue = self.config.regions[other.region].pue
            totals[other.region] = totals.get(other.region, 0.0) + self.booking.watts(other) * pue
        self._draw = totals

    # -- the rest ----------------------------------------------------------------

    def status(self, tx: Transaction) -> wire.Status:
        """One snapshot for every view."""
        return snapshot.make(tx, self)

    def seconds_since_tick(self) -> float:
        """Real seconds since the last step of the energy simulation; any thread."""
        return 0.0 if self._last_tick is None else self.clock.monotonic() - self._last_tick

    def authenticate(self, tx: Transaction, credential: str) -> MachineRow:
        """The machine a credential belongs to. Raises: AuthError."""
        row = tx.machine_by_credential(auth.hashed(credential)) if credential else None
        if row is None:
            raise AuthError("the credential is not known here", "join again with a join token")
        return row

    def _check_fence(self, who: MachineRow, site: str, fence: int) -> None:
        if site != who.site:
            raise AuthError(f"this credential belongs to site {who.site!r}, not to {site!r}")
        if fence != who.fence:
            raise Refused(
                f"epoch {fence} of site {site} is over, {who.fence} is current", "another agent of this site joined"
            )

    def _run(self, tx: Transaction) -> RunRow:
        run = tx.run()
        assert run is not None, "the run is created before the service starts"
        return run

    def _event(self, tx: Transaction, kind: str, text: str) -> None:
        tx.add_event(self.replay.now(), self.clock.wall(), kind, text)
        tx.after_commit.append(lambda: log.info("%s: %s", kind, text))


def _log_failure(future: Future[None]) -> None:
    error = future.exception()
    if error is not None:
        log.error("publishing a version failed: %s", error)
