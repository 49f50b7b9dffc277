"""The published text data sets that nanochat trains on: addresses and names of their shards.

Defines the file names of the shards, how many are for training, and which one is for
validation. The validation shard is fixed here and not "the last file that is present",
so that machines with different numbers of shards validate on the same text. Nothing is
downloaded here. Sizes are file sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from curtail.errors import UsageError

SHARD_BYTES = 100_000_000
"""Approximate size of a published shard, if it is unknown: 250 M characters, compressed."""


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A shuffled data set, split into parquet files with one column `text`."""

    name: str
    repository: str  # of the hub's data sets
    training_shards: int  # numbered from 0; the next number is the validation shard

    def shard_name(self, number: int) -> str:
        """The file name of a shard.

        Raises: UsageError: there is no such shard.
        """
        if not 0 <= number <= self.training_shards:
            raise UsageError(f"{self.name} has no shard {number}", f"its shards are 0 to {self.training_shards}")
        return f"shard_{number:05d}.parquet"

    @property
    def validation_name(self) -> str:
        """The file name of the validation shard."""
        return self.shard_name(self.training_shards)

    def names(self, count: int) -> tuple[str, ...]:
        """The file names of the first `count` training shards, in reading order.

        Raises: UsageError: there are fewer.
        """
        if not 1 <= count <= self.training_shards:
            raise UsageError(
                f"{self.name} has {self.training_shards} training shards, not {count}",
                f"choose a number from 1 to {self.training_shards}",
            )
        return tuple(self.shard_name(number) for number in range(count))


SETS = {
    published.name: published
    for published in (
        PublishedSet("fineweb-edu", "karpathy/fineweb-edu-100b-shuffle", 1822),
        PublishedSet("climbmix", "karpathy/climbmix-400b-shuffle", 6542),
    )
}
"""By the name for `curtail data fetch --dataset`. Source: nanochat/dataset.py of 2026-01-12 and 2026-07-03."""


def published_set(name: str) -> PublishedSet:
    """The data set of that name.

    Raises: UsageError: there is none.
    """
    if name not in SETS:
        raise UsageError(f"there is no published data set {name!r}", f"use one of {', '.join(SETS)}")
    return SETS[name]
