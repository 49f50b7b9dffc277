"""The hash chain over the ledger's tables: records are added with their hash, and only added."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controller.store.tables import Tables
from curtail.carbon.hash_chain import Link, following, genesis
from curtail.carbon.ledger_columns import TABLES, record


class ChainTables(Tables):
    """chain, and the rows of the tables it goes over."""

    def chain_head(self) -> tuple[int, str]:
        """How many records there are, and the hash of the last one; of none: what a first one builds on."""
        row = self._one("SELECT seq, hash FROM chain ORDER BY seq DESC LIMIT 1")
        return (0, genesis(self._run_id())) if row is None else (int(row["seq"]), str(row["hash"]))

    def links(self) -> Iterator[Link]:
        """The chain with its records, in order; a record that is gone is None."""
        # One row at a time: a year of a large run is too much to hold at once.
        for row in self._db.execute("SELECT seq, kind, record, hash FROM chain ORDER BY seq"):
            seq, kind, number, digest = row
            found = self._record(kind, number) if kind in TABLES else None
            yield Link(seq, kind, number, None if found is None else record(kind, found), digest)

    def unchained(self) -> str | None:
        """A record that no link of the chain names, in words; None if there is none."""
        due = self._due()
        for kind, table in TABLES.items():
            if kind in due:
                continue
            row = self._one(
                f"SELECT t.id AS id FROM {table} AS t LEFT JOIN chain AS c ON c.kind = ? AND c.record = t.id"
                " WHERE c.seq IS NULL ORDER BY t.id LIMIT 1",
                kind,
            )
            if row is not None:
                return f"{kind} {row['id']}"
        return None

    def begin_chain(self) -> int:
        """Chain what an older curtail wrote and did not chain; how many records that were.

        That is all where there is no chain yet, and else the kinds that a migration named; once.
        """
        before = self.chain_head()[0]
        kinds = self._due() if before else set(TABLES)
        for kind, table in TABLES.items():
            for row in self._all(f"SELECT id FROM {table} ORDER BY id") if kind in kinds else ():
                self._link(kind, row["id"])
        self._db.execute("DELETE FROM chain_due")
        return self.chain_head()[0] - before

    def _due(self) -> set[str]:
        """Kinds of which the next start of the controller chains the rows that are there."""
        return {row["kind"] for row in self._all("SELECT kind FROM chain_due")}

    def _add(self, kind: str, values: dict[str, Any], ignore: bool = False) -> int | None:
        """Insert a record and chain it; its id, None if it was there already and is to be passed over."""
        verb = "INSERT OR IGNORE" if ignore else "INSERT"
        marks = ", ".join("?" * len(values))
        sql = f"{verb} INTO {TABLES[kind]} ({', '.join(values)}) VALUES ({marks})"
        done = self._db.execute(sql, tuple(values.values()))
        if done.rowcount < 1:
            return None
        number = done.lastrowid
        assert number is not None, "an insert has a row"
        self._link(kind, number)
        return number

    def _link(self, kind: str, number: int) -> None:
        found = self._record(kind, number)
        assert found is not None, "a record is there before it is chained"
        count, before = self.chain_head()
        # what the store gives back is hashed, so that reading it later gives the same
        digest = following(before, count + 1, kind, record(kind, found))
        self._insert("chain", {"seq": count + 1, "kind": kind, "record": number, "hash": digest})

    def _record(self, kind: str, number: int) -> dict[str, Any] | None:
        return self._one(f"SELECT * FROM {TABLES[kind]} WHERE id = ?", number)

    def _run_id(self) -> str:
        row = self._one("SELECT id FROM run")
        return "" if row is None else str(row["id"])
