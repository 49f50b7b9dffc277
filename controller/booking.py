"""Keeps the energy ledger: turns what sites report into rows, inside transactions.

The arithmetic is in `controller.accounts`; this module remembers the open
interval of each site, closes it whenever phase, power or reading changes, and
keeps the running totals. Open intervals are saved at every step, so that a
killed controller loses at most the time since the last step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from controller import accounts
from controller.accounts import Entry, Interval, Totals
from controller.fleet import LiveSite
from controller.store import Transaction
from curtail.config import RunConfig
from curtail.policy import Verdict
from curtail.reading import Reading


class Booking:
    """The ledger's open end. All methods run inside a transaction on the store's thread."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._open: dict[str, Interval] = {}
        self.totals = Totals()
        self.by_site: dict[str, Totals] = {}

    def restore(self, tx: Transaction) -> None:
        """Continue after a restart: close what was open at the time up to which it is certain."""
        self._count(tx.entries())
        for interval, seen in tx.open_intervals():
            self._write(tx, accounts.close(interval, seen))
            tx.drop_open(interval.site)

    def book(
        self,
        tx: Transaction,
        live: LiveSite,
        now: float,
        reading: Reading | None,
        verdict: Verdict | None,
        grid_share: float,
    ) -> None:
        """Note what `live` draws from `now` on."""
        wanted = self._interval(live, now, reading, verdict, grid_share)
        before = self._open.get(live.site)
        if before is None:
            self._open[live.site] = wanted
        else:
            entry, self._open[live.site] = accounts.change(before, now, wanted)
            self._write(tx, entry)
        tx.put_open(self._open[live.site], now)

    def finish(self, tx: Transaction, site: str, now: float) -> None:
        """The site left: close its interval."""
        interval = self._open.pop(site, None)
        if interval is not None:
            self._write(tx, accounts.close(interval, now))
            tx.drop_open(site)

    def present(self, now: float) -> tuple[Totals, dict[str, Totals]]:
        """Totals up to `now`, open intervals included: of all, and of each site."""
        total, sites = self.totals, dict(self.by_site)
        for site, interval in self._open.items():
            entry = accounts.close(interval, now)
            if entry is not None:
                total = accounts.add(total, [entry])
                sites[site] = accounts.add(sites.get(site, Totals()), [entry])
        return total, sites

    def watts(self, live: LiveSite) -> float:
        """What the site draws now, W, without PUE: measured if it measures, else the run's model."""
        return live.watts if live.watts is not None else self._config.watts(live.region, live.phase)

    def always_on_kg(
        self,
        totals: Totals,
        started: float,
        sites: Mapping[str, str],
        readings: Mapping[str, Sequence[tuple[float, float | None]]],
    ) -> float | None:
        """kgCO2 of the same training without waiting, on the sites given as name -> region."""
        rows = []
        for region in sites.values():
            known = [(point, mci) for point, mci in readings.get(region, ()) if mci is not None]
            rows.append((self._config.watts(region, "train") * self._config.regions[region].pue, known))
        return accounts.always_on_kg(totals.train_seconds, started, rows)

    def _interval(
        self, live: LiveSite, now: float, reading: Reading | None, verdict: Verdict | None, grid_share: float
    ) -> Interval:
        return Interval(
            site=live.site,
            region=live.region,
            phase=live.phase,
            t0=now,
            watts=self.watts(live),
            method="modelled" if live.watts is None else "measured",
            pue=self._config.regions[live.region].pue,
            grid_share=grid_share,
            mci=None if reading is None else reading.mci,
            curtailed=verdict is not None and verdict.curtailed,
        )

    def _write(self, tx: Transaction, entry: Entry | None) -> None:
        if entry is not None:
            tx.add_entries([entry])
            self._count([entry])

    def _count(self, entries: Sequence[Entry]) -> None:
        self.totals = accounts.add(self.totals, entries)
        for entry in entries:
            self.by_site[entry.site] = accounts.add(self.by_site.get(entry.site, Totals()), [entry])
