"""Tables of readings and of the energy ledger."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controller.accounts import Entry, Interval
from controller.store.tables import Tables


class EnergyTables(Tables):
    """readings, energy, energy_open."""

    def add_reading(self, region: str, point_time: float, mci: float | None, source: str, reason: str) -> None:
        row = {"region": region, "point_time": point_time, "mci": mci, "source": source, "reason": reason}
        self._insert("readings", row, ignore=True)

    def readings(self, region: str) -> list[tuple[float, float | None]]:
        rows = self._all("SELECT point_time, mci FROM readings WHERE region = ? ORDER BY point_time", region)
        return [(row["point_time"], row["mci"]) for row in rows]

    def add_entries(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            values = {name: getattr(entry, name) for name in Entry.__slots__}
            self._insert("energy", {**values, "curtailed": int(entry.curtailed)})

    def entries(self) -> list[Entry]:
        return [_entry(row) for row in self._all("SELECT * FROM energy ORDER BY id")]

    def open_intervals(self) -> list[tuple[Interval, float]]:
        """Intervals still growing at the last step, each with the time up to which it is certain."""
        rows = self._all("SELECT * FROM energy_open ORDER BY site")
        return [(_interval(row), row["seen"]) for row in rows]

    def put_open(self, interval: Interval, seen: float) -> None:
        values = {name: getattr(interval, name) for name in Interval.__slots__}
        self._insert("energy_open", {**values, "curtailed": int(interval.curtailed), "seen": seen}, replace=True)

    def drop_open(self, site: str) -> None:
        self._db.execute("DELETE FROM energy_open WHERE site = ?", (site,))


def _interval(row: dict[str, Any]) -> Interval:
    return Interval(
        **{name: row[name] for name in Interval.__slots__ if name != "curtailed"}, curtailed=bool(row["curtailed"])
    )


def _entry(row: dict[str, Any]) -> Entry:
    return Entry(
        **{name: row[name] for name in Entry.__slots__ if name != "curtailed"}, curtailed=bool(row["curtailed"])
    )
