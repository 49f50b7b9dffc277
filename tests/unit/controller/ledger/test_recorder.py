"""From what sites report to rows of the ledger: one row for each signal interval, and no time that is not booked."""

from __future__ import annotations

from itertools import pairwise

import pytest

from controller.energy.clock import LiveClock
from controller.service.service import Service, ServiceDeps
from curtail.grid.reading import Reading
from curtail.wire import Heartbeat, Power, Progress


class Steady:
    """Readings of five minutes, as real sources give them."""

    def __init__(self, mci):
        self.mci = mci

    def reading(self, region, now):
        point = now - now % 300.0
        return Reading(region, self.mci[region], point, point + 300.0, "test")

    def forecast(self, region, now, horizon):
        return None

    def second(self, region, now):
        return None

    def ended(self, now):
        return False


@pytest.fixture
def steady(world):
    world.source = Steady({"A": 50.0, "B": 60.0})
    world.start()
    return world


def rows_of(world):
    return world.store.call(lambda tx: tx.entries())


def beat(world, seconds, joules, phase="train", watts=None):
    who = world.who("a")
    power = Power("m", "nvml-total-energy+rapl", seconds, joules, 0.75 * joules, 0.25 * joules)
    message = Heartbeat(who.agent, "a", who.fence, "TRAINING", phase, "job", watts, "", power=power)
    return world.store.call(lambda tx: world.service.heartbeat(tx, who, message))


def test_measured_power_makes_no_row_for_each_heartbeat(steady):
    steady.ready("a", "job")
    joules = 0.0
    for second in range(0, 1200, 2):
        beat(steady, float(second), joules)
        steady.tick(2.0)
        joules += 2.0 * (1500.0 + second % 600)
    steady.store.call(lambda tx: steady.service.energy_ledger.finish(tx, "a", steady.service.replay.now()))
    measured = [row for row in rows_of(steady) if row.method == "nvml-total-energy+rapl"]
    assert len(measured) <= 6, "one for each signal interval"
    assert {row.detail.coverage for row in measured} == {1.0}
    drawn = sum(row.detail.machine_kwh for row in measured) * 3.6e6
    assert drawn == pytest.approx(joules, rel=0.01)
    for row in measured:
        assert row.detail.gpu_kwh == pytest.approx(0.75 * row.detail.machine_kwh, rel=1e-6)
        assert row.detail.host_kwh == pytest.approx(0.25 * row.detail.machine_kwh, rel=1e-6)
        assert row.detail.basis.point_time is not None and row.t1 - row.detail.basis.point_time <= 301.0


def test_a_row_tells_on_what_it_rests(steady):
    steady.source.mci["A"] = -12.0
    steady.ready("a", "job")
    beat(steady, 0.0, 0.0)
    steady.tick(1.0)
    steady.store.call(lambda tx: steady.service.energy_ledger.finish(tx, "a", steady.service.replay.now()))
    row = rows_of(steady)[-1]
    basis = row.detail.basis
    assert (row.mci, basis.mci_raw, row.kg) == (0.0, -12.0, 0.0), "a negative intensity earns nothing, and is kept"
    assert (basis.source, basis.threshold, basis.flags) == ("test", 100.0, ())
    assert row.curtailed and "below 100" in basis.reason
    assert basis.point_time == row.t0 - row.t0 % 300.0


def test_tokens_and_steps_are_counted_once_whatever_is_repeated(steady):
    steady.ready("a", "job")
    work = steady.checkout("a", "job").assignment
    who = steady.who("a")
    for step in (2, 5, 5, 4, 8):
        said = Progress("a", who.fence, "job", work.round, step, step * 32, 3.0, 1.0)
        steady.store.call(lambda tx, said=said: steady.service.progress(tx, who, said))
        steady.tick(1.0)
    steady.start()  # the counts survive it
    steady.tick(1.0)
    steady.beat("a", "job", "train")
    steady.commit("a", "job", work, steps=10)
    steady.commit("a", "job", work, steps=10)
    steady.tick(1.0)
    steady.store.call(lambda tx: steady.service.energy_ledger.finish(tx, "a", steady.service.replay.now()))
    details = [row.detail for row in rows_of(steady)]
    assert sum(detail.steps for detail in details) == 10 and sum(detail.tokens for detail in details) == 320
    sizes = sum(detail.network_bytes for detail in details)
    assert sizes == (steady.home / "contribution.bin").stat().st_size, "a repeated commit sends nothing"


