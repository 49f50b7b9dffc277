"""Columns of the ledger's records: names in the store and in exports, and types.

A record is an energy row, a reading it is based on, a settlement, or an operator's
order. Export names include the unit and are stable, because the hash chain covers
them (`curtail.carbon.hash_chain`). A column added later is omitted from rows that have
no value in it, so that the hashes of older rows do not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from curtail.errors import DataError

Value = str | int | float
"""Type of a value in a record."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    stored: str  # in the store
    name: str  # in an export
    kind: type  # str, int or float
    moment: str = ""  # export column that repeats this time as ISO 8601 in UTC


def _columns(*rows: tuple[str, str, type] | tuple[str, str, type, str]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


ENERGY = _columns(
    ("id", "entry", int),
    ("site", "site", str),
    ("region", "region", str),
    ("phase", "state", str),
    ("t0", "start_s", float, "start"),
    ("t1", "end_s", float, "end"),
    ("method", "method", str),
    ("coverage", "coverage_share", float),
    ("watts", "machine_mean_w", float),
    ("machine_kwh", "machine_kwh", float),
    ("gpu_kwh", "gpu_kwh", float),
    ("host_kwh", "host_kwh", float),
    ("pue", "pue", float),
    ("grid_share", "grid_share", float),
    ("kwh", "grid_kwh", float),
    ("mci", "mci_g_per_kwh", float),
    ("mci_raw", "mci_raw_g_per_kwh", float),
    ("source", "source", str),
    ("point_time", "point_s", float, "point"),
    ("threshold", "threshold_g_per_kwh", float),
    ("curtailed", "in_window", int),
    ("kg", "consequential_kg", float),
    ("tokens", "tokens", int),
    ("steps", "steps", int),
    ("network_bytes", "network_bytes", int),
    ("flags", "flags", str),
    ("reason", "reason", str),
)

READING = _columns(
    ("id", "reading", int),
    ("region", "region", str),
    ("point_time", "point_s", float, "point"),
    ("mci", "mci_g_per_kwh", float),
    ("source", "source", str),
    ("reason", "reason", str),
)

SETTLED = _columns(
    ("id", "settlement", int),
    ("entry", "entry", int),
    ("basis", "basis", str),
    ("revision", "revision", int),
    ("mci", "mci_g_per_kwh", float),
    ("kg", "settled_kg", float),
    ("source", "source", str),
    ("model", "model", str),
    ("asked", "asked_s", float, "asked"),
)

ORDER = _columns(
    ("id", "order", int),
    ("of_order", "ends_order", int),
    ("act", "action", str),
    ("region", "region", str),
    ("at", "at_s", float, "at"),
    ("until", "until_s", float, "until"),
    ("by_whom", "by", str),
    ("reason", "reason", str),
    ("wall", "ordered_s", float, "ordered"),
)

TABLES: Mapping[str, str] = MappingProxyType(
    {"energy": "energy", "reading": "readings", "settlement": "settled", "order": "orders"}
)
"""Kind of record -> its table in the store. Each table has an INTEGER PRIMARY KEY `id`."""

COLUMNS: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {"energy": ENERGY, "reading": READING, "settlement": SETTLED, "order": ORDER}
)
"""Kind of record -> its columns."""

EDITIONS: tuple[tuple[str, ...], ...] = (tuple(COLUMNS), ("energy", "reading", "settlement"))
"""Kinds whose columns a CSV export has: first the current set, then those of older files."""


def record(kind: str, row: Mapping[str, Any]) -> dict[str, Value]:
    """Convert a stored row to a record under export names, without NULL and empty columns.

    Raises: DataError: the row lacks a column; damage to the store's file can change a column's name.
    """
    try:
        return {c.name: row[c.stored] for c in COLUMNS[kind] if row[c.stored] is not None and row[c.stored] != ""}
    except KeyError as missing:
        raise DataError(
            f"the table {TABLES[kind]} of the store has no column {missing}; the store is damaged",
            "leave the folder unchanged and restore a backup: curtail controller restore BACKUP --home NEW",
        ) from None


def header(kinds: tuple[str, ...] = EDITIONS[0]) -> list[str]:
    """The column names of a CSV export, in order; kinds share columns of the same name."""
    names = ["seq", "record"]
    for kind in kinds:
        for column in COLUMNS[kind]:
            for name in (column.moment, column.name):
                if name and name not in names:
                    names.append(name)
    return [*names, "hash"]
