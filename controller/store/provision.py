"""Tables of provisioned machines, of the time for which they existed, and of operators' orders for sites."""

from __future__ import annotations

from controller.store.rows import ProvisionedRow, SpanRow
from controller.store.tables import Tables


class ProvisionTables(Tables):
    """provisioned, provision_spans, site_orders."""

    def provisioned(self) -> list[ProvisionedRow]:
        """All machines that are not ABSENT."""
        return [ProvisionedRow(**row) for row in self._all("SELECT * FROM provisioned ORDER BY site, machine")]

    def put_provisioned(self, row: ProvisionedRow) -> None:
        self._insert("provisioned", {name: getattr(row, name) for name in ProvisionedRow.__slots__}, replace=True)

    def drop_provisioned(self, site: str, machine: int) -> None:
        self._db.execute("DELETE FROM provisioned WHERE site = ? AND machine = ?", (site, machine))

    def add_span(self, row: SpanRow) -> int:
        """Add a machine's span. Returns: its id."""
        self._insert("provision_spans", {name: getattr(row, name) for name in SpanRow.__slots__})
        found = self._one("SELECT last_insert_rowid() AS id")
        assert found is not None
        return int(found["id"])

    def set_span(self, number: int, **values: float | None) -> None:
        self._update("provision_spans", dict(values), {"id": number})

    def spans_since(self, wall: float) -> list[SpanRow]:
        """Spans that have not ended before `wall`."""
        rows = self._all("SELECT * FROM provision_spans WHERE ended_wall IS NULL OR ended_wall > ? ORDER BY id", wall)
        return [SpanRow(**{name: row[name] for name in SpanRow.__slots__}) for row in rows]

    def boots(self, site: str, count: int) -> list[float]:
        """The latest times from request to join at a site, newest first."""
        sql = "SELECT boot_s FROM provision_spans WHERE site = ? AND boot_s IS NOT NULL ORDER BY id DESC LIMIT ?"
        return [row["boot_s"] for row in self._all(sql, site, count)]

    def site_orders(self) -> dict[str, tuple[str, str]]:
        """Site -> the order in force (up or down) and who gave it."""
        return {row["site"]: (row["action"], row["by_whom"]) for row in self._all("SELECT * FROM site_orders")}

    def put_site_order(self, site: str, action: str, by_whom: str, wall: float) -> None:
        values = {"site": site, "action": action, "by_whom": by_whom, "at_wall": wall}
        self._insert("site_orders", values, replace=True)

    def drop_site_order(self, site: str) -> None:
        self._db.execute("DELETE FROM site_orders WHERE site = ?", (site,))
