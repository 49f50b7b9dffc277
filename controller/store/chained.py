"""The hash chain over the ledger's tables, which are append-only: each record is added with its hash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from controller.store.tables import Tables
from curtail.carbon.hash_chain import ChainRecord, following, genesis
from curtail.carbon.ledger_columns import TABLES, record


class ChainTables(Tables):
    """Table chain, and appending to the tables that it covers."""

    def chain_head(self) -> tuple[int, str]:
        """The number of records and the hash of the last one; for an empty chain the hash it starts from."""
        row = self._one("SELECT seq, hash FROM chain ORDER BY seq DESC LIMIT 1")
        return (0, genesis(self._run_id())) if row is None else (int(row["seq"]), str(row["hash"]))

    def links(self) -> Iterator[ChainRecord]:
        """The links of the chain with their records, in order; a missing record is None."""
        # One row at a time, because a year of a large run does not fit into memory.
        for row in self._db.execute("SELECT seq, kind, record, hash FROM chain ORDER BY seq"):
            seq, kind, number, digest = row
            found = self._record(kind, number) if kind in TABLES else None
            yield ChainRecord(seq, kind, number, None if found is None else record(kind, found), digest)

    def unchained(self) -> str | None:
        """A record that is not in the chain, as "kind id"; None if there is none."""
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
        """Add records of an older curtail to the chain, once. Returns: their number.

        Without a chain these are all records, else those of the kinds that a migration named.
        """
        before = self.chain_head()[0]
        kinds = self._due() if before else set(TABLES)
        for kind, table in TABLES.items():
            for row in self._all(f"SELECT id FROM {table} ORDER BY id") if kind in kinds else ():
                self._link(kind, row["id"])
        self._db.execute("DELETE FROM chain_due")
        return self.chain_head()[0] - before

    def _due(self) -> set[str]:
        """The kinds whose existing rows the next start of the controller adds to the chain."""
        return {row["kind"] for row in self._all("SELECT kind FROM chain_due")}

    def _add(self, kind: str, values: dict[str, Any], ignore: bool = False) -> int | None:
        """Insert a record and add it to the chain. Returns: its id, or None if `ignore` is set and it exists."""
        verb = "INSERT OR IGNORE" if ignore else "INSERT"
        marks = ", ".join("?" * len(values))
        sql = f"{verb} INTO {TABLES[kind]} ({', '.join(values)}) VALUES ({marks})"
        done = self._db.execute(sql, tuple(values.values()))
        if done.rowcount < 1:
            return None
        number = done.lastrowid
        assert number is not None, "an insert has a row id"
        self._link(kind, number)
        return number

    def _link(self, kind: str, number: int) -> None:
        found = self._record(kind, number)
        assert found is not None, "a record exists before it is chained"
        count, before = self.chain_head()
        # The row is read back and hashed as the store returns it, so that a later check sees the same values.
        digest = following(before, count + 1, kind, record(kind, found))
        self._insert("chain", {"seq": count + 1, "kind": kind, "record": number, "hash": digest})

    def _record(self, kind: str, number: int) -> dict[str, Any] | None:
        return self._one(f"SELECT * FROM {TABLES[kind]} WHERE id = ?", number)

    def _run_id(self) -> str:
        row = self._one("SELECT id FROM run")
        return "" if row is None else str(row["id"])
