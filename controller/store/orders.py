"""What people order: rows that are added and chained, never changed (`curtail.carbon.hash_chain`)."""

from __future__ import annotations

from controller.store.chained import ChainTables
from controller.store.rows import OrderRow


class OrderTables(ChainTables):
    """orders."""

    def add_order(self, row: OrderRow) -> int:
        """Its id."""
        number = self._add("order", {name: getattr(row, name) for name in OrderRow.__slots__})
        assert number is not None, "nothing is passed over here"
        return number

    def orders(self) -> list[tuple[int, OrderRow]]:
        """All that was ever ordered and how it ended, with ids, in order."""
        return [(row["id"], _order(row)) for row in self._all("SELECT * FROM orders ORDER BY id")]

    def open_orders(self) -> list[tuple[int, OrderRow]]:
        """Orders of which nobody noted an end yet, with ids; at most one for each region."""
        ended = "SELECT of_order FROM orders WHERE of_order IS NOT NULL"
        rows = self._all(f"SELECT * FROM orders WHERE of_order IS NULL AND id NOT IN ({ended}) ORDER BY id")
        return [(row["id"], _order(row)) for row in rows]


def _order(row: dict[str, object]) -> OrderRow:
    return OrderRow(**{name: row[name] for name in OrderRow.__slots__})  # type: ignore[arg-type]
