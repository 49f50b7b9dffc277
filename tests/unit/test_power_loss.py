"""Power loss at every step of a commit: what was not fsynced is gone, or half of it is there.

A forked controller is stopped at the fault points of test_fault_points.py. What would
then be on disk is worked out from the calls of fsync that it made: in the worst
case nothing else (`missing`), in another all names and half of the bytes (`torn`).
A new controller starts on that. SQLite's own files count as written through at
each commit, which is what `synchronous = FULL` is for.
"""

import importlib.util
import os
import stat
import threading
from pathlib import Path

import pytest

from controller import blobs
from controller.store import Transaction

spec = importlib.util.spec_from_file_location("fault_points", Path(__file__).with_name("test_fault_points.py"))
points = importlib.util.module_from_spec(spec)
spec.loader.exec_module(points)

SQLITE = ("state.db", "state.db-wal")
PASSED_OVER = ("state.db-shm",)  # memory that SQLite makes anew


class PowerLoss:
    """Follows what is durable below `root`; `cut` makes the tree that a power loss would leave.

    Files and folders are known by their inode, which is pinned by an open descriptor.
    """

    def __init__(self, root, variant, image):
        self.root, self.variant, self.image = root, variant, image
        self.content, self.names, self.pins = {}, {}, {}
        self.lock = threading.RLock()
        self.note_folder(root, deep=True)

    # -- what is durable -----------------------------------------------------

    def note_folder(self, folder, deep=False):
        """The names in `folder` are durable now; `deep`: with everything in it."""
        with self.lock:
            own = os.stat(folder).st_ino
            self.names[own] = {}
            for entry in os.scandir(folder):
                inode, is_folder = entry.inode(), entry.is_dir(follow_symlinks=False)
                self.pin(inode, entry.path)
                self.names[own][entry.name] = (inode, is_folder)
                if deep and is_folder:
                    self.note_folder(entry.path, deep)
                elif deep:
                    self.content[inode] = Path(entry.path).read_bytes()

    def pin(self, inode, path):
        if inode not in self.pins:
            self.pins[inode] = os.open(path, os.O_PATH | os.O_NOFOLLOW)

    def note(self, descriptor):
        """fsync(descriptor) came back."""
        with self.lock:
            found, path = os.fstat(descriptor), f"/proc/self/fd/{descriptor}"
            if stat.S_ISDIR(found.st_mode):
                self.note_folder(path)
            else:
                if found.st_ino not in self.pins:
                    self.pins[found.st_ino] = os.dup(descriptor)
                self.content[found.st_ino] = Path(path).read_bytes()

    def note_database(self):
        """A transaction was committed."""
        with self.lock:
            for name in SQLITE:
                path = self.root / name
                if path.exists():
                    inode = path.stat().st_ino
                    self.pin(inode, path)
                    self.content[inode] = path.read_bytes()
                    self.names[self.root.stat().st_ino][name] = (inode, False)

    # -- what is left ----------------------------------------------------------

    def cut(self):
        with self.lock:
            self.rebuild(self.root.stat().st_ino, self.root, self.image)

    def rebuild(self, inode, folder, image):
        image.mkdir()
        names = dict(self.names.get(inode, {}))
        if self.variant == "torn" and folder is not None:
            for entry in os.scandir(folder):
                self.pin(entry.inode(), entry.path)
                names[entry.name] = (entry.inode(), entry.is_dir(follow_symlinks=False))
        for name, (child, is_folder) in names.items():
            here = None if folder is None or not (Path(folder) / name).exists() else Path(folder) / name
            if is_folder:
                self.rebuild(child, here, image / name)
            elif name not in PASSED_OVER:
                (image / name).write_bytes(self.left_of(child))

    def left_of(self, inode):
        safe = self.content.get(inode, b"")
        if self.variant == "missing":
            return safe
        now = Path(f"/proc/self/fd/{self.pins[inode]}").read_bytes()
        if now.startswith(safe):
            return now[: (len(safe) + len(now)) // 2] if safe != now else safe
        return now[: len(now) // 2] + safe[len(now) // 2 :]


def watch(power):
    """From now on this process ends by a power loss, and all it makes durable is noted."""
    fsync, end, begin = os.fsync, os._exit, Transaction.__init__

    def noted_fsync(descriptor):
        fsync(descriptor)
        power.note(descriptor if isinstance(descriptor, int) else descriptor.fileno())

    def last_words(code):
        power.cut()
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
    monkeypatch.setattr(blobs, "PART_BYTES", points.PART)
    home, image, acknowledged = tmp_path / "home", tmp_path / "image", tmp_path / "acknowledged"
    home.mkdir()
    world = world_class(home, keep_versions=2)
    data, request = points.prepared(world, kind)
    world.store.close()

    def controller():
        again = world_class(home, keep_versions=2)
        again.merger.automatic = False
        watch(PowerLoss(home, variant, image))
        points.die_at(point, again)
        receipt = points.hand_in(again, data, request)
        acknowledged.write_text(receipt.receipt)
        again.merge()

    assert points.in_a_process(controller) == points.DIED
    home.rename(tmp_path / "before")
    image.rename(home)
    points.goes_on(world_class, home, kind, data, request, acknowledged)


def test_what_was_not_fsynced_is_gone_or_torn(tmp_path):
    home = tmp_path / "home"
    (home / "old").mkdir(parents=True)
    (home / "old" / "kept").write_bytes(b"kept")
    for variant, half in (("missing", None), ("torn", b"new")):
        power = PowerLoss(home, variant, tmp_path / variant)
        (home / "old" / "young").write_bytes(b"new---")
        power.cut()
        found = {str(p.relative_to(power.image)): p.read_bytes() for p in power.image.rglob("*") if p.is_file()}
        assert found == {"old/kept": b"kept"} | ({} if half is None else {"old/young": half})
        (home / "old" / "young").unlink()
        for pin in power.pins.values():
            os.close(pin)
