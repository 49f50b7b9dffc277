"""Base class of the groups of tables: a connection and helpers for common SQL statements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlite_utils import Database


class Tables:
    """Reads and writes rows as dictionaries; valid only inside one transaction."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def _one(self, sql: str, *values: Any) -> dict[str, Any] | None:
        return next(iter(self._all(sql, *values)), None)

    def _all(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return list(self._each(sql, *values))

    def _each(self, sql: str, *values: Any) -> Iterator[dict[str, Any]]:
        """Read rows one at a time, for large tables. The table must not be written to meanwhile."""
        found = self._db.execute(sql, values)
        names = [column[0] for column in found.description]
        return (dict(zip(names, row, strict=True)) for row in found)

    def _insert(self, table: str, values: dict[str, Any], replace: bool = False, ignore: bool = False) -> None:
        verb = "INSERT OR REPLACE" if replace else "INSERT OR IGNORE" if ignore else "INSERT"
        marks = ", ".join("?" * len(values))
        self._db.execute(f"{verb} INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))

    def _update(self, table: str, values: dict[str, Any], where: dict[str, Any]) -> None:
        sets = ", ".join(f"{name} = ?" for name in values)
        keys = " AND ".join(f"{name} = ?" for name in where)
        self._db.execute(f"UPDATE {table} SET {sets} WHERE {keys}", (*values.values(), *where.values()))
