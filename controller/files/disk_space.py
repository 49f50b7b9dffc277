"""Measures free space on the controller's disk and stops training below a low-water mark.

A full disk would cost the round that hits it. So below the low-water mark no
permits are granted; the mark leaves space for the contributions under way and one
more version. Training resumes by itself at `AGAIN` times the mark. Bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from controller.files.uploads import RESERVE
from curtail.config import RoundsSection
from curtail.errors import DiskError
from curtail.system.disk import disk_error
from nanochat.codecs import encoded_bytes
from nanochat.presets import GPTConfig, weight_shapes

AGAIN = 1.25
"""Hysteresis: training resumes at this multiple of the mark, so that it does not stop and start with every file."""

MEGABYTE = 1_000_000


class Room(Protocol):
    """Free disk space, as the use cases see it."""

    reason: str  # why nothing may train; "" while there is enough space

    def measure(self, sites: int) -> None:
        """Measure the free space; up to `sites` sites may each upload a contribution."""
        ...


class Unwatched:
    """A disk that is never full."""

    reason = ""

    def measure(self, sites: int) -> None:
        """Measure nothing."""


@dataclass(frozen=True)
class FileSizes:
    """Sizes of a run's files on the controller's disk, in bytes."""

    weights: int  # exact weights, the contribution of a site that trains alone
    delta: int  # the contribution of one of several sites: a pseudo-gradient
    version: int  # the weights and the other files of a version


def file_sizes(model: GPTConfig, rounds: RoundsSection) -> FileSizes:
    """Sizes for a run's model and codecs, without file headers.

    A version has its weights, the velocity of the outer step, the broadcast update, and the update's residual
    as int8.
    """
    shapes = weight_shapes(model)
    weights, residual = encoded_bytes(shapes, "fp32"), encoded_bytes(shapes, "int8")
    version = 2 * weights + encoded_bytes(shapes, rounds.broadcast_codec) + residual
    return FileSizes(weights, encoded_bytes(shapes, rounds.codec), version)


def low_water(sizes: FileSizes, sites: int) -> int:
    """The low-water mark in bytes: space for the next version, a contribution of each site, and the store.

    At most one site contributes exact weights; the others contribute pseudo-gradients.
    """
    return 2 * RESERVE + sizes.version + sizes.weights + sizes.delta * max(0, sites - 1)


def judge(free: int, low: int, short: bool) -> str:
    """Why nothing may train; "" if there is enough space. Args: short: there was too little before."""
    needed = int(low * AGAIN) if short else low
    if free >= needed:
        return ""
    return (
        f"the controller's disk has only {free // MEGABYTE:,} MB left, but needs {-(-needed // MEGABYTE):,} MB;"
        " free some space there"
    )


def free_bytes(folder: Path) -> int:
    """Free bytes for this process on the disk of `folder`. Raises: DiskError."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_error("measure", folder, error) from error


class DiskRoom:
    """The disk of one folder.

    Args: sizes: of the run's files. free: measures the free bytes; tests pass a fake.
    """

    def __init__(self, folder: Path, sizes: FileSizes, free: Callable[[Path], int] = free_bytes) -> None:
        self._folder, self._sizes, self._free = folder, sizes, free
        self.reason = ""

    def measure(self, sites: int) -> None:
        """Measure the free space. A disk that cannot be measured counts as full."""
        try:
            free = self._free(self._folder)
        except DiskError as error:
            self.reason = f"the controller's disk cannot be measured: {error}"
            return
        self.reason = judge(free, low_water(self._sizes, sites), bool(self.reason))
