"""Power loss at every step of a commit: what was not fsynced is gone, or half of it is there.

A forked controller is stopped at the fault points of test_fault_points.py. What would
then be on disk is worked out from the calls of fsync that it made (power_loss.py); a
new controller starts on that. What a controller writes when it begins a run is in
test_power_loss_start.py, what a site writes in test_power_loss_agent.py and
test_power_loss_job.py; test_durable_writes.py finds a write that is in none.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from controller.store import Transaction, database


def beside(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


points, power_loss = beside("test_fault_points"), beside("power_loss")
PowerLoss = power_loss.PowerLoss


def watch(power, variant, image):
    """From now on this process ends by a power loss, and all it makes durable is noted."""
    end, begin = os._exit, Transaction.__init__

    def noted_fsync(descriptor):  # the true one is not needed, and slow
        power.note(descriptor if isinstance(descriptor, int) else descriptor.fileno())

    def last_words(code):
        power.cut(variant, image)
        end(code)

    def noted_begin(self, *args):
        begin(self, *args)
        self.after_commit.append(power.note_database)

    os.fsync, os._exit, Transaction.__init__ = noted_fsync, last_words, noted_begin


@pytest.mark.parametrize("variant", ["missing", "torn"])
@pytest.mark.parametrize(("kind", "point"), points.CASES, ids=[f"{kind}: {point}" for kind, point in points.CASES])
def test_a_power_loss_at_any_step_of_a_commit_loses_nothing_that_was_acknowledged(
    world_class, tmp_path, monkeypatch, kind, point, variant
):
    # What a commit of the store makes durable is worked out, so its disk need not be waited for.
    monkeypatch.setattr(database, "PRAGMAS", (*database.PRAGMAS, "synchronous = OFF"))
    home, image, acknowledged = tmp_path / "home", tmp_path / "image", tmp_path / "acknowledged"
    home.mkdir()
    world = world_class(home, part_bytes=points.PART, keep_versions=2)
    data, request = points.prepared(world, kind)
    world.store.close()

    def controller():
        again = world_class(home, part_bytes=points.PART, keep_versions=2)
        again.merger.automatic = False
        watch(PowerLoss(home), variant, image)
        points.die_at(point, again)
        receipt = points.hand_in(again, data, request)
        acknowledged.write_text(receipt.receipt)
        again.merge()

    assert points.in_a_process(controller) == points.DIED
    home.rename(tmp_path / "before")
    image.rename(home)
    points.goes_on(world_class, home, kind, data, request, acknowledged)


def test_what_was_not_fsynced_is_gone_torn_or_blank(tmp_path):
    home = tmp_path / "home"
    (home / "old").mkdir(parents=True)
    (home / "old" / "kept").write_bytes(b"kept")
    for variant, left in (("missing", None), ("torn", b"new"), ("blank", bytes(6))):
        power, image = PowerLoss(home), tmp_path / variant
        (home / "old" / "young").write_bytes(b"new---")
        power.cut(variant, image)
        found = {str(p.relative_to(image)): p.read_bytes() for p in image.rglob("*") if p.is_file()}
        assert found == {"old/kept": b"kept"} | ({} if left is None else {"old/young": left})
        (home / "old" / "young").unlink()
        power.close()