def test_a_silent_machine_is_booked_as_standing_by_and_flagged(steady):
    steady.ready("a", "job")
    beat(steady, 0.0, 0.0, watts=None)
    steady.tick(2.0)
    beat(steady, 2.0, 4000.0, watts=2000.0)
    for _ in range(60):
        steady.tick(1.0)
    steady.store.call(lambda tx: steady.service.energy_ledger.finish(tx, "a", steady.service.replay.now()))
    last = rows_of(steady)[-1]
    assert (last.phase, last.method, last.watts) == ("paused", "constant", 500.0)
    assert "estimated" in last.detail.basis.flags


def test_a_stale_reading_is_flagged(steady):
    steady.ready("a", "job")
    old = steady.source.reading("A", steady.service.replay.now())
    steady.source.reading = lambda region, now: Reading(region, 50.0, old.point_time, old.valid_until, "test")
    for _ in range(5):
        steady.tick(100.0)
    steady.store.call(lambda tx: steady.service.energy_ledger.finish(tx, "a", steady.service.replay.now()))
    flags = {row.detail.basis.flags for row in rows_of(steady)}
    assert any("stale" in of for of in flags) and any("stale" not in of for of in flags)


def live(world):
    """A controller on real time, started on what the store holds."""
    run = world.store.call(lambda tx: tx.run())
    world.service = Service(
        ServiceDeps(
            world.store, world.config, world.source, LiveClock(run.clock, world.clock), world.clock, world.versions,
            world.uploads, world.merger,
        )
    )  # fmt: skip
    world.store.call(world.service.resume)


def test_the_time_without_a_controller_is_estimated_when_a_live_one_is_back(steady):
    live(steady)
    steady.ready("a", "job")
    steady.beat("a", "job", "train")
    steady.tick(10.0)
    steady.clock.t += 3600.0
    before = steady.clock.t - 3600.0
    live(steady)
    steady.tick(1.0)
    rows = [row for row in rows_of(steady) if row.t0 >= before - 1e-6]
    permit = steady.config.policy.permit
    assert [(row.phase, row.t1 - row.t0, row.watts) for row in rows] == [
        ("train", permit, 2000.0), ("paused", pytest.approx(3600.0 - permit), 500.0)
    ]  # fmt: skip
    assert all("estimated" in row.detail.basis.flags and row.method == "constant" for row in rows)
    assert rows[0].mci == 50.0 and rows[1].mci is None, "no permit outlives its reading; afterwards nobody looked"
    assert steady.status().energy.unknown_kwh == pytest.approx((3600.0 - permit) * 500.0 / 3.6e6, rel=1e-3)


def test_at_a_replay_nothing_is_lost_and_nothing_is_booked_twice(steady):
    steady.ready("a", "job")
    steady.beat("a", "job", "train")
    for _ in range(5):
        steady.tick(10.0)
        steady.clock.t += 777.0  # down; the clock of a replay stands still
        steady.start()
        steady.tick(0.0)
        steady.beat("a", "job", "train")
    steady.tick(1.0)
    steady.store.call(lambda tx: steady.service.energy_ledger.finish(tx, "a", steady.service.replay.now()))
    rows = rows_of(steady)
    assert all(after.t0 == pytest.approx(before.t1) for before, after in pairwise(rows))
    assert sum(row.t1 - row.t0 for row in rows) == pytest.approx(steady.service.replay.now() - rows[0].t0)


def test_the_open_end_survives_a_kill_with_all_that_it_has_added_up(steady):
    steady.ready("a", "job")
    for second in (0, 2, 4):
        beat(steady, float(second), 1000.0 * second)
        steady.tick(2.0)
    before, _ = steady.service.energy_ledger.present(steady.service.replay.now())
    steady.start()
    after, _ = steady.service.energy_ledger.present(steady.service.replay.now())
    assert after.attributed_kwh == pytest.approx(before.attributed_kwh, rel=1e-9)
    assert {row.method for row in rows_of(steady) if row.phase == "train"} >= {"nvml-total-energy+rapl"}


def test_steps_in_which_only_time_passes_write_no_open_row_and_a_killed_controller_still_books_them(steady):
    steady.ready("a", "job")
    beat(steady, 0.0, 0.0)
    steady.tick(0.25)

    def written():
        return steady.store.call(lambda tx: tx._one("SELECT seen FROM energy_open WHERE site = 'a'"))["seen"]

    before = written()
    for _ in range(8):
        steady.tick(0.25)
    assert written() == before
    now = steady.service.replay.now()
    ((_, seen),) = [found for found in steady.store.call(lambda tx: tx.open_intervals()) if found[0].site == "a"]
    assert seen == now, "it is certain up to the last step"
