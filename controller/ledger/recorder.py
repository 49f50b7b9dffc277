"""Writes the energy ledger: turns the reports of sites into rows, inside transactions.

The arithmetic is in `curtail.carbon.accounting`, meters are in `controller.ledger.metering`.
This module keeps the open interval of each site, closes it when phase, reading, PUE,
method or flags change, and keeps the totals. Open intervals are saved at every step.
A controller that was killed books the time until its restart as an estimate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from controller.energy.microgrid import Supply
from controller.fleet.live import Fleet, LiveSite
from controller.ledger.always_on import AlwaysOn
from controller.ledger.metering import CONSTANT, METER, Drawn, Flow, JobProgress, Metered, SiteMeter
from controller.store import Transaction
from curtail.carbon import accounting
from curtail.carbon.accounting import Basis, Draw, Grown, Interval, LedgerEntry, Totals
from curtail.config import RunConfig
from curtail.grid.reading import Reading
from curtail.policy.rules import Verdict

ESTIMATED, STALE, SUSPECT = "estimated", "stale", "suspect zero"


class EnergyLedger:
    """The open intervals and totals of the ledger. Methods run inside a transaction on the store's thread.

    Args: speed: seconds of the controller's clock in a real one.
    """

    def __init__(self, config: RunConfig, speed: float = 1.0) -> None:
        self._config = config
        self._speed = speed
        self._open: dict[str, Interval] = {}
        self._meters: dict[str, SiteMeter] = {}
        self._trained: dict[str, dict[str, JobProgress]] = {}  # per site; the latest job only
        self._until: dict[str, float] = {}  # end of the last row of sites without an open interval
        self._silent: set[str] = set()
        self._saved: dict[str, tuple[Interval, dict[str, list[int]]]] = {}
        self._always_on: AlwaysOn | None = None  # created at the first request
        self.drawn = Drawn()
        self.totals = Totals()
        self.by_site: dict[str, Totals] = {}

    def restore(self, tx: Transaction, now: float | None = None) -> None:
        """Continue after a restart: close what was open, and estimate what was drawn since, up to `now`.

        A site may have trained until its permit ended; after that it drew standing power. The MCI of that
        time was not read and is unknown until it is settled.
        """
        self._count(entry for _, entry in tx.entries_after(0))
        for interval, seen, marks in tx.open_with_marks():
            self._write(tx, accounting.close(interval, seen))
            self._trained[interval.site] = {job: JobProgress.of(kept) for job, kept in marks.items()}
            stop = seen if now is None else max(seen, now)
            for part in self._meanwhile(interval, seen, stop):
                self._write(tx, part)
            self._until[interval.site] = stop
            tx.drop_open(interval.site)

    def _meanwhile(self, last: Interval, seen: float, now: float) -> list[LedgerEntry]:
        """Estimated rows for [seen, now), while no controller ran."""
        permit = min(now, seen + self._config.policy.permit * self._speed)
        if last.phase in accounting.STANDING:
            permit = seen
        basis = last.basis or Basis()
        flags = tuple(sorted({*basis.flags, ESTIMATED}))
        known = replace(basis, flags=flags, reason="the controller was away; as before, until the permit ended")
        rows = [accounting.close(replace(last, t0=seen, method=CONSTANT, basis=known, draw=None, grown=None), permit)]
        if last.region in self._config.regions:
            phase = last.phase if last.phase in accounting.STANDING else "paused"
            blind = Basis(threshold=basis.threshold, flags=(ESTIMATED,), reason="the controller was away")
            standing = Interval(
                last.site, last.region, phase, permit, self._config.watts(last.region, phase), CONSTANT, last.pue,
                1.0, None, False, blind,
            )  # fmt: skip
            rows.append(accounting.close(standing, now))
        return [row for row in rows if row is not None]

    def book_with_region(
        self,
        tx: Transaction,
        live: LiveSite,
        fleet: Fleet,
        now: float,
        mono: float,
        reading: Reading | None,
        verdict: Callable[[LiveSite], Verdict | None],
        supply: Supply | None,
    ) -> None:
        """Record the power of `live` from `now` on, and of other sites if that changes their power's origin.

        Args:
            mono: the same moment in monotonic seconds.
            reading: of the region.
            verdict: that on a site.
            supply: where the region's power comes from; None: from the grid alone.
        """
        before = self.drawn.of(live.region)
        drawn = self.draws(live)
        share = 1.0 if supply is None else supply.grid_share(drawn)
        # If one site draws more, the others get a smaller share of the region's own power.
        shared = supply is not None and share != supply.grid_share(before)
        for site in [other for other in fleet if other.region == live.region] if shared else [live]:
            heard = site.heard(mono, self._config.fleet.lost_after)
            self.book(tx, site, now, reading, verdict(site), share, heard)

    def book(
        self,
        tx: Transaction,
        live: LiveSite,
        now: float,
        reading: Reading | None,
        verdict: Verdict | None,
        grid_share: float,
        heard: bool = True,
    ) -> None:
        """Record the power of `live` from `now` on.

        Args: heard: whether it reports. If not, its power and phase are estimated.
        """
        self._undoable(tx, live.site)
        (self._silent.discard if heard else self._silent.add)(live.site)
        before = self._open.get(live.site)
        start = max(now, self._until.get(live.site, now)) if before is None else max(now, before.t0)
        meter = self._meters.setdefault(live.site, SiteMeter())
        model_w = self._config.watts(live.region, live.phase if before is None else before.phase)
        reports = {agent: m.power if self._talks(live, agent) else None for agent, m in live.machines.items()}
        correction = meter.book(reports, start, self._speed, model_w)
        wanted = self._interval(live, start, reading, verdict, grid_share, heard)
        if before is None:
            self._open[live.site] = replace(wanted, t0=self._until.pop(live.site, start))
        else:
            before = _corrected(before, start, correction)
            entry, self._open[live.site] = accounting.change(before, start, wanted)
            self._write(tx, entry)
        self._save(tx, live.site, start)

    def _talks(self, live: LiveSite, agent: str) -> bool:
        """Whether this machine reports; if it does not while others of its site do, its last power is not used."""
        seen = live.machines[agent].seen
        return seen is None or live.seen is None or live.seen - seen <= self._config.fleet.lost_after

    def trained(self, site: str, job: str, number: int, steps: int, tokens: int, committed: bool = False) -> None:
        """Count a job's progress in round `number`, reported or committed, since the round began."""
        known = self._trained.get(site, {}).get(job) or JobProgress()
        self._trained[site] = {job: known}
        more = known.committed(number, steps, tokens) if committed else known.said(number, steps, tokens)
        self._add(site, steps=more[0], tokens=more[1])

    def carried(self, site: str, size: int) -> None:
        """Count bytes sent to or received from the site."""
        self._add(site, network_bytes=size)

    def _add(self, site: str, **counts: int) -> None:
        interval = self._open.get(site)
        if interval is None or not any(counts.values()):
            return
        grown = interval.grown or Grown(interval.t0)
        sums = {name: getattr(grown, name) + count for name, count in counts.items()}
        self._open[site] = replace(interval, grown=replace(grown, **sums))

    def finish(self, tx: Transaction, site: str, now: float, again: bool = False) -> None:
        """The site left: close its interval. Again: it rejoins at once, so the next interval begins here."""
        self._undoable(tx, site)
        interval = self._open.pop(site, None)
        self._meters.pop(site, None)
        self._saved.pop(site, None)
        self.drawn.drop(site)
        if not again:
            self._trained.pop(site, None)
            self._until.pop(site, None)
        if interval is not None:
            self._write(tx, accounting.close(interval, now))
            tx.drop_open(site)
            if again:
                self._until[site] = max(now, interval.t0)

    def _undoable(self, tx: Transaction, site: str) -> None:
        """Restore the site's state in memory if the transaction fails, for example on a full disk."""
        tables: tuple[dict[str, Any], ...] = (
            self._open, self._saved, self._trained, self._until, self.by_site, self._meters,
        )  # fmt: skip
        meter = self._meters.get(site)
        kept = None if meter is None else meter.copy()
        before = [table.get(site) for table in tables[:-1]] + [kept]
        totals = self.totals

        def undo() -> None:
            self.totals = totals
            for table, value in zip(tables, before, strict=True):
                if value is None:
                    table.pop(site, None)
                else:
                    table[site] = value

        tx.after_rollback.append(undo)

    def present(self, now: float) -> tuple[Totals, dict[str, Totals]]:
        """Totals up to `now`, open intervals included: of all, and of each site."""
        total, sites = self.totals, dict(self.by_site)
        for site, interval in self._open.items():
            entry = accounting.close(interval, now)
            if entry is not None:
                total = accounting.add(total, [entry])
                sites[site] = accounting.add(sites.get(site, Totals()), [entry])
        return total, sites

    def draws(self, live: LiveSite) -> float:
        """The site's power now, W, PUE included.

        Measured if the site has a meter and reports; else the run file's figure.
        """
        watts = live.watts
        if watts is None or live.site in self._silent:
            watts = self._config.watts(live.region, live.phase)
        self.drawn.put(live.site, live.region, watts * self._config.regions[live.region].pue)
        return self.drawn.of(live.region)

    def always_on_kg(
        self,
        totals: Totals,
        started: float,
        sites: Mapping[str, str],
        readings: Mapping[str, Sequence[tuple[float, float | None]]],
    ) -> float | None:
        """kgCO2 of the same training without pauses, for sites given as name -> region; from all readings."""
        known = {
            region: [(point, mci) for point, mci in readings.get(region, ()) if mci is not None]
            for region in set(sites.values())
        }
        rows = [(self._train_w(region), known[region]) for region in sites.values()]
        return accounting.always_on_kg(totals.train_seconds, started, rows)

    def always_on_now(self, tx: Transaction, totals: Totals, started: float, regions: Iterable[str]) -> float | None:
        """The same, incrementally from the readings since the last call; for a live run.

        Args: regions: of each site. Returns: None if the run file no longer has one of them.
        """
        counts = Counter(regions)
        if any(region not in self._config.regions for region in counts):
            return None
        self._always_on = self._always_on or AlwaysOn(started)
        groups = {region: (count, self._train_w(region)) for region, count in counts.items()}
        return self._always_on.kg(tx, totals.train_seconds, groups)

    def _train_w(self, region: str) -> float:
        """Power of one site that trains, by the run file, W, PUE included."""
        return self._config.watts(region, "train") * self._config.regions[region].pue

    def _interval(
        self, live: LiveSite, now: float, reading: Reading | None, verdict: Verdict | None, share: float, heard: bool
    ) -> Interval:
        model_w = self._config.watts(live.region, live.phase)
        drawn = self._meters[live.site].present(live.expected, model_w, heard)
        if heard and live.watts is not None and not any(machine.power for machine in live.machines.values()):
            drawn = Metered(live.watts, METER, Draw(sampled=1.0))  # power without a counter of energy
        basis = self._basis(live, now, reading, verdict, heard)
        raw = basis.mci_raw
        return Interval(
            site=live.site,
            region=live.region,
            phase=live.phase,
            t0=now,
            watts=drawn.watts,
            method=drawn.method,
            pue=self._config.regions[live.region].pue,
            grid_share=share,
            mci=None if raw is None or SUSPECT in basis.flags else max(0.0, raw),
            curtailed=verdict is not None and verdict.curtailed,
            basis=basis,
            draw=drawn.draw,
        )

    def _basis(
        self, live: LiveSite, now: float, reading: Reading | None, verdict: Verdict | None, heard: bool
    ) -> Basis:
        flags = set() if verdict is None else set(verdict.flags)
        known = reading is not None and reading.mci is not None
        if not heard:
            flags.add(ESTIMATED)
        if reading is not None and known and now > reading.valid_until:
            flags.add(STALE)
        return Basis(
            mci_raw=None if reading is None else reading.mci,
            source="" if reading is None else reading.source,
            # an unknown reading is for the moment of asking, which says nothing
            point_time=reading.point_time if reading is not None and known else None,
            threshold=self._config.threshold(live.region),
            flags=tuple(sorted(flags)),
            reason="no reading has arrived yet" if verdict is None else verdict.reason,
        )

    def _save(self, tx: Transaction, site: str, now: float) -> None:
        """Save the open intervals; not at every step if only time has passed, because the store has the run's clock."""
        interval = self._open[site]
        marks = {job: trained.kept() for job, trained in self._trained.get(site, {}).items()}
        if self._saved.get(site) != (interval, marks):
            self._saved[site] = (interval, marks)
            tx.put_open(interval, now, marks)

    def _write(self, tx: Transaction, entry: LedgerEntry | None) -> None:
        if entry is not None:
            tx.add_entries([entry])
            self._count([entry])

    def _count(self, entries: Iterable[LedgerEntry]) -> None:
        for entry in entries:
            self.totals = accounting.add(self.totals, [entry])
            self.by_site[entry.site] = accounting.add(self.by_site.get(entry.site, Totals()), [entry])


def _corrected(interval: Interval, now: float, flow: Flow) -> Interval:
    """The interval with metered instead of assumed power up to `now`."""
    if flow == Flow():
        return interval
    sums = accounting.grow(interval, now)
    grown = replace(
        sums,
        joules=sums.joules + flow.joules,
        grid_joules=sums.grid_joules + flow.joules * interval.pue * interval.grid_share,
        gpu_joules=sums.gpu_joules + flow.gpu,
        host_joules=sums.host_joules + flow.host,
        sampled_s=sums.sampled_s + flow.sampled,
    )
    return replace(interval, grown=grown)
