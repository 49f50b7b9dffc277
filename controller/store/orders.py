"""Tables of what people order."""

from __future__ import annotations

from controller.rows import OverrideRow
from controller.store.tables import Tables


class OrderTables(Tables):
    """overrides."""

    def add_override(self, row: OverrideRow) -> None:
        self._insert("overrides", {name: getattr(row, name) for name in OverrideRow.__slots__})

    def end_overrides(self, region: str, now: float) -> None:
        """Those that are in force for the region end at `now`."""
        sql = "UPDATE overrides SET ended = ? WHERE region = ? AND ended IS NULL AND until > ?"
        self._db.execute(sql, (now, region, now))

    def standing_overrides(self, now: float) -> list[OverrideRow]:
        """Those that are in force at `now`, at most one for each region."""
        rows = self._all(
            "SELECT * FROM overrides WHERE ended IS NULL AND since <= ? AND until > ? ORDER BY id", now, now
        )
        return [OverrideRow(**{name: row[name] for name in OverrideRow.__slots__}) for row in rows]

    def overrides(self) -> list[OverrideRow]:
        """All that were ever placed, in order."""
        rows = self._all("SELECT * FROM overrides ORDER BY id")
        return [OverrideRow(**{name: row[name] for name in OverrideRow.__slots__}) for row in rows]
