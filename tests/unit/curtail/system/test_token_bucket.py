"""A token bucket: a burst at once, then its rate, for those who wait and for those who are refused."""

from __future__ import annotations

import pytest

from curtail.system.token_bucket import TokenBucket


def test_what_is_taken_on_credit_is_paid_by_waiting() -> None:
    bucket = TokenBucket.full(rate=100.0, burst=50.0, now=0.0)
    assert bucket.take(0.0, 50) == 0.0
    assert bucket.take(0.0, 100) == pytest.approx(1.0)
    assert bucket.take(0.0, 100) == pytest.approx(2.0)  # who comes later waits for those before
    assert bucket.take(5.0, 0) == 0.0 and bucket.level == 50.0  # more than a burst never gathers


def test_who_is_refused_takes_nothing_and_is_told_when_to_come_again() -> None:
    bucket = TokenBucket.full(rate=2.0, burst=2.0, now=10.0)
    assert [bucket.ask(10.0) for _ in range(4)] == [0.0, 0.0, 0.5, 0.5]
    assert bucket.ask(10.25) == pytest.approx(0.25) and bucket.ask(10.5) == 0.0
    assert bucket.ask(10.5, tokens=2.0) == pytest.approx(1.0)


def test_a_clock_that_goes_back_adds_and_removes_nothing() -> None:
    bucket = TokenBucket.full(rate=1.0, burst=1.0, now=100.0)
    assert bucket.ask(100.0) == 0.0
    assert bucket.ask(50.0) == 1.0 and bucket.ask(51.0) == 0.0
