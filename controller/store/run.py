"""Tables of the run as a whole: its row, its sample pool, its files and its events."""

from __future__ import annotations

import json
from typing import Any

from controller.store.rows import BlobRow, EventRow, RunRow
from controller.store.sample_pool import Pool, Range
from controller.store.tables import Tables

KEPT_KINDS = ("regime", "version", "restore")
"""Kinds of events that are never deleted."""


class RunTables(Tables):
    """Tables run, returned, blobs and events."""

    def run(self) -> RunRow | None:
        row = self._one("SELECT * FROM run")
        if row is None:
            return None
        values = {key: row[key] for key in row if key not in ("only_row", "regime_seconds")}
        return RunRow(regime_seconds=json.loads(row["regime_seconds"]), **values)

    def create_run(self, run: RunRow) -> None:
        values = {name: getattr(run, name) for name in RunRow.__slots__}
        values["regime_seconds"] = json.dumps(run.regime_seconds)
        self._insert("run", {"only_row": 1, **values})

    def set_run(self, **values: Any) -> None:
        if "regime_seconds" in values:
            values["regime_seconds"] = json.dumps(values["regime_seconds"])
        self._update("run", values, {"only_row": 1})

    def pool(self) -> Pool:
        row = self._one("SELECT cursor, sample_limit FROM run")
        assert row is not None
        parts = self._all("SELECT start, stop FROM returned ORDER BY start")
        return Pool(row["cursor"], row["sample_limit"], tuple(Range(p["start"], p["stop"]) for p in parts))

    def set_pool(self, pool: Pool) -> None:
        self._db.execute("UPDATE run SET cursor = ?", (pool.cursor,))
        self._db.execute("DELETE FROM returned")
        for part in pool.returned:
            self._insert("returned", {"start": part.start, "stop": part.stop})

    # -- files ---------------------------------------------------------------

    def put_blob(self, blob: BlobRow) -> None:
        self._insert("blobs", {name: getattr(blob, name) for name in BlobRow.__slots__}, replace=True)

    def blob(self, sha256: str) -> BlobRow | None:
        row = self._one("SELECT * FROM blobs WHERE sha256 = ?", sha256)
        return None if row is None else BlobRow(**row)

    def blobs_of_kind(self, kind: str) -> list[BlobRow]:
        return [BlobRow(**row) for row in self._all("SELECT * FROM blobs WHERE kind = ?", kind)]

    def drop_blob(self, sha256: str) -> None:
        self._db.execute("DELETE FROM blobs WHERE sha256 = ?", (sha256,))

    # -- events --------------------------------------------------------------

    def add_event(self, at: float, at_wall: float, kind: str, text: str) -> None:
        self._insert("events", {"at": at, "at_wall": at_wall, "kind": kind, "text": text})

    def last_events(self, count: int) -> list[EventRow]:
        rows = self._all("SELECT id, at, kind, text FROM events ORDER BY id DESC LIMIT ?", count)
        return [EventRow(**row) for row in reversed(rows)]

    def prune_events(self, keep: int, step: int) -> int:
        """Delete at most `step` of the oldest events beyond the newest `keep`. Returns: their number.

        Events that reports need stay (`KEPT_KINDS`); their number grows with the rounds only.
        """
        marks = ", ".join("?" * len(KEPT_KINDS))
        oldest = f"id <= (SELECT MAX(id) FROM events) - ? AND kind NOT IN ({marks})"
        which = f"SELECT id FROM events WHERE {oldest} ORDER BY id LIMIT ?"
        return int(self._db.execute(f"DELETE FROM events WHERE id IN ({which})", (keep, *KEPT_KINDS, step)).rowcount)
