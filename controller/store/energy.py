"""Tables of readings, the energy ledger and its settlements (append-only), and of microgrids."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from controller.store.chained import ChainTables
from controller.store.rows import SettledRow, SwitchedRow
from curtail.carbon.accounting import Basis, Detail, Draw, Entry, Grown, Interval
from curtail.grid.reading import JOULES_PER_KWH

_PLAIN = tuple(name for name in Entry.__slots__ if name not in ("curtailed", "detail"))
_DETAIL = ("machine_kwh", "gpu_kwh", "host_kwh", "coverage", "tokens", "steps", "network_bytes")
_OPEN = ("site", "region", "phase", "t0", "watts", "method", "pue", "grid_share", "mci")
_BASIS = ("mci_raw", "source", "point_time", "threshold", "reason")


class EnergyTables(ChainTables):
    """readings, energy, energy_open, settled."""

    def add_reading(self, region: str, point_time: float, mci: float | None, source: str, reason: str) -> None:
        row = {"region": region, "point_time": point_time, "mci": mci, "source": source, "reason": reason}
        self._add("reading", row, ignore=True)

    def readings(self, region: str) -> list[tuple[float, float | None]]:
        rows = self._all("SELECT point_time, mci FROM readings WHERE region = ? ORDER BY point_time", region)
        return [(row["point_time"], row["mci"]) for row in rows]

    def last_readings(self, region: str, count: int) -> list[tuple[float, float | None]]:
        """The latest `count` readings, ascending."""
        sql = "SELECT point_time, mci FROM readings WHERE region = ? ORDER BY point_time DESC LIMIT ?"
        return [(row["point_time"], row["mci"]) for row in reversed(self._all(sql, region, count))]

    def known_readings(self, region: str, after: float) -> Iterator[tuple[float, float]]:
        """The known readings for times after `after`, ascending; read one at a time."""
        sql = "SELECT point_time, mci FROM readings WHERE region = ? AND point_time > ? AND mci IS NOT NULL"
        yield from self._db.execute(f"{sql} ORDER BY point_time", (region, after))

    def last_noted(self) -> int:
        """Id of the reading that was added last, whatever its time; 0 if there is none."""
        row = self._one("SELECT COALESCE(MAX(id), 0) AS last FROM readings")
        assert row is not None
        return int(row["last"])

    def noted_after(self, number: int) -> Iterator[tuple[int, str, float]]:
        """Id, region and time of the known readings that were added after the one with id `number`."""
        sql = "SELECT id, region, point_time FROM readings WHERE id > ? AND mci IS NOT NULL ORDER BY id"
        yield from self._db.execute(sql, (number,))

    # -- closed rows -----------------------------------------------------------

    def add_entries(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            values: dict[str, Any] = {name: getattr(entry, name) for name in _PLAIN}
            values["curtailed"] = int(entry.curtailed)
            if entry.detail is not None:
                values |= {name: getattr(entry.detail, name) for name in _DETAIL}
                basis = entry.detail.basis
                values |= {name: getattr(basis, name) for name in _BASIS}
                values["flags"] = ",".join(basis.flags)
            self._add("energy", values)

    def entries(self) -> list[Entry]:
        """The rows of the ledger, in the order in which they were written."""
        return [entry for _, entry in self.entries_after(0)]

    def numbered_entries(self, since: float = -math.inf) -> list[tuple[int, Entry]]:
        """The rows that ended after `since`, with their ids."""
        if since == -math.inf:
            return list(self.entries_after(0))
        rows = self._all("SELECT * FROM energy WHERE t1 > ? ORDER BY +id", since)  # +: search by t1, then sort
        return [(row["id"], _entry(row)) for row in rows]

    def entries_after(self, number: int) -> Iterator[tuple[int, Entry]]:
        """The rows written after row `number` (0: all), with their ids; read one at a time."""
        rows = self._each("SELECT * FROM energy WHERE id > ? ORDER BY id", number)
        return ((row["id"], _entry(row)) for row in rows)

    # -- open intervals --------------------------------------------------------

    def open_intervals(self) -> list[tuple[Interval, float]]:
        """The open intervals, each with the time up to which it is confirmed."""
        return [(interval, seen) for interval, seen, _ in self.open_with_marks()]

    def open_with_marks(self) -> list[tuple[Interval, float, dict[str, list[int]]]]:
        """`open_intervals`, plus the step and token counts of the site's job (`controller.ledger.metering`).

        A row is written only if more than the time has changed. Every step books all sites, so each
        interval is confirmed up to the last step.
        """
        run = self._one("SELECT clock FROM run") or {"clock": -math.inf}
        rows = self._all("SELECT * FROM energy_open ORDER BY site")
        for row in rows:
            row["seen"] = max(row["seen"], run["clock"])
        return [(*_interval(row), _more(row).get("marks", {})) for row in rows]

    def put_open(self, interval: Interval, seen: float, marks: dict[str, list[int]] | None = None) -> None:
        values: dict[str, Any] = {name: getattr(interval, name) for name in _OPEN}
        parts = {name: getattr(interval, name) for name in ("basis", "draw", "grown")}
        more = {name: _flat(part) for name, part in parts.items() if part is not None}
        values |= {"curtailed": int(interval.curtailed), "seen": seen}
        values["more"] = json.dumps({**more, "marks": marks or {}}, separators=(",", ":"))
        self._insert("energy_open", values, replace=True)

    def drop_open(self, site: str) -> None:
        self._db.execute("DELETE FROM energy_open WHERE site = ?", (site,))

    # -- settlements -----------------------------------------------------------

    def add_settled(self, row: SettledRow) -> None:
        self._add("settlement", {name: getattr(row, name) for name in SettledRow.__slots__})

    def settled(self, basis: str, first: int = 0) -> dict[int, SettledRow]:
        """The newest settlement of each row of the ledger that has one, by the row's id.

        Args: first: id of the first row to include.
        """
        names = ", ".join(SettledRow.__slots__)
        sql = f"SELECT {names} FROM settled WHERE entry >= ? AND basis = ? ORDER BY entry, revision"
        rows = self._each(sql, first, basis)
        return {row["entry"]: SettledRow(**row) for row in rows}

    # -- microgrids ----------------------------------------------------------

    def stored(self) -> dict[str, float]:
        """Energy in each region's battery at the last step, in Wh."""
        return {row["region"]: row["stored_wh"] for row in self._all("SELECT region, stored_wh FROM batteries")}

    def put_stored(self, region: str, stored_wh: float, at: float) -> None:
        self._insert("batteries", {"region": region, "stored_wh": stored_wh, "at": at}, replace=True)

    def switched(self) -> list[SwitchedRow]:
        """Sites whose machines are switched off or being switched."""
        return [SwitchedRow(**row) for row in self._all("SELECT * FROM switched ORDER BY site")]

    def put_switched(self, row: SwitchedRow) -> None:
        self._insert("switched", {name: getattr(row, name) for name in SwitchedRow.__slots__}, replace=True)

    def drop_switched(self, site: str) -> None:
        self._db.execute("DELETE FROM switched WHERE site = ?", (site,))


