"""Checks the invariants of the data ledger with SQL; each has a name and reports its first violation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controller.store.rounds import RoundTables


class DataLedger(RoundTables):
    """Checks of the tables run, rounds, members, versions, sites, kept, returned and blobs."""

    def ledger(self) -> list[tuple[str, str | None]]:
        """The name of each invariant with its first violation, or None."""
        run = self._one("SELECT tokens, cursor, sample_limit, sequence_len FROM run")
        return [] if run is None else [(name, check(self, run)) for name, check in _INVARIANTS]

    def ledger_problems(self) -> list[str]:
        """Violations of the data ledger's invariants; empty if there are none."""
        return [problem for _, problem in self.ledger() if problem is not None]

    def _every_sample_has_one_fate(self, run: dict[str, Any]) -> str | None:
        """Merged, committed, leased, kept and free samples together are exactly all samples below the cursor."""
        at, before = 0, "nobody"
        for row in self._all(_FATES):
            if row["a"] < at:
                return f"samples {row['a']}..{min(at, row['b'])} are {row['what']} and {before} at once"
            if row["a"] > at:
                return f"samples {at}..{row['a']} were handed out and are unaccounted for"
            at, before = row["b"], row["what"]
        if at != run["cursor"]:
            return f"the samples of all sites end at {at}, but {run['cursor']} were handed out"
        return None

    def _merged_samples_make_the_tokens(self, run: dict[str, Any]) -> str | None:
        row = self._one(
            "SELECT COALESCE(SUM(tokens), 0) AS t, COALESCE(SUM(samples), 0) AS s FROM members WHERE state = 'MERGED'"
        )
        assert row is not None
        if row["t"] != run["tokens"]:
            return f"the merged contributions have {row['t']} tokens, but the run has {run['tokens']}"
        if row["s"] * run["sequence_len"] != row["t"]:
            return f"{row['s']} samples of {run['sequence_len']} tokens are not {row['t']} tokens"
        if row["s"] > run["sample_limit"] or run["cursor"] > run["sample_limit"]:
            return f"the run's budget is {run['sample_limit']} samples, but more were handed out"
        return None

    def _versions_hold_what_was_merged(self, run: dict[str, Any]) -> str | None:
        row = self._one(
            "SELECT v.version, v.tokens, v.tokens - LAG(v.tokens, 1, 0) OVER (ORDER BY v.version) AS grown,"
            " v.version - LAG(v.version, 1, -1) OVER (ORDER BY v.version) AS gap, COALESCE(m.tokens, 0) AS merged"
            " FROM versions AS v LEFT JOIN (SELECT version, SUM(tokens) AS tokens FROM members"
            " WHERE state = 'MERGED' GROUP BY version) AS m ON m.version = v.version"
            " ORDER BY grown = merged AND gap = 1, v.version LIMIT 1"
        )
        if row is None:
            return "there is no version"
        if row["gap"] != 1:
            return f"version {row['version'] - 1} is missing"
        if row["grown"] != row["merged"]:
            return f"version {row['version']} grew by {row['grown']} tokens, but {row['merged']} were merged into it"
        latest = self.latest_version()
        if latest.tokens != run["tokens"]:
            return f"the latest version has {latest.tokens} tokens, but the run has {run['tokens']}"
        return None

    def _sites_hold_what_they_merged(self, run: dict[str, Any]) -> str | None:
        row = self._one(
            "SELECT s.site, s.tokens, COALESCE(m.tokens, 0) AS merged FROM sites AS s LEFT JOIN"
            " (SELECT site, SUM(tokens) AS tokens FROM members WHERE state = 'MERGED' GROUP BY site) AS m"
            " ON m.site = s.site WHERE s.tokens != COALESCE(m.tokens, 0) LIMIT 1"
        )
        if row is None:
            return None
        return f"site {row['site']} has {row['tokens']} tokens, but {row['merged']} were merged"

    def _contributions_are_there(self, run: dict[str, Any]) -> str | None:
        row = self._one(
            "SELECT m.round, m.site FROM members AS m LEFT JOIN blobs AS b ON b.sha256 = m.blob"
            " WHERE m.state = 'COMMITTED' AND b.sha256 IS NULL LIMIT 1"
        )
        return None if row is None else f"the contribution of {row['site']} to round {row['round']} has no file"

    def _states_belong_together(self, run: dict[str, Any]) -> str | None:
        row = self._one("SELECT COUNT(*) AS n FROM rounds WHERE state IN ('OPEN', 'MERGING')")
        assert row is not None
        if row["n"] > 1:
            return f"{row['n']} rounds are open or being merged at once"
        row = self._one(
            "SELECT m.round, m.site, m.state, r.state AS of FROM members AS m JOIN rounds AS r ON r.round = m.round"
            " WHERE m.state = 'TRAINING' AND r.state != 'OPEN' OR m.state = 'LATE' AND r.state = 'OPEN' LIMIT 1"
        )
        return None if row is None else f"{row['site']} is {row['state']} in round {row['round']}, which is {row['of']}"


_FATES = """
    SELECT lease_start AS a, lease_start + samples AS b, 'merged' AS what FROM members WHERE state = 'MERGED'
    UNION ALL SELECT lease_start, lease_start + samples, 'committed' FROM members WHERE state = 'COMMITTED'
    UNION ALL SELECT lease_start, lease_stop, 'leased' FROM members WHERE state IN ('TRAINING', 'LATE')
    UNION ALL SELECT start, stop, 'kept' FROM kept
    UNION ALL SELECT start, stop, 'free again' FROM returned
    ORDER BY a, b
"""

_INVARIANTS: tuple[tuple[str, Callable[[DataLedger, dict[str, Any]], str | None]], ...] = (
    ("every sample that was handed out has one fate", DataLedger._every_sample_has_one_fate),
    ("merged samples make the run's tokens", DataLedger._merged_samples_make_the_tokens),
    ("every version holds what was merged into it", DataLedger._versions_hold_what_was_merged),
    ("every site holds what it merged", DataLedger._sites_hold_what_they_merged),
    ("every contribution that waits has its file", DataLedger._contributions_are_there),
    ("states of rounds and members belong together", DataLedger._states_belong_together),
)
"""The data ledger's invariants, by name."""
