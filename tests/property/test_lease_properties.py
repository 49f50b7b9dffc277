"""Leases: no sample is held twice or lost, whatever happens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controller.store import sample_pool
from controller.store.sample_pool import Pool, Range

moves = st.lists(
    st.tuples(st.sampled_from(["take", "lengthen", "return", "commit"]), st.integers(1, 9), st.integers(0, 9))
)


@given(st.integers(1, 200), moves)
def test_every_sample_is_pooled_leased_or_committed_exactly_once(limit, steps):
    pool, held, done = Pool(0, limit), [], []
    for what, size, pick in steps:
        if what == "take":
            pieces = [*(p.size for p in pool.returned), limit - pool.cursor]
            lease, pool = sample_pool.take(pool, size, pick)
            if lease is not None:
                held.append(lease)
                assert lease.size >= min(size, pick, max(pieces)), "never less than needed where there is more"
        elif held and what == "lengthen":
            at = pick % len(held)
            before = held[at]
            held[at], pool = sample_pool.lengthen(pool, before, before.size + size)
            assert held[at].start == before.start and before.size <= held[at].size <= before.size + size
        elif held:
            lease = held.pop(pick % len(held))
            cut = lease.stop if what == "commit" and pick % 2 else lease.start + (lease.size // 2)
            if what == "return":
                cut = lease.start
            done.append(Range(lease.start, cut))
            pool = sample_pool.give_back(pool, Range(cut, lease.stop))
    cells: list[int] = []
    for part in (*held, *done, *pool.returned, Range(pool.cursor, limit)):
        cells += range(part.start, part.stop)
    assert sorted(cells) == list(range(limit))
    assert pool.size == sum(p.size for p in pool.returned) + limit - pool.cursor
