"""How much room the controller's disk has, and when that is too little to train on.

A full disk costs the round that runs into it. So nothing new is begun from a
low-water mark on: what the jobs still hand in, and one more version, must fit.
Below it there are no permits, each with this reason; above it, and a little
more, training goes on by itself. Bytes.
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
"""Training goes on only with so many times the low-water mark, so that it does not stop and start with every file."""

MEGABYTE = 1_000_000


class Room(Protocol):
    """What the use cases need to know of the disk."""

    reason: str  # why nothing may train; "" while there is room

    def look(self, sites: int) -> None:
        """Measure again; `sites` may hand in a contribution each."""
        ...


class Unwatched:
    """A disk that is never full."""

    reason = ""

    def look(self, sites: int) -> None:
        """Nothing is measured."""


@dataclass(frozen=True)
class FileSizes:
    """Bytes of what a run keeps on the controller's disk."""

    weights: int  # exact ones, as a sole site hands them in
    delta: int  # a contribution to a round of several sites
    version: int  # weights and what belongs to them


def file_sizes(model: GPTConfig, rounds: RoundsSection) -> FileSizes:
    """Sizes for a run's model and codecs, without the heads of the files.

    A version is its weights, the velocity of the outer step, its update as broadcast, and the residual of that,
    which is kept as int8.
    """
    shapes = weight_shapes(model)
    weights, residual = encoded_bytes(shapes, "fp32"), encoded_bytes(shapes, "int8")
    version = 2 * weights + encoded_bytes(shapes, rounds.broadcast_codec) + residual
    return FileSizes(weights, encoded_bytes(shapes, rounds.codec), version)


def low_water(sizes: FileSizes, sites: int) -> int:
    """Bytes below which nothing new is begun: the next version, a contribution of each site, and the store.

    Only one site at a time hands in exact weights; those of the others are deltas.
    """
    return 2 * RESERVE + sizes.version + sizes.weights + sizes.delta * max(0, sites - 1)


def judge(free: int, low: int, short: bool) -> str:
    """Why nothing may train, "" if there is room; `short`: there was none before."""
    needed = int(low * AGAIN) if short else low
    if free >= needed:
        return ""
    return (
        f"the controller's disk has only {free // MEGABYTE:,} MB left, {-(-needed // MEGABYTE):,} MB are needed;"
        " free some space there"
    )


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write to the disk of `folder`. Raises: DiskError."""
    try:
        return shutil.disk_usage(folder).free
    except OSError as error:
        raise disk_error("measure", folder, error) from error


class DiskRoom:
    """The disk of one folder.

    Args: sizes: of the run's files. free: measures; tests pass a fake.
    """

    def __init__(self, folder: Path, sizes: FileSizes, free: Callable[[Path], int] = free_bytes) -> None:
        self._folder, self._sizes, self._free = folder, sizes, free
        self.reason = ""

    def look(self, sites: int) -> None:
        """Measure again. A disk that cannot be measured counts as full."""
        try:
            free = self._free(self._folder)
        except DiskError as error:
            self.reason = f"the controller's disk cannot be measured: {error}"
            return
        self.reason = judge(free, low_water(self._sizes, sites), bool(self.reason))
