"""The global weights on disk: one folder per version.

`HOME/versions/v000012/` is a checkpoint that `curtail eval` can read, with the
broadcast update and the outer velocity. A version is written to a folder whose
name starts with a dot. It is renamed when it is complete and durable; only then
may the store refer to it. Old versions are deleted, the newest N are kept.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from controller.files.trash import Trash
from curtail.errors import CheckpointError, CurtailError
from curtail.system.disk import SystemDisk, disk_error, fsync_folder
from nanochat import checkpoint, weights


class Versions:
    """The folder `HOME/versions`. Raises from all methods: DiskError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._removals = Trash(folder.parent / "removed")

    def path(self, version: int) -> Path:
        """Folder of a published version."""
        return self.folder / f"v{version:06d}"

    def prepare(self, version: int) -> Path:
        """An empty folder in which to create `version`; the remains of a crash are deleted."""
        making = self.folder / f".making-v{version:06d}"
        SystemDisk().folder("VERSIONS", self.folder)
        try:
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
        except OSError as error:
            raise disk_error("create", making, error) from error
        return making

    def publish(self, version: int) -> Path:
        """Rename the folder of `version` to its final name, durably.

        An existing folder of that name was left by a crash before its row was written; it is replaced.
        """
        making, final = self.folder / f".making-v{version:06d}", self.path(version)
        try:
            if final.exists():
                shutil.rmtree(final)
            fsync_folder(making)
            os.rename(making, final)
            fsync_folder(self.folder)
        except OSError as error:
            raise disk_error("publish", final, error) from error
        return final

    def remove(self, version: int) -> None:
        """Delete a version's folder; its disk space is freed some time later."""
        self._removals.take(self.path(version))

    def verify(self, version: int, digest: str) -> None:
        """Read a whole version and check its digest. Raises: CheckpointError: it does not match."""
        words, remedy = f"version {version} in {self.path(version)} is damaged", "restore the folder from a backup"
        try:
            _, found = checkpoint.read_checkpoint(self.path(version), verify=False)
        except CurtailError as error:
            raise CheckpointError(f"{words}: {error.message}", remedy) from error
        if weights.digest(found) != digest:
            raise CheckpointError(words, remedy)
