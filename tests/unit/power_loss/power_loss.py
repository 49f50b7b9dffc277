"""What a power loss leaves on a disk, worked out from the calls of fsync; not a test itself.

In the worst case nothing is there that was not fsynced, in another all names and half
of the bytes, in a third names and sizes, but no bytes. SQLite's own files count as
written through at each commit, which is what `synchronous = FULL` is for.
"""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

from curtail.system.disk import SystemDisk

VARIANTS = ("missing", "torn", "blank")

SQLITE = ("state.db", "state.db-wal")
PASSED_OVER = ("state.db-shm",)  # memory that SQLite makes anew


class PowerLoss:
    """Follows what is durable below `root`; `cut` makes the tree that a power loss would leave.

    Files and folders are known by their inode, which is pinned by an open descriptor. Of what is not durable
    nothing is left (`missing`), the names and half of the bytes (`torn`), or names and sizes, but no bytes (`blank`).
    """

    def __init__(self, root):
        self.root = root
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

    def note_database(self, folder=None):
        """A transaction was committed; `folder`: the store's, if not the root."""
        folder = folder or self.root
        with self.lock:
            for name in SQLITE:
                path = folder / name
                if path.exists():
                    inode = path.stat().st_ino
                    self.pin(inode, path)
                    self.content[inode] = path.read_bytes()
                    self.names.setdefault(folder.stat().st_ino, {})[name] = (inode, False)

    # -- what is left ----------------------------------------------------------

    def cut(self, variant, image):
        with self.lock:
            self.rebuild(variant, self.root.stat().st_ino, self.root, image)

    def rebuild(self, variant, inode, folder, image):
        image.mkdir()
        names = dict(self.names.get(inode, {}))
        if variant != "missing" and folder is not None:
            for entry in os.scandir(folder):
                self.pin(entry.inode(), entry.path)
                names[entry.name] = (entry.inode(), entry.is_dir(follow_symlinks=False))
        for name, (child, is_folder) in names.items():
            here = None if folder is None or not (Path(folder) / name).exists() else Path(folder) / name
            if is_folder:
                self.rebuild(variant, child, here, image / name)
            elif name not in PASSED_OVER:
                (image / name).write_bytes(self.left_of(variant, child))

    def left_of(self, variant, inode):
        safe = self.content.get(inode, b"")
        if variant == "missing":
            return safe
        now = Path(f"/proc/self/fd/{self.pins[inode]}").read_bytes()
        if safe == now:
            return safe
        if variant == "blank":
            return safe[: len(now)] + bytes(max(0, len(now) - len(safe)))
        if now.startswith(safe):
            return now[: (len(safe) + len(now)) // 2]
        return now[: len(now) // 2] + safe[len(now) // 2 :]

    def cut_all(self, folder, unread=()):
        """Images of all variants in `folder`, by name; one that equals another is left out.

        Args: unread: folders that no restart reads.
        """
        folder.mkdir()
        found = {}
        for variant in VARIANTS:
            self.cut(variant, folder / variant)
            for left in (folder / variant).rglob(f".*.{os.getpid()}.tmp"):  # the next process has another number
                left.rename(left.with_name(left.name.replace(f".{os.getpid()}.", ".1.")))
            found[variant] = contents_of(folder / variant, unread)
        return {v: folder / v for n, v in enumerate(VARIANTS) if found[v] not in [found[w] for w in VARIANTS[:n]]}

    def close(self):
        for pin in self.pins.values():
            os.close(pin)


def contents_of(folder, unread=()):
    """Everything below `folder` but in `unread`: path -> bytes, None for a folder."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: path.read_bytes() if path.is_file() else None
        for name, path in paths.items()
        if not name.startswith(tuple(unread))
    }


class PowerCut(BaseException):
    """The power is gone: nothing in the process may catch it."""


PLACES = {
    "replace": ("begun", "written, not safe", "safe, not at its place", "at its place, not safe", "done"),
    "publish": ("begun", "safe, not at its place", "at its place, not safe", "done"),
    "remove": ("begun", "gone, not safe", "done"),
    "folder": ("begun", "made, not safe", "done"),
}
"""The fault points of each kind of durable write, in order."""


class Writes:
    """Stands in the way of every durable write of this process and follows it; at one point the power goes.

    A point is the write's purpose, how many of that purpose came before and a place of `PLACES`: `CREDENTIAL 2: done`.

    Args: at: called with the name of each point.
    """

    def __init__(self, patch, power, at):
        self.power, self.at = power, at
        self.seen, self.counts, self.ops = [], {}, []
        self.now = threading.local()
        for kind in PLACES:
            patch(SystemDisk, kind, self.around(kind, getattr(SystemDisk, kind)))
        patch(os, "fsync", self.fsync)
        patch(os, "replace", self.before_a_rename(os.replace))

    def around(self, kind, original):
        def write(disk, op, path, *args, **kwargs):
            if path.is_dir() if kind == "folder" else kind == "remove" and not path.exists():
                return original(disk, op, path, *args, **kwargs)  # there is nothing to do
            self.counts[op] = self.counts.get(op, 0) + 1
            self.ops.append(op)
            self.now.op, self.now.kind = f"{op} {self.counts[op]}", kind
            try:
                self.reach("begun")
                result = original(disk, op, path, *args, **kwargs)
                self.reach("done")
                return result
            finally:
                self.now.op = None

        return write

    def fsync(self, descriptor):
        """The true one is not needed, and slow: what is durable is `power`'s to say."""
        descriptor = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if self.op:
            places = {"folder": "made, not safe", "remove": "gone, not safe"}
            in_file = "written, not safe" if self.now.kind == "replace" else None
            of_file = not stat.S_ISDIR(os.fstat(descriptor).st_mode)
            place = in_file if of_file else places.get(self.now.kind, "at its place, not safe")
            if place:
                self.reach(place)
        self.power.note(descriptor)

    def before_a_rename(self, original):
        def replace(*args):
            if self.op:
                self.reach("safe, not at its place")
            original(*args)

        return replace

    @property
    def op(self):
        return getattr(self.now, "op", None)

    def reach(self, place):
        name = f"{self.op}: {place}"
        if name not in self.seen:  # a folder and those above it are made one by one
            self.seen.append(name)
            self.at(name)


def points(writes):
    """The names of the points of (kind, op) in this order."""
    counts, found = {}, []
    for kind, op in writes:
        counts[op] = counts.get(op, 0) + 1
        found += [f"{op} {counts[op]}: {place}" for place in PLACES[kind]]
    return found
