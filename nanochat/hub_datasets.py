"""The published text data sets that nanochat trains on: where their shards lie.

Decides names and numbers only: which shard has which file name, how many are for
training, and which one is for validation. That one is named here and never "the
last file that is present", so that machines with different numbers of shards
validate on the same text. Nothing is fetched here. Sizes in bytes of files.
"""

from __future__ import annotations

from dataclasses import dataclass

from curtail.errors import UsageError

SHARD_BYTES = 100_000_000
"""About what a published shard weighs, where nobody tells its size: 250 M characters, compressed."""


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A shuffled data set, cut into parquet files with one column `text`."""

    name: str
    repository: str  # of the hub's data sets
    training_shards: int  # numbered from 0; the next number is for validation

    def shard_name(self, number: int) -> str:
        """The file name of a shard.

        Raises: UsageError: there is no such shard.
        """
        if not 0 <= number <= self.training_shards:
            raise UsageError(f"{self.name} has no shard {number}", f"its shards are 0 to {self.training_shards}")
        return f"shard_{number:05d}.parquet"

    @property
    def validation_name(self) -> str:
        """The file name of the shard for validation, the same for everybody."""
        return self.shard_name(self.training_shards)

    def names(self, count: int) -> tuple[str, ...]:
        """The file names of the first `count` training shards, in reading order.

        Raises: UsageError: there are not so many.
        """
        if not 1 <= count <= self.training_shards:
            raise UsageError(
                f"{self.name} has {self.training_shards} training shards, so {count} are not possible",
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
"""By the name that `curtail data fetch --dataset` takes. Source: nanochat/dataset.py of 2026-01-12 and 2026-07-03."""


def published_set(name: str) -> PublishedSet:
    """The data set of that name.

    Raises: UsageError: there is none.
    """
    if name not in SETS:
        raise UsageError(f"there is no published data set {name!r}", f"use one of {', '.join(SETS)}")
    return SETS[name]
