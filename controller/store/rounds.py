"""Tables of versions, rounds, contributions and kept samples."""

from __future__ import annotations

from typing import Any

from controller.store.rows import KeptRow, MemberRow, RoundRow, VersionRow
from controller.store.tables import Tables


class RoundTables(Tables):
    """Tables versions, rounds, members and kept."""

    def add_version(self, version: VersionRow) -> None:
        self._insert("versions", {name: getattr(version, name) for name in VersionRow.__slots__})

    def version(self, number: int) -> VersionRow | None:
        row = self._one("SELECT * FROM versions WHERE version = ?", number)
        return None if row is None else VersionRow(**row)

    def latest_version(self) -> VersionRow:
        row = self._one("SELECT * FROM versions ORDER BY version DESC LIMIT 1")
        assert row is not None, "a run always has version 0"
        return VersionRow(**row)

    def kept_versions(self) -> list[VersionRow]:
        return [VersionRow(**row) for row in self._all("SELECT * FROM versions WHERE kept = 1 ORDER BY version")]

    def set_version(self, number: int, **values: Any) -> None:
        self._update("versions", values, {"version": number})

    def add_round(self, row: RoundRow) -> None:
        self._insert("rounds", {name: getattr(row, name) for name in RoundRow.__slots__})

    def live_round(self) -> RoundRow | None:
        """The round that is open or being merged; there is at most one."""
        # It is always the newest round. A search by state would scan all rounds at every step while there is none.
        row = self._one("SELECT * FROM rounds ORDER BY round DESC LIMIT 1")
        return RoundRow(**row) if row is not None and row["state"] in ("OPEN", "MERGING") else None

    def round(self, number: int) -> RoundRow | None:
        row = self._one("SELECT * FROM rounds WHERE round = ?", number)
        return None if row is None else RoundRow(**row)

    def next_round(self) -> int:
        row = self._one("SELECT COALESCE(MAX(round), 0) + 1 AS next FROM rounds")
        assert row is not None
        return int(row["next"])

    def merged_rounds(self) -> int:
        row = self._one("SELECT COUNT(*) AS n FROM rounds WHERE state = 'MERGED'")
        assert row is not None
        return int(row["n"])

    def set_round(self, number: int, **values: Any) -> None:
        self._update("rounds", values, {"round": number})

    def add_member(self, row: MemberRow) -> None:
        self._insert("members", {name: getattr(row, name) for name in MemberRow.__slots__})

    def members(self, round_number: int) -> list[MemberRow]:
        rows = self._all("SELECT * FROM members WHERE round = ? ORDER BY site", round_number)
        return [MemberRow(**row) for row in rows]

    def member(self, round_number: int, site: str) -> MemberRow | None:
        row = self._one("SELECT * FROM members WHERE round = ? AND site = ?", round_number, site)
        return None if row is None else MemberRow(**row)

    def set_member(self, round_number: int, site: str, **values: Any) -> None:
        self._update("members", values, {"round": round_number, "site": site})

    def waiting(self, state: str) -> list[MemberRow]:
        """Members of all rounds in `state` (LATE or COMMITTED), oldest first."""
        assert state in ("LATE", "COMMITTED")
        # SQLite uses the partial index only if the state is a literal in the statement.
        return [MemberRow(**row) for row in self._all(f"SELECT * FROM members WHERE state = '{state}' ORDER BY round")]

    def last_part(self, site: str, before: int) -> MemberRow | None:
        """The site's member row in the newest round before round `before`."""
        row = self._one("SELECT * FROM members WHERE site = ? AND round < ? ORDER BY round DESC LIMIT 1", site, before)
        return None if row is None else MemberRow(**row)

    def newest_part(self, site: str) -> MemberRow | None:
        """The site's member row in its newest round."""
        row = self._one("SELECT * FROM members WHERE site = ? ORDER BY round DESC LIMIT 1", site)
        return None if row is None else MemberRow(**row)

    def lateness(self, kind: str, count: int) -> list[float]:
        """By how many seconds the latest `count` contributions to rounds of `kind` missed the deadline."""
        rows = self._all(
            "SELECT MAX(0.0, m.arrived_wall - r.deadline_wall) AS late FROM rounds AS r JOIN members AS m"
            " ON m.round = r.round WHERE r.kind = ? AND m.arrived_wall IS NOT NULL ORDER BY r.round DESC LIMIT ?",
            kind,
            count,
        )
        return [row["late"] for row in rows]

    def used_lately(self, site: str, count: int) -> int:
        """The most samples in one of the site's latest `count` contributions; 0 if there are none."""
        row = self._one(
            "SELECT COALESCE(MAX(samples), 0) AS most FROM"
            " (SELECT samples FROM members WHERE site = ? AND receipt != '' ORDER BY round DESC LIMIT ?)",
            site,
            count,
        )
        assert row is not None
        return int(row["most"])

    def recent_speeds(self, count: int) -> list[tuple[int, float]]:
        """Tokens and wall seconds of training of the latest `count` contributions that arrived."""
        rows = self._all(
            "SELECT tokens, seconds FROM members WHERE receipt != '' AND seconds > 0 ORDER BY round DESC LIMIT ?", count
        )
        return [(row["tokens"], row["seconds"]) for row in rows]

    def recent_norms(self, count: int) -> list[tuple[float, int]]:
        """Norm per square root of tokens, and tokens, of the latest `count` merged contributions, oldest first."""
        rows = self._all("SELECT norm, tokens FROM members WHERE norm IS NOT NULL ORDER BY round DESC LIMIT ?", count)
        return [(row["norm"], row["tokens"]) for row in reversed(rows)]

    def refused_in_a_row(self) -> int:
        """Number of contributions that were refused since the latest merge."""
        row = self._one(
            "SELECT COUNT(*) AS n FROM members WHERE state = 'REFUSED' AND round >"
            " COALESCE((SELECT round FROM rounds WHERE state = 'MERGED' ORDER BY round DESC LIMIT 1), 0)"
        )
        assert row is not None
        return int(row["n"])

    def kept(self, site: str) -> KeptRow | None:
        """The samples that the site's job keeps after its commit."""
        row = self._one("SELECT * FROM kept WHERE site = ?", site)
        return None if row is None else KeptRow(**row)

    def all_kept(self) -> list[KeptRow]:
        return [KeptRow(**row) for row in self._all("SELECT * FROM kept ORDER BY site")]

    def put_kept(self, row: KeptRow) -> None:
        self._insert("kept", {name: getattr(row, name) for name in KeptRow.__slots__})

    def drop_kept(self, site: str) -> None:
        self._db.execute("DELETE FROM kept WHERE site = ?", (site,))
