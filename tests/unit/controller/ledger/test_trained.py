"""Steps and tokens of a job: each counted once, whatever is repeated, overlapped or dropped."""

from __future__ import annotations

from controller.ledger.metering import JobProgress


def count(*said):
    """(what, round, steps) one after the other, ten tokens a step; the growth in steps."""
    job, out = JobProgress(), []
    for what, number, steps in said:
        more = getattr(job, what)(number, steps, 10 * steps)
        assert more[1] == 10 * more[0]
        out.append(more[0])
    return out, job


def test_progress_grows_and_a_repeat_adds_nothing():
    assert count(("said", 1, 2), ("said", 1, 2), ("said", 1, 5), ("committed", 1, 6), ("committed", 1, 6))[0] == [
        2, 0, 3, 1, 0,
    ]  # fmt: skip


def test_steps_made_ahead_count_once_under_both_rounds():
    grown, job = count(
        ("said", 1, 6), ("said", 1, 8), ("committed", 1, 6), ("said", 1, 9), ("said", 2, 4), ("committed", 2, 7)
    )  # fmt: skip
    assert grown == [6, 2, 0, 1, 1, 3] and job.steps == 13 == 6 + 7


def test_steps_that_are_dropped_and_made_again_count_once():
    grown, job = count(("said", 1, 6), ("committed", 1, 6), ("said", 1, 9), ("said", 2, 1), ("said", 2, 5))
    assert grown == [6, 0, 3, 0, 2] and job.steps == 11


def test_what_comes_late_of_an_older_round_is_passed_over():
    assert count(("committed", 3, 5), ("said", 2, 9), ("committed", 1, 9))[0] == [5, 0, 0]


def test_a_count_goes_on_where_it_was_kept():
    _, job = count(("said", 1, 6), ("committed", 1, 6), ("said", 2, 3))
    again = JobProgress.of(job.kept())
    assert again == job and again.said(2, 4, 40) == (1, 10)
