"""A disk that runs short pauses the run with a reason, and the run goes on by itself when there is room again."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from controller.files import disk_space
from controller.files.disk_space import DiskRoom, FileSizes, file_sizes, judge, low_water
from controller.files.uploads import RESERVE
from controller.store import Store
from curtail.config import RoundsSection
from curtail.errors import CurtailError, DiskError
from nanochat.presets import parameter_count, preset

MEGA = 1_000_000


class FakeDisk:
    def __init__(self):
        self.left: int | None = 10**12

    def free(self, folder):
        if self.left is None:
            raise DiskError("cannot measure it: gone")
        return self.left


@pytest.fixture
def disk(world):
    """The disk of a controller in memory, whose free bytes the test sets."""
    made = FakeDisk()
    world.service.room = DiskRoom(world.home, FileSizes(4000, 1000, 10_000), made.free)
    return made


def test_the_mark_holds_a_version_exact_weights_of_one_site_and_a_delta_of_each_other():
    sizes = FileSizes(weights=400, delta=100, version=1000)
    assert low_water(sizes, 0) == low_water(sizes, 1) == 2 * RESERVE + 1400
    assert low_water(sizes, 8) == 2 * RESERVE + 2100


@pytest.mark.parametrize(
    ("codec", "broadcast", "delta", "version"),
    [
        ("fp32", "", 4.0, 13.0),
        ("bf16", "", 2.0, 11.0),
        ("int8", "", 1.0, 10.0),
        ("int4", "", 0.58, 9.6),
        ("int8", "fp32", 1.0, 13.0),
    ],
)
def test_deltas_and_updates_count_as_their_codec_makes_them(codec, broadcast, delta, version):
    model = preset("d20-561m")
    weights = 4 * parameter_count(model)
    sizes = file_sizes(model, RoundsSection(codec=codec, broadcast=broadcast))
    assert sizes.weights == weights
    assert sizes.delta == pytest.approx(delta * weights / 4, rel=0.01)
    assert sizes.version == pytest.approx(version * weights / 4, rel=0.01)


def test_there_must_be_more_room_to_go_on_than_to_stop():
    assert judge(100 * MEGA, 100 * MEGA, short=False) == ""
    assert judge(100 * MEGA - 1, 100 * MEGA, short=False).startswith(
        "the controller's disk has only 99 MB left, but needs 100"
    )
    assert "but needs 125 MB" in judge(124 * MEGA, 100 * MEGA, short=True)
    assert judge(125 * MEGA, 100 * MEGA, short=True) == ""


def test_below_the_mark_there_are_no_permits_and_the_reason_is_said(world, disk):
    world.ready("a", "job")
    disk.left = 12 * MEGA
    world.tick()
    reply = world.beat("a", "job", "train")
    assert not reply.granted and "disk has only 12 MB left" in reply.reason
    status = world.status()
    assert status.regime == "PAUSED" and "disk has only 12 MB left" in status.reason
    assert "disk has only 12 MB left" in status.sites[0].reason
    assert world.checkout("a", "job").kind == "leave"


def test_what_a_job_still_holds_is_committed_and_merged_below_the_mark(world, disk):
    world.ready("a", "job")
    work = world.checkout("a", "job").assignment
    disk.left = 12 * MEGA
    world.tick()
    assert world.commit("a", "job", work, steps=3).tokens == 96
    assert world.status().version == 1
    world.check()


def test_it_goes_on_by_itself_and_both_are_told_once(world, disk):
    world.ready("a", "job")
    for left in (12, 11, 10, 150, 10, 10_000, 10_000):
        disk.left = left * MEGA
        world.tick()
    assert world.beat("a", "job", "train").granted and world.checkout("a", "job").kind == "train"
    told = [event.text for event in world.status().events if event.kind == "disk"]
    assert len(told) == 2 and "only 12 MB" in told[0] and "room again" in told[1]


def test_a_disk_that_cannot_be_measured_counts_as_full(world, disk):
    world.ready("a", "job")
    disk.left = None
    world.tick()
    assert "cannot be measured" in world.beat("a", "job", "train").reason
    with pytest.raises(DiskError, match="cannot measure"):
        disk_space.free_bytes(Path("/no/where"))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "curtail-test", folder], capture_output=True)
    if done.returncode != 0:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_store_on_a_full_disk_keeps_what_it_acknowledged_and_goes_on_when_there_is_room(small_disk):
    store = Store(small_disk / "state.db")
    store.open()
    kept = []
    (small_disk / "filler").write_bytes(b"x" * 1_500_000)
    with pytest.raises(DiskError, match="the disk is full"):
        for n in range(10_000):
            store.call(lambda tx, n=n: tx.add_event(n, n, "k", "x" * 2000))
            kept.append(n)
    for _ in range(3):
        with pytest.raises(DiskError, match="the disk is full"):
            store.call(lambda tx: [tx.add_event(0.0, 0.0, "k", "x" * 2000) for _ in range(1000)])
    assert [int(event.at) for event in store.call(lambda tx: tx.last_events(10**6))] == kept
    (small_disk / "filler").unlink()
    store.call(lambda tx: tx.add_event(-1.0, 0.0, "k", "after"))
    store.close()
    again = Store(small_disk / "state.db", thorough=True)
    again.open()
    assert [int(event.at) for event in again.call(lambda tx: tx.last_events(10**6))] == [*kept, -1]
    again.close()


def test_a_full_disk_in_any_use_case_is_an_answer_and_the_controller_lives(world, monkeypatch):
    """Every insert and update fails as SQLite fails on a full disk; afterwards all is as before."""
    import sqlite3

    world.ready("a", "job")
    work = world.checkout("a", "job").assignment
    before = world.store.call(lambda tx: (tx.run(), tx.members(work.round), tx.pool()))
    world.clock.t += 5.0  # so that there is something to close
    accounts, readings = (
        (dict(world.service.energy_ledger._open), world.service.energy_ledger.totals),
        dict(world.service.readings),
    )

    def full(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        for name in ("_insert", "_update"):
            patch.setattr("controller.store.tables.Tables." + name, full)
        for use_case in (
            lambda: world.beat("a", "job", "train"),
            lambda: world.tick(),
            lambda: world.commit("a", "job", work, steps=3),
            lambda: world.join("c"),
        ):
            with pytest.raises(CurtailError, match="the disk is full"):
                use_case()
            assert (world.service.energy_ledger._open, world.service.energy_ledger.totals) == accounts, (
                "as they are stored"
            )
        assert world.status().version == 0
        assert dict(world.service.readings) == readings, "they are noted anew when there is room"
    assert world.store.call(lambda tx: (tx.run(), tx.members(work.round), tx.pool())) == before
    world.tick()
    world.commit("a", "job", work, steps=3)
    assert world.status().version == 1
    world.check()
