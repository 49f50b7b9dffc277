"""The pool of free samples, and leases taken from it; pure.

Samples are numbered from 0 without end. Sample i of the run is sample i modulo
the size of the data set, so that a long run makes several epochs. The pool is a
cursor (all samples from it on are new) and the ranges that were returned. Leases
are contiguous: step s of a lease with batch size B has the samples
[start + s*B, start + (s+1)*B).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Samples [start, stop)."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Pool:
    """The free samples. `returned` is ascending, disjoint and below `cursor`."""

    cursor: int
    limit: int  # one past the last sample of the run's budget
    returned: tuple[Range, ...] = ()

    @property
    def size(self) -> int:
        """How many samples can still be leased."""
        return self.limit - self.cursor + sum(part.size for part in self.returned)


def take(pool: Pool, wanted: int, least: int = 0) -> tuple[Range | None, Pool]:
    """Lease up to `wanted` contiguous samples; None if the pool is empty.

    The lease comes from the lowest range with at least `least` samples, else from the
    longest. A site with too few samples would idle until the others end their round.
    Shorter ranges are used when no longer one is left.
    """
    assert wanted > 0
    pieces = _pieces(pool)
    if not pieces:
        return None, pool
    enough = [piece for piece in pieces if piece.size >= min(least, wanted)]
    piece = enough[0] if enough else max(pieces, key=lambda piece: piece.size)
    return _cut(pool, piece, wanted)


def lengthen(pool: Pool, held: Range, wanted: int) -> tuple[Range, Pool]:
    """Extend `held` to at most `wanted` samples, if the samples after it are free."""
    following = [piece for piece in _pieces(pool) if piece.start == held.stop]
    if wanted <= held.size or not following:
        return held, pool
    more, rest = _cut(pool, following[0], wanted - held.size)
    return Range(held.start, more.stop), rest


def _pieces(pool: Pool) -> list[Range]:
    """The contiguous ranges of free samples, ascending."""
    fresh = [Range(pool.cursor, pool.limit)] if pool.cursor < pool.limit else []
    return [*pool.returned, *fresh]


def _cut(pool: Pool, piece: Range, wanted: int) -> tuple[Range, Pool]:
    """The first `wanted` samples of a range, and the pool without them."""
    lease = Range(piece.start, min(piece.stop, piece.start + wanted))
    if piece.start == pool.cursor:
        return lease, Pool(lease.stop, pool.limit, pool.returned)
    left = (Range(lease.stop, piece.stop),) if lease.stop < piece.stop else ()
    index = pool.returned.index(piece)
    return lease, Pool(pool.cursor, pool.limit, (*pool.returned[:index], *left, *pool.returned[index + 1 :]))


def give_back(pool: Pool, part: Range) -> Pool:
    """The pool after `part` was returned. Adjacent ranges are joined.

    Raises: ValueError: some of it was never leased, or is free already.
    """
    if part.size == 0:
        return pool
    if part.size < 0 or part.stop > pool.cursor or part.start < 0:
        raise ValueError(f"samples {part.start}..{part.stop} are not leased: never handed out, or returned already")
    merged: list[Range] = []
    for piece in sorted((*pool.returned, part)):
        if merged and piece.start < merged[-1].stop:
            raise ValueError(f"samples {part.start}..{part.stop} were returned twice")
        if merged and piece.start == merged[-1].stop:
            merged[-1] = Range(merged[-1].start, piece.stop)
        else:
            merged.append(piece)
    cursor = merged.pop().start if merged[-1].stop == pool.cursor else pool.cursor
    return Pool(cursor, pool.limit, tuple(merged))


def budget_samples(token_budget: int, sequence_len: int, batch_samples: int) -> int:
    """Samples of the whole run: the budget in full batches, rounded up to at least one."""
    per_step = sequence_len * batch_samples
    return max(1, token_budget // per_step) * batch_samples


def fair_share(pool_samples: int, inner_steps: int, batch_samples: int, sites: int) -> int:
    """Samples to lease to one of `sites`: a full round, or less near the end of the budget."""
    steps_left = pool_samples // batch_samples
    return min(inner_steps, -(-steps_left // max(1, sites))) * batch_samples
