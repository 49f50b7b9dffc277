"""Table of operators' orders: append-only, and part of the hash chain (`curtail.carbon.hash_chain`)."""

from __future__ import annotations

from controller.store.chained import ChainTables
from controller.store.rows import OrderRow


class OrderTables(ChainTables):
    """Table orders."""

    def add_order(self, row: OrderRow) -> int:
        """Add an order, or the end of one. Returns: its id."""
        number = self._add("order", {name: getattr(row, name) for name in OrderRow.__slots__})
        assert number is not None, "an insert without `ignore` has a row id"
        return number

    def orders(self) -> list[tuple[int, OrderRow]]:
        """All orders and their ends, with ids, oldest first."""
        return [(row["id"], _order(row)) for row in self._all("SELECT * FROM orders ORDER BY id")]

    def open_orders(self) -> list[tuple[int, OrderRow]]:
        """Orders that have not ended, with ids; at most one per region."""
        ended = "SELECT of_order FROM orders WHERE of_order IS NOT NULL"
        rows = self._all(f"SELECT * FROM orders WHERE of_order IS NULL AND id NOT IN ({ended}) ORDER BY id")
        return [(row["id"], _order(row)) for row in rows]


def _order(row: dict[str, object]) -> OrderRow:
    return OrderRow(**{name: row[name] for name in OrderRow.__slots__})  # type: ignore[arg-type]
