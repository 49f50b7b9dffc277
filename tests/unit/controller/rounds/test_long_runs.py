"""What is asked of the store while a run goes on takes no longer after a long run than after a short one."""

from __future__ import annotations

import pytest

from controller.scheduling.site_costs import Learned

MEMBER = """INSERT INTO members (round, site, job, fence, state, lease_start, lease_stop, codec, samples, tokens, steps,
    blob, digest, receipt, seconds, reason, norm) VALUES (?, 'old', '', 1, 'MERGED', 0, 4, 'int8', 4, 4, 1, '', '', 'r',
    1.0, '', NULL)"""
ENTRY = """INSERT INTO energy (site, region, phase, t0, t1, watts, method, pue, grid_share, mci, curtailed, kwh, kg)
    VALUES ('old', 'A', 'paused', ?, ?, 100.0, 'constant', 1.0, 1.0, 40.0, 1, 0.1, 0.004)"""


def lasted(world, first, stop):
    """Rounds and ledger rows number `first` to `stop`."""
    numbers = [(number,) for number in range(first, stop)]
    world.sql("INSERT INTO rounds VALUES (?, 'FEDERATED', 'ABANDONED', 0, 0.0, 0.0, 0, NULL)", numbers)
    world.sql(MEMBER, numbers)
    world.sql("INSERT INTO versions VALUES (?, ?, 0, '', '', '', 0.0, 0)", [(n, n) for (n,) in numbers])
    world.sql(ENTRY, [(n - 1e9, n - 1e9 + 1) for (n,) in numbers])


QUESTIONS = {
    "a site's newest part": lambda tx: tx.newest_part("a"),
    "a site's last part": lambda tx: tx.last_part("a", 10**6),
    "what a site used": lambda tx: tx.used_lately("a", 3),
    "norms of updates": lambda tx: tx.recent_norms(10),
    "refusals": lambda tx: tx.refused_in_a_row(),
    "versions on disk": lambda tx: tx.kept_versions(),
    "the ledger of a week": lambda tx: tx.numbered_entries(0.0),
    "the first of all rows of the ledger": lambda tx: next(tx.entries_after(0)),
    "the newest rows of the ledger": lambda tx: list(tx.entries_after(10**6)),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_takes_no_longer_after_thousands_of_rounds_and_ledger_rows(world, question):
    lasted(world, 1, 200)
    world.store.call(lambda tx: tx.set_round(1, state="MERGED"))
    few = world.instructions(QUESTIONS[question])
    lasted(world, 200, 3000)
    world.store.call(lambda tx: tx.set_round(2900, state="MERGED"))
    assert world.instructions(QUESTIONS[question]) < 2 * few + 2000


def test_what_a_step_learned_of_rows_that_were_undone_is_forgotten(world):
    world.ready("a", "job")
    scheduler = world.service.scheduler
    before = scheduler._last_row, scheduler.learned("old")

    def undone(tx):
        tx._db.conn.executemany(ENTRY, [(0.0, 1.0), (1.0, 2.0)])
        scheduler._learn(tx)
        assert scheduler._last_row > before[0]
        raise RuntimeError("undone")

    with pytest.raises(RuntimeError, match="undone"):
        world.store.call(undone)
    assert (scheduler._last_row, scheduler.learned("old")) == before
    assert scheduler.learned("old") == Learned()
