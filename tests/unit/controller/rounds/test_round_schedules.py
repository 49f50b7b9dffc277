"""Random histories of a run: whatever happens in whatever order, the ledger stays sound."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curtail import wire
from curtail.errors import AuthError, CurtailError, Refused

SITES = {"a": "A", "b": "B", "c": "A"}

sites = st.sampled_from(sorted(SITES))
moves = st.one_of(
    st.tuples(st.just("join"), sites),
    st.tuples(st.just("beat"), sites),
    st.tuples(st.just("new job"), sites),
    st.tuples(st.just("job dies"), sites),
    st.tuples(st.just("checkout"), sites),
    st.tuples(st.just("checkout"), sites),
    st.tuples(st.just("commit"), sites, st.integers(1, 12)),
    st.tuples(st.just("commit"), sites, st.integers(1, 12)),
    st.tuples(st.just("repeat"), sites),
    st.tuples(st.just("garbage"), sites),
    st.tuples(st.just("tick"), st.sampled_from([0.25, 1.0, 20.0, 80.0])),
    st.tuples(st.just("grid"), st.sampled_from("AB"), st.sampled_from([50.0, 450.0, None])),
    st.tuples(st.just("merge")),
    st.tuples(st.just("restart")),
)


class History:
    """Sites that behave, misbehave and die, against a controller in memory."""

    def __init__(self, world) -> None:
        self.world = world
        self.jobs: dict[str, str] = {}
        self.work: dict[str, wire.Assignment] = {}
        self.last: dict[str, tuple[str, wire.Assignment, int]] = {}
        self.count = 0

    def do(self, move: tuple) -> None:
        name, *rest = move
        getattr(self, name.replace(" ", "_"))(*rest)

    def join(self, site: str) -> None:
        self.world.join(site, SITES[site])
        self.jobs.pop(site, None)

    def new_job(self, site: str) -> None:
        self.count += 1
        self.jobs[site] = f"job{self.count}"
        self.work.pop(site, None)
        self.beat(site)

    def job_dies(self, site: str) -> None:
        self.jobs.pop(site, None)
        self.beat(site)

    def beat(self, site: str) -> None:
        job = self.jobs.get(site)
        self.world.beat(site, job, "train" if job else "paused")

    def checkout(self, site: str) -> None:
        if site in self.jobs:
            reply = self.world.checkout(site, self.jobs[site])
            if reply.assignment is not None:
                self.work[site] = reply.assignment

    def commit(self, site: str, steps: int) -> None:
        if site in self.work and site in self.jobs:
            self.last[site] = (self.jobs[site], self.work[site], steps)
            self.world.commit(site, self.jobs[site], self.work[site], steps)
            del self.work[site]

    def repeat(self, site: str) -> None:
        if site in self.last:
            job, work, steps = self.last[site]
            self.world.commit(site, job, work, steps)

    def garbage(self, site: str) -> None:
        if site in self.work and site in self.jobs:
            self.world.commit(site, self.jobs[site], self.work[site], 1, blob=self.world.upload(b"junk"))
            del self.work[site]

    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    def grid(self, region: str, mci: float | None) -> None:
        self.world.source.mci[region] = mci

    def merge(self) -> None:
        self.world.merge()

    def restart(self) -> None:
        self.world.start()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(moves, min_size=10, max_size=60))
def test_no_history_counts_a_sample_twice_or_loses_one(world_class, history):
    with tempfile.TemporaryDirectory() as folder:
        world = world_class(Path(folder), budget_steps=40)
        world.merger.automatic = False
        world.source.mci = {"A": 50.0, "B": 60.0}
        run = History(world)
        try:
            for site in SITES:
                run.join(site)
            run.tick(0.25)
            for move in history:
                try:
                    run.do(move)
                except (Refused, AuthError):
                    pass  # a refusal is an answer; it must change nothing
                except CurtailError as error:
                    raise AssertionError(f"{move}: {error}") from error
                assert world.store.call(lambda tx: tx.ledger_problems()) == []
            status = world.status()
            assert sum(s.tokens for s in world.store.call(lambda tx: tx.sites())) == status.tokens
            assert status.tokens <= status.token_budget
            run.tick(1000.0)
            run.merge()
            world.check()
        finally:
            world.store.close()
