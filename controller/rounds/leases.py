"""Leases of samples: granted at checkout, kept after a commit, released to the pool.

Every leased sample ends in exactly one way: it is merged into a version, or it
returns to the pool. Methods run inside one transaction on the store's thread.
`controller.rounds.lifecycle` and `controller.store.sample_pool` make the decisions.
"""

from __future__ import annotations

from collections.abc import Callable

from controller.rounds import lifecycle
from controller.rounds.lifecycle import Member, MemberEvent, RoundKind
from controller.store import Transaction, sample_pool
from controller.store.events import Event
from controller.store.rows import KeptRow, MemberRow, RoundRow
from controller.store.sample_pool import Range
from curtail.config import RunConfig
from curtail.wire import CheckoutRequest

Gone = Callable[[str, str], tuple[MemberEvent, str] | None]
"""(site, job) -> whether that job, which should be training, is gone, and why."""


ROUNDS = 3
"""How many of a site's latest contributions show the samples that it needs; a single one may have been cut short."""


class Leases:
    """Leases of all sites, from checkout to return."""

    def __init__(self, config: RunConfig, event: Event) -> None:
        self._config = config
        self._event = event

    # -- leasing ---------------------------------------------------------------

    def lease(
        self, tx: Transaction, row: RoundRow, request: CheckoutRequest, ready: frozenset[str]
    ) -> MemberRow | None:
        """Make the site a member of the open round; None if there is nothing left to lease.

        A job that kept samples gets these first, and more only if the samples
        right after them are free; a closing job gets no others.
        """
        lease = self._take(tx, row, request, ready)
        if lease is None:
            return None
        member = MemberRow(
            round=row.round,
            site=request.site,
            job=request.job,
            fence=request.fence,
            state=Member.TRAINING.value,
            lease_start=lease.start,
            lease_stop=lease.stop,
            codec="weights" if RoundKind(row.kind) is RoundKind.LOCAL else self._config.rounds.codec,
        )
        tx.add_member(member)
        return member

    def _take(self, tx: Transaction, row: RoundRow, request: CheckoutRequest, ready: frozenset[str]) -> Range | None:
        pool, kept = tx.pool(), tx.kept(request.site)
        if kept is None:
            ahead = lifecycle.may_keep(RoundKind(row.kind), self._config.rounds.overlap)
            wanted = self._share(tx, row, pool.size, ahead, ready)
            least = self._worth(tx, request.site) if pool.returned else 0  # without returned ranges there is no choice
            lease, pool = sample_pool.take(pool, wanted, least) if wanted else (None, pool)
        else:
            own = Range(kept.start, kept.stop)
            wanted = own.size if request.closing else self._share(tx, row, pool.size, True, ready)
            if wanted < own.size:  # it kept more than its share; the others need the rest
                lease = Range(own.start, own.start + wanted)
                pool = sample_pool.give_back(pool, Range(lease.stop, own.stop))
            else:
                lease, pool = sample_pool.lengthen(pool, own, wanted)
            tx.drop_kept(request.site)
        if lease is not None:
            tx.set_pool(pool)
        return lease

    def _share(self, tx: Transaction, row: RoundRow, free: int, ahead: bool, ready: frozenset[str]) -> int:
        """Samples of a full lease: those of a round, plus those for overlapped steps if `ahead`.

        Near the end of the budget each ready site without a lease in this round gets an equal part of the `free` and
        kept samples. Sites that have a lease do not count: otherwise some samples would be left over each time, and
        the end of the budget would be trained in ever smaller rounds.
        """
        settings, batch = self._config.rounds, self._config.training.batch_samples
        steps = settings.inner_steps + (settings.ahead if ahead else 0)
        share = sample_pool.fair_share(free, steps, batch, len(ready))
        if share == steps * batch:
            return share  # there is enough for all
        served = {member.site for member in tx.members(row.round)}
        kept = sum(held.stop - held.start for held in tx.all_kept() if held.site not in served)
        return sample_pool.fair_share(free + kept, steps, batch, len(ready - served))

    def _worth(self, tx: Transaction, site: str) -> int:
        """Smallest useful range of samples: half of the site's round, by its latest contributions or the run file."""
        settings = self._config
        used = tx.used_lately(site, ROUNDS) or settings.rounds.inner_steps * settings.training.batch_samples
        return used // 2

    def keep(self, tx: Transaction, member: MemberRow, samples: int) -> None:
        """After a commit of `samples` samples, keep the rest of the lease for the job's overlapped steps."""
        start = member.lease_start + samples
        if start < member.lease_stop:
            tx.put_kept(KeptRow(member.site, member.fence, member.job, start, member.lease_stop))

    # -- releasing -------------------------------------------------------------

    def release(self, tx: Transaction, member: MemberRow, event: MemberEvent, reason: str) -> None:
        """Release the lease of a member without a contribution; a member that may be late keeps it."""
        state = lifecycle.advance_member(Member(member.state), event)
        tx.set_member(member.round, member.site, state=state.value, reason=reason)
        if state is Member.LATE:
            self._event(tx, "member", f"round {member.round}: {member.site} is late: {reason}")
            return
        self.give_back(tx, Range(member.lease_start, member.lease_stop))
        self._event(tx, "member", f"round {member.round}: {member.site} contributes nothing: {reason}")

    def release_kept(self, tx: Transaction, kept: KeptRow, reason: str) -> None:
        """Return a job's kept samples to the pool."""
        tx.drop_kept(kept.site)
        self.give_back(tx, Range(kept.start, kept.stop))
        self._event(tx, "member", f"{kept.site} returns samples {kept.start}..{kept.stop}: {reason}")

    def give_back(self, tx: Transaction, part: Range) -> None:
        """Return samples to the pool."""
        tx.set_pool(sample_pool.give_back(tx.pool(), part))

    def release_site(self, tx: Transaction, site: str, reason: str, besides: str | None = None) -> None:
        """Release all samples of the site's jobs, in any round, except those that job `besides` keeps."""
        row = tx.live_round()
        mine = None if row is None else tx.member(row.round, site)
        if mine is not None and Member(mine.state) is Member.TRAINING and mine.job != besides:
            self.release(tx, mine, MemberEvent.JOB_ENDED, reason)
        for member in tx.waiting(Member.LATE.value):
            # A job that asks for work has discarded the contributions that it did not commit.
            if member.site == site:
                self.release(tx, member, MemberEvent.JOB_ENDED, reason)
        kept = tx.kept(site)
        if kept is not None and kept.job != besides:
            self.release_kept(tx, kept, reason)

    def sweep(self, tx: Transaction, gone: Gone) -> None:
        """Release the samples of jobs that are gone: of the open round, of late rounds, and kept ones."""
        row = tx.live_round()
        for member in [] if row is None else tx.members(row.round):
            if Member(member.state) is Member.TRAINING and (why := gone(member.site, member.job)) is not None:
                self.release(tx, member, *why)
        # While the live round merges, it can have late members, too; each is released once.
        for member in tx.waiting(Member.LATE.value):
            why = gone(member.site, member.job)
            if self._config.rounds.staleness_discount == 0:
                why = MemberEvent.JOB_ENDED, "late contributions are no longer accepted"
            if why is not None:
                self.release(tx, member, *why)
        for kept in tx.all_kept():
            if (why := gone(kept.site, kept.job)) is not None:
                self.release_kept(tx, kept, why[1])
