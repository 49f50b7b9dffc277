"""Power loss at every durable write of a controller that begins a run, takes an upload and renews its certificate.

What a commit writes is in test_power_loss.py. Here the folders are new, so that a
power loss could take one away with all that was made durable in it.
"""

import base64
import hashlib
import importlib.util
from pathlib import Path

import pytest

from controller.auth import token_files
from controller.auth.authority import ensure
from controller.home.data_ledger import inspect_store
from controller.home.home import lock
from controller.store import Transaction, database
from controller.store.rows import BlobRow
from curtail.system.disk import SystemDisk, file_sha256

_spec = importlib.util.spec_from_file_location("power_loss", Path(__file__).with_name("power_loss.py"))
power_loss = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(power_loss)

WRITES = [
    ("folder", "HOME"),
    ("folder", "VERSIONS"),
    ("publish", "CHECKPOINT_MODEL"),
    ("replace", "CHECKPOINT_META"),
    ("folder", "TLS_FOLDER"),
    ("replace", "CA_KEY"),
    ("replace", "CA"),
    ("replace", "TLS_KEY"),
    ("replace", "TLS"),
    ("replace", "JOIN_TOKEN"),  # for agents
    ("replace", "JOIN_TOKEN"),  # for the operator
    ("folder", "BLOBS"),
    ("publish", "BLOB"),
    ("replace", "TLS_KEY"),  # two months later
    ("replace", "TLS"),
]

POINTS = power_loss.points(WRITES)

DATA, DISK, DAY = bytes(range(256)) * 8, SystemDisk(), 86400.0
NAME = hashlib.sha256(DATA).hexdigest()
CHECK = f"sha-256=:{base64.b64encode(hashlib.sha256(DATA).digest()).decode()}:"


class Life:
    """A controller's folder, and what it told others."""

    def __init__(self, world_class, home):
        self.world_class, self.home, self.told = world_class, home, {}

    def start(self, days=0.0):
        """As `curtail controller start`, up to the moment in which it answers; the pin that its tokens name."""
        with lock(self.home):
            self.world = world = self.world_class(self.home)
            now = world.clock.wall() + days * DAY
            pin = ensure(self.home, [], now, DISK).pin
            token_files.ensure(self.home, world.store, pin, now, DISK)
        return pin

    def live(self):
        self.told["pin"] = self.start()
        self.told["token"] = str(token_files.read_token_file(self.home / token_files.JOIN))
        uploads = self.world.uploads
        uploads.reserve(NAME, len(DATA))
        with uploads.begin_part(NAME, 0, CHECK) as part:
            part.write(DATA)
            part.finish()
        path, size = uploads.finish(NAME)
        self.world.store.call(lambda tx: tx.put_blob(BlobRow(NAME, str(path), size, "contribution")))
        self.told["blob"] = NAME
        ensure(self.home, [], self.world.clock.wall() + 61 * DAY, DISK)

    def close(self):
        if hasattr(self, "world"):
            self.world.store.close()


def live_until(life, point, below):
    """The life up to the point; what a power loss would leave there, by variant."""
    images, begin = {}, Transaction.__init__

    def at(reached):
        if reached == point:
            images.update(power.cut_all(below.with_name("left")))
            raise power_loss.PowerCut

    def noted_begin(tx, *args):
        begin(tx, *args)
        tx.after_commit.append(lambda: power.note_database(life.home))

    below.mkdir()
    power = power_loss.PowerLoss(below)
    try:
        with pytest.MonkeyPatch.context() as patch:
            writes = power_loss.Writes(patch.setattr, power, at)
            patch.setattr(Transaction, "__init__", noted_begin)
            if point is None:
                life.live()
            else:
                with pytest.raises(power_loss.PowerCut):
                    life.live()
    finally:
        life.close()
        power.close()
    return writes, images


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What the store makes durable is worked out, so its disk need not be waited for."""
    monkeypatch.setattr(database, "PRAGMAS", (*database.PRAGMAS, "synchronous = OFF"))


def test_the_durable_writes_of_a_controller_that_begins_are_these(world_class, tmp_path):
    writes, _ = live_until(Life(world_class, tmp_path / "below" / "home"), None, tmp_path / "below")
    assert writes.ops == [op for _, op in WRITES]
    assert writes.seen == POINTS


@pytest.mark.parametrize("point", POINTS)
def test_a_controller_that_lost_its_power_while_it_began_starts_again_and_keeps_what_it_told(
    world_class, tmp_path, point
):
    first = Life(world_class, tmp_path / "below" / "home")
    _, images = live_until(first, point, tmp_path / "below")
    for image in images.values():
        again = Life(world_class, image / "home")
        try:
            if "blob" in first.told:
                assert file_sha256(again.home / "blobs" / NAME) == NAME
            pin = again.start(days=61)
            assert first.told.get("pin") in (None, pin)
            assert first.told.get("token") in (None, str(token_files.read_token_file(again.home / token_files.JOIN)))
            again.world.check()
            assert [problem for _, problem in inspect_store(again.home, weights=True) if problem] == []
            for folder in (again.home, again.home / "tls"):
                assert not list(folder.glob(".*.tmp"))
        finally:
            again.close()
