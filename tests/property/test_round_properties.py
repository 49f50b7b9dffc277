"""Random schedules on the real round keeper and store: whatever happens in whatever order, the ledger is exact.

A schedule is a seed. The suite runs the first ones; all of acceptance's ten thousand run with

    CURTAIL_SCHEDULES=10000 python -m pytest tests/property/test_round_properties.py

and CURTAIL_SCHEDULE_FROM=123 starts at another seed, to look at one that failed.
"""

from __future__ import annotations

import collections
import os
import random
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlite_utils import Database

from controller.aggregation.outer_step import MergeResult
from controller.rounds.coordinator import RoundCoordinator
from controller.rounds.lifecycle import Member, MemberEvent
from controller.store import Transaction, migrate
from controller.store.rows import BlobRow, RunRow, SiteRow, VersionRow
from curtail import wire
from curtail.config import parse_config
from curtail.errors import Refused

COUNT = int(os.environ.get("CURTAIL_SCHEDULES", "1000"))
FIRST = int(os.environ.get("CURTAIL_SCHEDULE_FROM", "0"))
EVENTS = 24
WHAT = (
    "act", "checkout", "closing", "repeat", "older", "kill", "silence", "rejoin", "leave", "tick", "wait", "merge",
    "fail", "refuse", "restart",
)  # fmt: skip
MOODS = (
    (50, 4, 3, 3, 3, 3, 2, 2, 1, 5, 3, 18, 1, 3, 2),  # mostly orderly
    (50, 0, 2, 2, 8, 1, 1, 0, 0, 5, 14, 15, 0, 2, 1),  # slow: deadlines pass
    (40, 2, 6, 3, 3, 12, 6, 5, 3, 5, 2, 12, 4, 4, 8),  # rough
)
SEQUENCE, BATCH = 8, 2
STEP_TOKENS = SEQUENCE * BATCH
GRACE, LENGTH, LOST_AFTER = 5.0, 20.0, 8.0


def config(overlap, staleness_discount, quorum, inner_steps, ahead_steps):
    power = {"power_train": "2 kW", "power_idle": "500 W"}
    rounds = {
        "overlap": overlap, "staleness_discount": staleness_discount, "quorum": quorum, "inner_steps": inner_steps,
        "ahead_steps": ahead_steps, "length": f"{LENGTH} s", "grace": f"{GRACE} s", "keep_versions": 2,
        "outer": {"2": {"lr": 0.7, "momentum": 0.5}},  # a velocity is one more file to lose
    }  # fmt: skip
    return parse_config(
        {
            "run": {"name": "test"},
            "model": {"preset": "d2-test"},
            "data": {"path": "nowhere"},
            "training": {"token_budget": STEP_TOKENS, "batch_samples": BATCH},
            "rounds": rounds,
            "regions": {"A": power},
        }
    )


CONFIGS = [
    config(overlap, stale, quorum, inner, ahead)
    for overlap in (False, True)
    for stale in (0.0, 0.5)
    for quorum, inner, ahead in ((1, 1, 1), (1, 3, 3), (2, 3, 0), (1, 2, 4), (2, 4, 2))
]


SCENES = """
    SELECT m.state || ' ' || r.kind FROM members AS m JOIN rounds AS r ON r.round = m.round
    UNION ALL SELECT 'merged late' FROM members AS m JOIN rounds AS r ON r.round = m.round
        WHERE m.state = 'MERGED' AND r.version IS NOT m.version
    UNION ALL SELECT 'came late' FROM members WHERE state IN ('MERGED', 'REFUSED') AND reason LIKE '%deadline%'
"""
"""What a schedule showed, read from its members."""


class NoFiles:
    """Versions and uploads in name only."""

    def path(self, name):
        return Path(str(name))

    prepare = publish = path

    def remove(self, name):
        pass


@dataclass
class Site:
    """What a site believes."""

    name: str
    fence: int = 1
    job: str | None = None
    silent: bool = False
    left: bool = False
    work: wire.Assignment | None = None
    held: str | None = None
    sent: list[wire.CommitRequest] = field(default_factory=list)  # all of its commits, answered or not


class Books:
    """One database in memory, emptied for each schedule."""

    def __init__(self):
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.connection, Path(":memory:"))
        self.db = Database(self.connection)
        rows = self.connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        self.tables = [name for (name,) in rows]
        self.tables.sort(key=lambda name: name != "members")  # it refers to rounds
        self.changes, self.seen = 0, collections.Counter()

    def empty(self):
        for table in self.tables:
            self.connection.execute(f"DELETE FROM {table}")

    def changed(self):
        """Was anything written since the last call?"""
        before, self.changes = self.changes, self.connection.total_changes
        return self.changes != before

    def call(self, use_case):
        """As `Store` does: all or nothing, and what is to follow only afterwards."""
        transaction = Transaction(self.db)
        self.connection.execute("BEGIN")
        try:
            result = use_case(transaction)
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")
        for action in transaction.after_commit:
            action()
        return result


