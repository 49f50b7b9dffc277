"""What a snapshot costs does not grow with the run; and the always-on figure it shows is that of all readings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.ledger.recorder import EnergyLedger
from controller.service import snapshot
from controller.service.snapshot import HISTORY


def started(world):
    return world.store.call(lambda tx: tx.run()).started


def add_readings(world, first, stop):
    """Readings number `first` to `stop` of both regions, five minutes apart, from the run's start on."""
    rows = [(region, started(world) + 300.0 * i + 0.5, 50.0 + i % 40) for i in range(first, stop) for region in "AB"]
    world.sql("INSERT INTO readings (region, point_time, mci, source, reason) VALUES (?, ?, ?, 'test', '')", rows)


def trained(world, seconds):
    """The sites have trained so long."""
    world.service.energy_ledger.totals = replace(world.service.energy_ledger.totals, train_seconds=seconds)


def effort(world):
    return world.instructions(lambda tx: snapshot.make(tx, world.service))


def from_all_readings(world):
    def expected(tx):
        readings = {region: tx.readings(region) for region in world.config.regions}
        sites = {site.site: site.region for site in tx.sites()}
        totals, _ = world.service.energy_ledger.present(world.service.replay.now())
        return EnergyLedger(world.config).always_on_kg(totals, tx.run().started, sites, readings)

    return world.store.call(expected)


def agrees(world):
    shown, expected = world.status().energy.kg_always_on, from_all_readings(world)
    assert expected is not None and shown == pytest.approx(expected, rel=1e-9)
    return shown


def test_a_snapshot_costs_no_more_after_thousands_of_readings_rounds_and_events(world):
    world.ready("a", "job")
    add_readings(world, 0, 300)
    trained(world, 150 * 300.0)
    world.status()
    few = effort(world)
    add_readings(world, 300, 4000)
    trained(world, 2000 * 300.0)
    world.sql(
        "INSERT INTO rounds VALUES (?, 'LOCAL', 'ABANDONED', 0, 0.0, 0.0, 0, NULL)",
        [(number,) for number in range(1, 4000)],
    )
    world.sql("INSERT INTO events (at, at_wall, kind, text) VALUES (0, 0, 'member', '')", [()] * 4000)
    assert effort(world) > 10 * few, "the first time it reads what is new"
    assert effort(world) < 1.1 * few


def test_the_history_of_a_region_is_its_latest_readings_in_order(world):
    world.ready("a", "job")
    before = len(world.store.call(lambda tx: tx.readings("A")))
    assert len(world.status().regions[0].history) == before
    add_readings(world, 1, 200)
    expected = [mci for _, mci in world.store.call(lambda tx: tx.readings("A"))][-HISTORY:]
    assert list(world.status().regions[0].history) == expected and len(expected) == HISTORY


def test_the_status_shows_the_figure_of_all_readings_when_sites_join_and_readings_come_late(world):
    world.ready("a", "job")
    add_readings(world, 0, 50)
    trained(world, 40 * 300.0)
    alone = agrees(world)
    world.join("b", "B")
    both = agrees(world)
    assert both != alone, "each trains half as long, on its own grid"
    begin = started(world)
    world.store.call(lambda tx: tx.add_reading("A", begin + 100.0, 900.0, "test", ""))
    assert agrees(world) > both
    world.store.call(lambda tx: tx.add_reading("A", begin + 200.0, None, "test", ""))
    trained(world, 60 * 300.0)
    later = agrees(world)
    world.start()
    trained(world, 60 * 300.0)
    assert agrees(world) == pytest.approx(later, rel=1e-9)


def test_a_transaction_that_fails_leaves_nothing_behind_in_the_figure(world):
    world.ready("a", "job")
    add_readings(world, 0, 50)
    trained(world, 40 * 300.0)
    before, begin = agrees(world), started(world)

    def fails(tx):
        tx.add_reading("A", begin + 100.0, 900.0, "test", "")
        assert snapshot.make(tx, world.service).energy.kg_always_on > before
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError):
        world.store.call(fails)
    assert agrees(world) == before


def test_a_region_that_the_run_file_knows_no_more_leaves_the_status_without_the_figure(world):
    world.ready("a", "job")
    world.join("b", "B")
    trained(world, 100.0)
    assert world.status().energy.kg_always_on is not None
    world.sql("UPDATE sites SET region = 'gone' WHERE site = 'b'")
    assert world.status().energy.kg_always_on is None
