"""The columns of the ledger's records: how they are called in the store, in an export, and of what type.

A record is a row of the energy ledger, a reading it rests on, a settlement, or what a
person ordered. The names of the export carry the unit; they are stable, and the hash chain is made over
them (`curtail.carbon.hash_chain`). A column that is added later is left out where a row has
no value in it, so that the hashes of older rows stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from curtail.errors import DataError

Value = str | int | float
"""What a record may hold in a column."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    stored: str  # in the store
    name: str  # in an export
    kind: type  # str, int or float
    moment: str = ""  # the column of the export that repeats it as ISO 8601 in UTC


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
"""Kind of record -> its table in the store. Each of them has an INTEGER PRIMARY KEY `id`."""

COLUMNS: Mapping[str, tuple[Column, ...]] = MappingProxyType(
    {"energy": ENERGY, "reading": READING, "settlement": SETTLED, "order": ORDER}
)
"""Kind of record -> its columns."""

EDITIONS: tuple[tuple[str, ...], ...] = (tuple(COLUMNS), ("energy", "reading", "settlement"))
"""The kinds whose columns an export as CSV has: that of today, and those of files from before."""


def record(kind: str, row: Mapping[str, Any]) -> dict[str, Value]:
    """A stored row as the chain and an export know it: columns without a value, and empty texts, are left out.

    Raises: DataError: the row lacks a column; damage to a store's file can change the name of one.
    """
    try:
        return {c.name: row[c.stored] for c in COLUMNS[kind] if row[c.stored] is not None and row[c.stored] != ""}
    except KeyError as missing:
        raise DataError(
            f"the table {TABLES[kind]} of the store has no column {missing}; the store is damaged",
            "keep the folder as it is, and restore a backup: curtail controller restore BACKUP --home NEW",
        ) from None


def header(kinds: tuple[str, ...] = EDITIONS[0]) -> list[str]:
    """The names of all columns of an export as CSV, in order; kinds share the columns that have one name."""
    names = ["seq", "record"]
    for kind in kinds:
        for column in COLUMNS[kind]:
            for name in (column.moment, column.name):
                if name and name not in names:
                    names.append(name)
    return [*names, "hash"]
