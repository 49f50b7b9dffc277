"""The use cases of a round: checkout, progress, commit, end, merge, publish.

Every method runs inside one transaction on the store's thread; a reply is sent only
after the commit. `controller.rounds.lifecycle` and `controller.store.sample_pool`
make the decisions; `leases`, `commits` and `publish` write them to the store. `now`
is Unix time, because deadlines survive a restart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from controller.aggregation.outer_step import MergeResult, MergeSpec
from controller.files.uploads import Uploads
from controller.files.versions import Versions
from controller.rounds import lifecycle
from controller.rounds.commits import Commits
from controller.rounds.leases import Gone, Leases
from controller.rounds.lifecycle import Member, Round, RoundEvent, RoundKind
from controller.rounds.publish import Merger, Publisher
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import MemberRow, RoundRow, VersionRow
from curtail.config import RunConfig
from curtail.wire import (
    Assignment,
    CheckoutReply,
    CheckoutRequest,
    CommitRequest,
    Progress,
    ProgressReply,
    Receipt,
)

RETRY_S = 0.25
"""How soon a job that waits for a merge or the end of a round asks again."""

ARRIVALS = 20
"""Number of recent contributions from which the grace is computed."""

NOTHING_LEFT = "all samples of the token budget are leased; waiting for their commits"


class RoundCoordinator:
    """Coordinates rounds: admits members, ends rounds, starts merges.

    Args:
        event: adds a line to the event log: (transaction, kind, text).
        merged: called after a merge failed or ended, in the merger's thread, with the spec and result.
    """

    def __init__(
        self,
        config: RunConfig,
        versions: Versions,
        uploads: Uploads,
        merger: Merger,
        event: Event,
        merged: Callable[[MergeSpec, MergeResult | None], None],
    ) -> None:
        self._config = config
        self._event = event
        self._members = Leases(config, event)
        self._commits = Commits(config, self._members)
        self._merging = Publisher(config, versions, uploads, merger, self._members, event, merged)
        self.publish = self._merging.publish

    # -- checkout ------------------------------------------------------------

    def checkout(self, tx: Transaction, request: CheckoutRequest, now: float, ready: frozenset[str]) -> CheckoutReply:
        """Assign work to a site that may train. Args: ready: all sites that could train now, including this one.

        A closing job gets only the samples that it kept, and may wait only for a merge; otherwise it must leave.
        """
        row = tx.live_round()
        if row is not None and Round(row.state) is Round.OPEN:
            mine = tx.member(row.round, request.site)
            if mine is not None and Member(mine.state) is Member.TRAINING and mine.job == request.job:
                return self._reply(tx, row, mine, request, now, len(ready))  # the first reply was lost
        self._members.release_site(tx, request.site, "another job or other work of the site took over", request.job)
        if row is not None and Round(row.state) is Round.OPEN:
            row = self._end_if_due(tx, row, now)
        kept = tx.kept(request.site)
        if request.closing and kept is None:
            return CheckoutReply("leave", "there is nothing left to contribute", 0.0, None)
        why = self._closed(tx, row, request, now, ready)
        if why is None:
            row = row or self._open(tx, ready, now)
            member = self._members.lease(tx, row, request, ready)
            assert member is not None, "`_closed` checked that samples are left"
            lifecycle.advance_round(Round(row.state), RoundEvent.MEMBER_JOINED)
            return self._reply(tx, row, member, request, now, len(ready))
        live = tx.live_round()
        if request.closing and (live is None or Round(live.state) is not Round.MERGING):
            return CheckoutReply("leave", why, 0.0, None)
        return CheckoutReply("wait", why, RETRY_S, None)

    def _closed(
        self, tx: Transaction, row: RoundRow | None, request: CheckoutRequest, now: float, ready: frozenset[str]
    ) -> str | None:
        """Why the site cannot enter a round now; None if it can."""
        if row is None and len(ready) <= 1:
            # Late contributions are merged first: a LOCAL round publishes exact weights and cannot include them.
            row = self._merging.collect(tx, now)
        if row is not None and Round(row.state) is Round.MERGING:
            return f"round {row.round} is being merged"
        if row is not None and tx.member(row.round, request.site) is not None:
            return f"round {row.round} continues without this site until the others commit"
        if row is not None and not self._may_enter(row, request, now):
            if RoundKind(row.kind) is RoundKind.LOCAL and not row.cut and not request.closing:
                tx.set_round(row.round, cut=1)
            return f"waiting for the end of round {row.round}"
        if tx.pool().size == 0 and tx.kept(request.site) is None:
            return NOTHING_LEFT
        return None

    def _may_enter(self, row: RoundRow, request: CheckoutRequest, now: float) -> bool:
        if request.closing:  # it needs no time to train, because its contribution is finished
            return RoundKind(row.kind) is RoundKind.FEDERATED and now < row.deadline_wall
        return lifecycle.may_enter(RoundKind(row.kind), row.opened_wall, row.deadline_wall, now)

    def _open(self, tx: Transaction, ready: frozenset[str], now: float) -> RoundRow:
        row = RoundRow(
            round=tx.next_round(),
            kind=(RoundKind.LOCAL if len(ready) <= 1 else RoundKind.FEDERATED).value,
            state=Round.OPEN.value,
            base_version=tx.latest_version().version,
            opened_wall=now,
            deadline_wall=now + self._config.rounds.length,
            cut=0,
            version=None,
        )
        tx.add_round(row)
        return row

    def _reply(
        self, tx: Transaction, row: RoundRow, member: MemberRow, request: CheckoutRequest, now: float, sites: int
    ) -> CheckoutReply:
        base, run, kind = tx.version(row.base_version), tx.run(), RoundKind(row.kind)
        assert base is not None and run is not None
        batch, settings = self._config.training.batch_samples, self._config.rounds
        keep = lifecycle.may_keep(kind, settings.overlap)
        together = 1 if kind is RoundKind.LOCAL else max(1, sites)
        rate, memory = lifecycle.inner_factors(together, *settings.powers)
        fetch, blob = self._fetch(tx, base, request, member, keep)
        assignment = Assignment(
            round=row.round,
            base_version=base.version,
            base_digest=base.digest,
            fetch=fetch,
            blob=blob,
            lease_start=member.lease_start,
            lease_stop=member.lease_stop,
            train_s=max(0.0, row.deadline_wall - now),
            tokens_before=base.tokens,
            tokens_per_step=batch * run.sequence_len * together,
            codec=member.codec,
            members=sites,
            steps=min(settings.inner_steps, (member.lease_stop - member.lease_start) // batch),
            keep=keep,
            rate_factor=rate,
            memory_factor=memory,
        )
        return CheckoutReply("train", "", 0.0, assignment)

    def _fetch(
        self, tx: Transaction, base: VersionRow, request: CheckoutRequest, member: MemberRow, keep: bool
    ) -> tuple[str, str]:
        last = tx.last_part(request.site, member.round) if keep else None
        if last is not None and last.job == request.job and Member(last.state) is Member.REFUSED:
            # The job's further steps build on weights that were never published.
            return "weights", base.weights
        if request.held_digest == base.digest:
            return "none", ""
        before = tx.version(base.version - 1) if base.version > 0 else None
        if base.updates and before is not None and request.held_digest == before.digest:
            return "update", base.updates
        return "weights", base.weights

    # -- while it runs -------------------------------------------------------

    def progress(self, tx: Transaction, progress: Progress) -> ProgressReply:
        """Should the site commit now?"""
        row = tx.round(progress.round)
        if row is None or Round(row.state) is not Round.OPEN:
            return ProgressReply(True, f"round {progress.round} has ended")
        member = tx.member(progress.round, progress.site)
        if member is None or Member(member.state) is not Member.TRAINING:
            return ProgressReply(True, f"this site is no longer a member of round {progress.round}")
        if row.cut:
            return ProgressReply(True, "another site waits to enter")
        return ProgressReply(False, "")

    def commit(self, tx: Transaction, request: CommitRequest, now: float) -> Receipt:
        """Commit a contribution. A retry gets the first receipt.

        Raises: Refused: wrong round, base, fencing token or counts, or a missing blob.
        """
        receipt = self._commits.commit(tx, request, now)
        row = tx.live_round()
        if row is not None and row.round == request.round and Round(row.state) is Round.OPEN:
            self._end_if_due(tx, row, now)
        return receipt

    # -- the end of a round ----------------------------------------------------

    def sweep(self, tx: Transaction, now: float, gone: Gone) -> None:
        """Release the samples of jobs that are gone. End the round, or start a merge, if that is due.

        Args: gone: says whether a job that should be training is gone, and why.
        """
        self._members.sweep(tx, gone)
        row = tx.live_round()
        if row is None:
            self._merging.collect(tx, now)
        elif Round(row.state) is Round.MERGING:
            self._merging.retry(tx, row, now)
        else:
            self._end_if_due(tx, row, now)

    def resume(self, tx: Transaction, now: float, least: float) -> None:
        """After a restart, set the open round's deadline between `least` seconds and its full length from now.

        The upper limit matters only if the machine's clock was set back meanwhile.
        """
        row = tx.live_round()
        if row is not None:
            latest = now + max(least, self._config.rounds.length)
            tx.set_round(row.round, deadline_wall=min(max(row.deadline_wall, now + least), latest))

    def release_site(self, tx: Transaction, site: str, now: float, reason: str) -> None:
        """Release all samples that the site's jobs hold, because it left or joined again."""
        self._members.release_site(tx, site, reason)
        row = tx.live_round()
        if row is not None and Round(row.state) is Round.OPEN:
            self._end_if_due(tx, row, now)

    def _end_if_due(self, tx: Transaction, row: RoundRow, now: float) -> RoundRow | None:
        """End the round if that is due. Returns: the open round, or None if it has ended."""
        settings = self._config.rounds
        members = tx.members(row.round)
        event = lifecycle.ending(
            (Member(m.state) for m in members),
            now,
            closes=row.deadline_wall + (self.grace(tx, row) if now >= row.deadline_wall else settings.grace),
            last=row.deadline_wall + settings.grace + settings.length,
            quorum=settings.quorum,
        )
        if event is None:
            return row
        for member in members:
            if Member(member.state) is Member.TRAINING:
                overdue = lifecycle.overdue(RoundKind(row.kind), settings.staleness_discount)
                tx.set_member(row.round, member.site, arrived_wall=row.deadline_wall + settings.grace)
                self._members.release(tx, member, overdue, "it missed the deadline")
        state = lifecycle.advance_round(Round(row.state), event)
        tx.set_round(row.round, state=state.value)
        if state is Round.ABANDONED:
            self._event(tx, "round", f"round {row.round} ended without a contribution")
            return None
        row = replace(row, state=state.value)
        self._merging.start(tx, row)
        return row

    def grace(self, tx: Transaction, row: RoundRow) -> float:
        """The round's grace in seconds, from the lateness of recent contributions of its kind."""
        return lifecycle.grace(tx.lateness(row.kind, ARRIVALS), self._config.rounds.grace)