class Schedule:
    """Sites that train, repeat themselves, die and come back, against one controller that restarts."""

    def __init__(self, books, seed):
        self.books, self.seed, self.random = books, seed, random.Random(seed)
        self.config = CONFIGS[seed % len(CONFIGS)]
        self.now, self.count = 1000.0, 0
        self.budget_steps = self.random.randint(4, 16)
        self.sites = {name: Site(name) for name in "abc"}
        self.mood = self.random.choice(MOODS)
        self.merges, self.receipts, self.log = [], {}, []
        books.empty()
        books.call(self._begin)
        self.restart()

    def _begin(self, tx):
        limit = self.budget_steps * BATCH
        tx.create_run(
            RunRow(
                "r",
                "{}",
                "{}",
                "m",
                "t",
                SEQUENCE,
                "RUNNING",
                0.0,
                0.0,
                0.0,
                0,
                0,
                limit,
                "PAUSED",
                0.0,
                {},
                None,
                None,
            )
        )
        tx.add_version(VersionRow(0, None, 0, "digest0", "weights0", "", 0.0, 1))
        for name in self.sites:
            tx.put_site(SiteRow(name, "A", machines=1, fence=1, left_run=0, tokens=0, joined_wall=0.0))

    # -- the controller ----------------------------------------------------------

    def restart(self):
        """A new process on what the store holds."""
        self.merges = []
        self.keeper = RoundCoordinator(
            self.config, NoFiles(), NoFiles(), self, lambda tx, kind, text: None, lambda spec, result: None
        )
        self.books.call(lambda tx: self.keeper.resume(tx, self.now, LOST_AFTER))

    def start(self, spec, done):
        """As a merger: the merge ends when the schedule says so."""
        self.merges.append(spec)

    def gone(self, name, job):
        site = self.sites[name]
        if site.left:
            return MemberEvent.JOB_ENDED, "left"
        if site.silent:
            return MemberEvent.SILENT, "silent"
        return None if site.job == job else (MemberEvent.JOB_ENDED, "ended")

    def sweep(self, seconds):
        self.now += seconds
        self.books.call(lambda tx: self.keeper.sweep(tx, self.now, self.gone))

    def merge(self, failing=False, refusing=0.0):
        """The merge that is under way ends."""
        if not self.merges:
            return
        spec, result = self.merges.pop(), None
        if not failing:
            bad = [part.site for part in spec.parts if part.weight <= 0 or self.random.random() < refusing]
            good = [part.site for part in spec.parts if part.site not in bad]
            number = spec.version
            result = MergeResult(
                tuple(good), dict.fromkeys(bad, "bad"), f"digest{number}", f"weights{number}", 1, f"update{number}", 1,
                dict.fromkeys(good, 1.0),
            )  # fmt: skip
            if not good:
                result = MergeResult((), result.refused)
        self.books.call(lambda tx: self.keeper.publish(tx, spec, result, self.now))

    # -- sites -------------------------------------------------------------------

    def ready(self, site):
        return frozenset({site.name, *(s.name for s in self.sites.values() if s.job and not s.silent and not s.left)})

    def checkout(self, site, closing=False):
        if site.job is None:
            self.count += 1
            site.job, site.held = f"job{self.count}", None
        site.silent = False
        if site.left:
            return None
        request = wire.CheckoutRequest(site.name, site.fence, site.job, None, site.held, closing)
        reply = self.books.call(lambda tx: self.keeper.checkout(tx, request, self.now, self.ready(site)))
        work = reply.assignment
        if work is not None:
            size = work.lease_stop - work.lease_start
            assert 0 < work.steps * BATCH <= size and size % BATCH == 0
            assert reply.kind == "train" and (not closing or size > 0)
            site.work, site.held = work, work.base_digest
            self.books.seen["closing"] += closing
        return reply

    def commit(self, site, steps, keep):
        work = site.work
        if work is None or site.job is None:
            return
        self.count += 1
        blob = f"blob{self.count}"
        site.sent.append(
            wire.CommitRequest(
                site.name,
                site.fence,
                site.job,
                work.round,
                work.base_version,
                work.base_digest,
                steps,
                steps * BATCH,
                steps * STEP_TOKENS,
                blob,
                work.codec,
                "",
                1.0,
                1.0,
                1.0,
                1.0,
                keep and work.keep,
            )
        )
        self.books.call(lambda tx: tx.put_blob(BlobRow(blob, blob, 1, "contribution")))
        site.work = None
        self.send(site.sent[-1])

    def send(self, request):
        """One commit, perhaps not for the first time."""
        if request.fence != self.sites[request.site].fence:
            return  # refused by the service before it gets here
        receipt = self.books.call(lambda tx: self.keeper.commit(tx, request, self.now))
        known = self.receipts.setdefault((request.round, request.site, request.blob), receipt.receipt)
        assert known == receipt.receipt, "a repeat gets the first receipt"

    def rejoin(self, site):
        site.fence += 1
        site.job, site.work, site.left, site.silent = None, None, False, False
        self.books.call(lambda tx: tx.set_site(site.name, fence=site.fence))
        self.books.call(lambda tx: self.keeper.release_site(tx, site.name, self.now, "joined anew"))

    def leave(self, site):
        site.job, site.work, site.left = None, None, True
        self.books.call(lambda tx: self.keeper.release_site(tx, site.name, self.now, "left"))

    # -- what happens --------------------------------------------------------------

    def event(self):
        """One thing, at random."""
        pick = self.random
        site = self.sites[pick.choice("abc")]
        what = pick.choices(WHAT, self.mood)[0]
        if what == "act":
            what = "commit" if site.work is not None and site.job is not None else "checkout"
        self.log.append((what, site.name))
        if what == "checkout":
            self.checkout(site)
        elif what == "closing":
            self.checkout(site, closing=True)
        elif what == "commit" and site.work is not None:
            most = (site.work.lease_stop - site.work.lease_start) // BATCH
            self.commit(site, pick.randint(1, most + (pick.random() < 0.05)), pick.random() < 0.6)
        elif what in ("repeat", "older") and site.sent:
            self.send(site.sent[-1] if what == "repeat" else pick.choice(site.sent))
        elif what == "kill":
            site.job = site.work = None
        elif what == "silence":
            site.silent = True
        elif what == "rejoin":
            self.rejoin(site)
        elif what == "leave":
            self.leave(site)
        elif what in ("tick", "wait"):
            self.sweep(1.0 if what == "tick" else pick.choice((GRACE, LENGTH, 2 * LENGTH + GRACE)))
        elif what in ("merge", "fail", "refuse"):
            self.merge(what == "fail", 0.6 if what == "refuse" else 0.0)
        elif what == "restart":
            self.restart()

    def check(self, tx):
        assert tx.ledger_problems() == []
        held = "SELECT COUNT(*) FROM members WHERE receipt != '' AND state IN ('COMMITTED', 'MERGED', 'REFUSED')"
        assert self.books.connection.execute(held).fetchone()[0] == len(self.receipts), "what got a receipt was lost"

    def finish(self):
        """From here on everybody behaves: the run must end, at exactly its budget."""
        for site in self.sites.values():
            self.rejoin(site)
        goal = self.budget_steps * STEP_TOKENS
        for _ in range(200):
            for site in self.sites.values():
                if site.work is None:
                    self.checkout(site)
                if site.work is not None:
                    self.commit(site, site.work.steps, self.random.random() < 0.5)
            self.sweep(0.5)
            self.merge()
            if self.books.call(lambda tx: tx.run()).tokens == goal:
                break
        self.books.call(self.check)
        run, pool = self.books.call(lambda tx: (tx.run(), tx.pool()))
        assert (run.tokens, pool.size) == (goal, 0)
        assert self.books.call(lambda tx: tx.all_kept()) == []
        self.books.seen.update(found for (found,) in self.books.connection.execute(SCENES))

    def run(self):
        for _ in range(EVENTS):
            try:
                self.event()
            except Refused as refusal:  # a refusal is an answer; it must change nothing
                self.log.append(str(refusal))
            if self.books.changed():
                self.books.call(self.check)
        self.finish()


@pytest.fixture(scope="module")
def books():
    made = Books()
    yield made
    made.connection.close()


def test_no_schedule_loses_a_sample_counts_one_twice_or_keeps_the_run_from_its_budget(books):
    for seed in range(FIRST, FIRST + COUNT):
        schedule = Schedule(books, seed)
        try:
            schedule.run()
        except Exception as error:
            history = "\n".join(map(str, schedule.log))
            raise AssertionError(f"schedule {seed}: {error!r} after\n{history}") from error
    wanted = {f"{state.value} {kind}" for state in Member for kind in ("LOCAL", "FEDERATED")}
    unreachable = {
        "TRAINING LOCAL",
        "TRAINING FEDERATED",
        "COMMITTED LOCAL",
        "COMMITTED FEDERATED",
        "LATE LOCAL",
        "LATE FEDERATED",
    }
    missing = (wanted - unreachable | {"merged late", "came late"}) - set(books.seen)
    assert COUNT < 1000 or not missing, f"no schedule showed {missing}"