def _flat(part: Basis | Draw | Grown) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.__slots__}


def _more(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row["more"]) if row["more"] else {}
    return found


def _interval(row: dict[str, Any]) -> tuple[Interval, float]:
    more = _more(row)
    basis = more.get("basis")
    if basis is not None:
        basis = Basis(**{**basis, "flags": tuple(basis["flags"])})
    interval = Interval(
        **{name: row[name] for name in _OPEN},
        curtailed=bool(row["curtailed"]),
        basis=basis,
        draw=Draw(**more["draw"]) if "draw" in more else None,
        grown=Grown(**more["grown"]) if "grown" in more else None,
    )
    return interval, row["seen"]


def _entry(row: dict[str, Any]) -> Entry:
    machine_kwh = row["machine_kwh"]
    detail = Detail(
        # Rows from before these columns existed have only the mean power.
        machine_kwh=row["watts"] * (row["t1"] - row["t0"]) / JOULES_PER_KWH if machine_kwh is None else machine_kwh,
        gpu_kwh=row["gpu_kwh"],
        host_kwh=row["host_kwh"],
        coverage=row["coverage"] or 0.0,
        tokens=row["tokens"] or 0,
        steps=row["steps"] or 0,
        network_bytes=row["network_bytes"] or 0,
        basis=Basis(
            row["mci"] if row["mci_raw"] is None and machine_kwh is None else row["mci_raw"],
            row["source"] or "",
            row["point_time"],
            row["threshold"],
            tuple(flag for flag in (row["flags"] or "").split(",") if flag),
            row["reason"] or "",
        ),
    )
    return Entry(**{name: row[name] for name in _PLAIN}, curtailed=bool(row["curtailed"]), detail=detail)
