"""The use cases of a round: checkout, progress, commit, end, merge, publish.

Every method runs inside one transaction on the store's thread; what it answers
is durable when the answer leaves. Decisions are in `controller.rounds` and
`controller.leases`; merging happens beside, through `Merger`, and comes back
as `publish`. `now` is Unix time, because deadlines survive a restart.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from controller import leases, rounds
from controller.aggregate import MergeResult, MergeSpec, Part
from controller.blobs import Uploads
from controller.leases import Range
from controller.rounds import Kind, Member, MemberEvent, Round, RoundEvent
from controller.rows import BlobRow, MemberRow, RoundRow, RunRow, VersionRow
from controller.store import Transaction
from controller.versions import Versions
from curtail.config import RunConfig
from curtail.errors import Refused
from curtail.wire import (
    Assignment,
    CheckoutReply,
    CheckoutRequest,
    CommitRequest,
    Progress,
    ProgressReply,
    Receipt,
)
from nanochat.checkpoint import MODEL_FILE

log = logging.getLogger("curtail.rounds")

RETRY_S = 0.25
"""How soon a waiting job asks again; the wait is for a merge or the end of a round."""


MERGE_RETRY_S = 5.0
"""How soon a merge that failed (a full disk, say) is tried again."""


class Merger(Protocol):
    """Runs a merge beside the API and reports once: the result, or None if it failed."""

    def start(self, spec: MergeSpec, done: Callable[[MergeResult | None], None]) -> None: ...


class RoundKeeper:
    """All that happens to rounds.

    Args:
        event: notes one line in the event log: (transaction, kind, text).
        merged: called after a merge failed or ended, in the merger's thread, with the spec and result.
    """

    def __init__(
        self,
        config: RunConfig,
        versions: Versions,
        uploads: Uploads,
        merger: Merger,
        event: Callable[[Transaction, str, str], None],
        merged: Callable[[MergeSpec, MergeResult | None], None],
    ) -> None:
        self._config = config
        self._versions = versions
        self._uploads = uploads
        self._merger = merger
        self._event = event
        self._merged = merged
        self._merging: int | None = None
        self._retry_at = 0.0

    # -- checkout ------------------------------------------------------------

    def checkout(self, tx: Transaction, request: CheckoutRequest, now: float, ready: frozenset[str]) -> CheckoutReply:
        """Work for a site that may train; `ready` are the sites that could train now, this one among them."""
        run = tx.run()
        assert run is not None
        row = tx.live_round()
        if row is not None and Round(row.state) is Round.OPEN:
            mine = tx.member(row.round, request.site)
            if mine is not None and Member(mine.state) is Member.TRAINING:
                if mine.job == request.job:
                    return self._reply(tx, run, row, mine, request, now, len(ready))  # the answer was lost
                self._release(tx, row, mine, MemberEvent.JOB_ENDED, "a new job of the site took over")
                row = self._end_if_due(tx, row, now)
        if row is None:
            row = self._open(tx, ready, now)
            if row is None:
                return _wait("all samples of the token budget are given out; waiting for their commits")
        elif Round(row.state) is Round.MERGING:
            return _wait(f"round {row.round} is being merged")
        elif tx.member(row.round, request.site) is not None:
            return _wait(f"round {row.round} goes on without this site until the others commit")
        elif not rounds.may_enter(Kind(row.kind), row.opened_wall, row.deadline_wall, now):
            if Kind(row.kind) is Kind.LOCAL and not row.cut:
                tx.set_round(row.round, cut=1)
            return _wait(f"entering at the end of round {row.round}")
        member = self._lease(tx, row, request, len(ready))
        if member is None:
            return _wait("all samples of the token budget are given out; waiting for their commits")
        return self._reply(tx, run, row, member, request, now, len(ready))

    def _open(self, tx: Transaction, ready: frozenset[str], now: float) -> RoundRow | None:
        if tx.pool().size == 0:
            return None
        row = RoundRow(
            round=tx.next_round(),
            kind=(Kind.LOCAL if len(ready) <= 1 else Kind.FEDERATED).value,
            state=Round.OPEN.value,
            base_version=tx.latest_version().version,
            opened_wall=now,
            deadline_wall=now + self._config.rounds.length,
            cut=0,
            version=None,
        )
        tx.add_round(row)
        return row

    def _lease(self, tx: Transaction, row: RoundRow, request: CheckoutRequest, sites: int) -> MemberRow | None:
        pool = tx.pool()
        batch = self._config.training.batch_samples
        wanted = leases.fair_share(pool.size, self._config.rounds.inner_steps, batch, sites)
        if wanted == 0:
            return None
        lease, pool = leases.take(pool, wanted)
        assert lease is not None
        tx.set_pool(pool)
        rounds.advance_round(Round(row.state), RoundEvent.MEMBER_JOINED)
        local = Kind(row.kind) is Kind.LOCAL
        member = MemberRow(
            round=row.round,
            site=request.site,
            job=request.job,
            fence=request.fence,
            state=Member.TRAINING.value,
            lease_start=lease.start,
            lease_stop=lease.stop,
            codec="weights" if local else self._config.rounds.codec,
        )
        tx.add_member(member)
        return member

    def _reply(
        self,
        tx: Transaction,
        run: RunRow,
        row: RoundRow,
        member: MemberRow,
        request: CheckoutRequest,
        now: float,
        sites: int,
    ) -> CheckoutReply:
        base = tx.version(row.base_version)
        assert base is not None
        fetch, blob = self._fetch(tx, base, request)
        per_step = self._config.training.batch_samples * run.sequence_len
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
            tokens_per_step=per_step * (1 if Kind(row.kind) is Kind.LOCAL else max(1, sites)),
            codec=member.codec,
            members=sites,
        )
        return CheckoutReply("train", "", 0.0, assignment)

    def _fetch(self, tx: Transaction, base: VersionRow, request: CheckoutRequest) -> tuple[str, str]:
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
            return ProgressReply(True, f"this site is no member of round {progress.round} any more")
        if row.cut:
            return ProgressReply(True, "another site waits to enter")
        return ProgressReply(False, "")

    def commit(self, tx: Transaction, request: CommitRequest, now: float) -> Receipt:
        """Make a contribution durable. A repeat gets the first receipt.

        Raises: Refused: wrong round, base, fence, counts or a blob that is not here.
        """
        row = tx.round(request.round)
        member = None if row is None else tx.member(request.round, request.site)
        if row is None or member is None:
            raise Refused(f"this site has no part in round {request.round}", "check out again")
        if member.receipt and member.blob == request.blob:
            return Receipt(member.receipt, row.round, member.site, member.tokens, True)
        self._check_commit(tx, row, member, request)
        state = rounds.advance_member(Member(member.state), MemberEvent.COMMIT)
        receipt = secrets.token_hex(8)
        tx.set_member(
            row.round,
            member.site,
            state=state.value,
            samples=request.samples,
            tokens=request.tokens,
            steps=request.steps,
            blob=request.blob,
            digest=request.digest,
            receipt=receipt,
            seconds=request.seconds,
            loss_first=request.loss_first,
            loss_mean=request.loss_mean,
            loss_last=request.loss_last,
        )
        self._give_back(tx, Range(member.lease_start + request.samples, member.lease_stop))
        self._end_if_due(tx, row, now)
        return Receipt(receipt, row.round, member.site, request.tokens, False)

    def _check_commit(self, tx: Transaction, row: RoundRow, member: MemberRow, request: CommitRequest) -> None:
        run, base = tx.run(), tx.version(row.base_version)
        assert run is not None and base is not None
        batch = self._config.training.batch_samples
        where = f"the commit of round {row.round}"
        if Round(row.state) is not Round.OPEN or Member(member.state) is not Member.TRAINING:
            raise Refused(f"{where} comes too late: {member.reason or 'the round has ended'}", "check out again")
        if member.fence != request.fence or member.job != request.job:
            raise Refused(f"{where} comes from another job than the one that holds the lease", "check out again")
        if (request.base_version, request.base_digest) != (base.version, base.digest):
            raise Refused(f"{where} starts from other weights than version {base.version}", "check out again")
        if request.codec != member.codec:
            raise Refused(f"{where} is coded as {request.codec}, {member.codec} was asked for", "check out again")
        if not 0 < request.samples <= member.lease_stop - member.lease_start:
            raise Refused(f"{where} claims {request.samples} samples, outside of its lease")
        if request.samples != request.steps * batch or request.tokens != request.samples * run.sequence_len:
            raise Refused(f"{where}: steps, samples and tokens do not belong together")
        if tx.blob(request.blob) is None:
            raise Refused(f"{where} names a file that was not uploaded", "upload it, then commit again")

    # -- the end of a round ----------------------------------------------------

    def sweep(self, tx: Transaction, now: float, gone: Callable[[MemberRow], tuple[MemberEvent, str] | None]) -> None:
        """Release members that are gone, and end the round if it is due.

        Args: gone: says whether a member that should be training is gone, and why.
        """
        row = tx.live_round()
        if row is None:
            return
        if Round(row.state) is Round.MERGING:
            if now >= self._retry_at:
                self._start_merge(tx, row)  # after a restart, or when the last attempt failed
            return
        for member in tx.members(row.round):
            if Member(member.state) is Member.TRAINING and (why := gone(member)) is not None:
                self._release(tx, row, member, *why)
        self._end_if_due(tx, row, now)

    def extend(self, tx: Transaction, deadline: float) -> None:
        """After a restart: give the open round until `deadline` at least."""
        row = tx.live_round()
        if row is not None and row.deadline_wall < deadline:
            tx.set_round(row.round, deadline_wall=deadline)

    def release_site(self, tx: Transaction, site: str, now: float, reason: str) -> None:
        """The site joined anew or left: what it holds in the open round goes back."""
        row = tx.live_round()
        if row is None or Round(row.state) is not Round.OPEN:
            return
        member = tx.member(row.round, site)
        if member is not None and Member(member.state) is Member.TRAINING:
            self._release(tx, row, member, MemberEvent.JOB_ENDED, reason)
            self._end_if_due(tx, row, now)

    def _release(self, tx: Transaction, row: RoundRow, member: MemberRow, event: MemberEvent, reason: str) -> None:
        state = rounds.advance_member(Member(member.state), event)
        tx.set_member(row.round, member.site, state=state.value, reason=reason)
        self._give_back(tx, Range(member.lease_start, member.lease_stop))
        self._event(tx, "member", f"round {row.round}: {member.site} contributes nothing, {reason}")

    def _give_back(self, tx: Transaction, part: Range) -> None:
        tx.set_pool(leases.give_back(tx.pool(), part))

    def _end_if_due(self, tx: Transaction, row: RoundRow, now: float) -> RoundRow | None:
        """The round after looking whether it ends; None if it is over."""
        members = tx.members(row.round)
        event = rounds.ending((Member(m.state) for m in members), now, row.deadline_wall, self._config.rounds.grace)
        if event is None:
            return row
        if event is RoundEvent.DEADLINE_PASSED or event is RoundEvent.NOTHING_COMMITTED:
            for member in members:
                if Member(member.state) is Member.TRAINING:
                    self._release(tx, row, member, MemberEvent.DEADLINE_PASSED, "it missed the deadline")
        state = rounds.advance_round(Round(row.state), event)
        tx.set_round(row.round, state=state.value)
        if state is Round.ABANDONED:
            self._event(tx, "round", f"round {row.round} ended without a contribution")
            return None
        row = replace(row, state=state.value)
        self._start_merge(tx, row)
        return row

    # -- merge and publish -------------------------------------------------------

    def _start_merge(self, tx: Transaction, row: RoundRow) -> None:
        if self._merging == row.round:
            return
        run = tx.run()
        assert run is not None
        number = tx.latest_version().version + 1
        parts = tuple(
            Part(m.site, str(self._uploads.path(m.blob)), m.codec, m.tokens, m.digest)
            for m in tx.members(row.round)
            if Member(m.state) is Member.COMMITTED
        )
        spec = MergeSpec(
            round=row.round,
            version=number,
            base=str(self._versions.path(row.base_version)),
            out=str(self._versions.prepare(number)),
            parts=parts,
            codec=self._config.rounds.codec,
            outer_lr=self._config.rounds.outer_lr,
            outer_momentum=rounds.outer_momentum(
                self._config.rounds.outer_momentum, run.tokens, run.sample_limit * run.sequence_len
            ),
            tokens=run.tokens,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

        def begin() -> None:
            self._merging = row.round
            self._merger.start(spec, lambda result: self._merged(spec, result))

        tx.after_commit.append(begin)

    def publish(self, tx: Transaction, spec: MergeSpec, result: MergeResult | None, now: float) -> None:
        """Make the merged version true: weights, tokens, leases and receipts in one transaction."""
        self._merging = None
        row = tx.round(spec.round)
        if row is None or Round(row.state) is not Round.MERGING:
            return
        if result is None:
            self._retry_at = now + MERGE_RETRY_S
            self._event(tx, "merge", f"merging round {row.round} failed, trying again; see the controller's log")
            return
        run = tx.run()
        assert run is not None
        tokens, losses, first = 0, 0.0, run.loss_first
        for member in tx.members(row.round):
            if Member(member.state) is not Member.COMMITTED:
                continue
            if member.site in result.accepted:
                state = rounds.advance_member(Member.COMMITTED, MemberEvent.MERGE)
                tx.set_member(row.round, member.site, state=state.value)
                site = tx.site(member.site)
                assert site is not None
                tx.set_site(member.site, tokens=site.tokens + member.tokens)
                tokens += member.tokens
                losses += member.tokens * (member.loss_mean or 0.0)
                first = member.loss_first if first is None else first
            else:
                reason = result.refused.get(member.site, "refused")
                state = rounds.advance_member(Member.COMMITTED, MemberEvent.REFUSE)
                tx.set_member(row.round, member.site, state=state.value, reason=reason)
                self._give_back(tx, Range(member.lease_start, member.lease_start + member.samples))
                self._event(tx, "member", f"round {row.round}: {member.site} was refused, {reason}")
        # No round is open now, so what was uploaded and not merged can never be: it came too late or was refused.
        contributions = [blob.sha256 for blob in tx.blobs_of_kind("contribution")]
        tx.after_commit.append(lambda: self._drop(contributions))
        for blob in contributions:
            tx.drop_blob(blob)
        if not result.accepted:
            tx.set_round(row.round, state=rounds.advance_round(Round.MERGING, RoundEvent.ALL_REFUSED).value)
            return
        state_after = rounds.advance_round(Round.MERGING, RoundEvent.VERSION_PUBLISHED)
        folder = self._versions.publish(spec.version)
        self._add_version(tx, spec, result, folder, run.tokens + tokens, now)
        tx.set_round(row.round, state=state_after.value, version=spec.version)
        tx.set_run(tokens=run.tokens + tokens, loss_first=first, loss_last=losses / tokens)
        sites = ", ".join(result.accepted)
        self._event(
            tx, "version", f"version {spec.version} from round {row.round} ({sites}), loss {losses / tokens:.3f}"
        )
        self._prune(tx)

    def _add_version(
        self, tx: Transaction, spec: MergeSpec, result: MergeResult, folder: Path, tokens: int, now: float
    ) -> None:
        tx.add_version(
            VersionRow(
                version=spec.version,
                round=spec.round,
                tokens=tokens,
                digest=result.digest,
                weights=result.weights,
                updates=result.updates,
                created_wall=now,
                kept=1,
            )
        )
        tx.put_blob(BlobRow(result.weights, str(folder / MODEL_FILE), result.weights_size, "weights"))
        if result.updates:
            tx.put_blob(BlobRow(result.updates, str(folder / "update.safetensors"), result.updates_size, "update"))

    def _prune(self, tx: Transaction) -> None:
        kept = tx.kept_versions()
        for version in kept[: -self._config.rounds.keep_versions]:
            tx.set_version(version.version, kept=0)
            shared = {other.weights for other in kept[-self._config.rounds.keep_versions :]}
            for blob in (version.weights, version.updates):
                if blob and blob not in shared:
                    tx.drop_blob(blob)
            number = version.version
            tx.after_commit.append(lambda number=number: self._versions.remove(number))  # type: ignore[misc]

    def _drop(self, blobs: list[str]) -> None:
        for blob in blobs:
            self._uploads.remove(blob)


def _wait(reason: str) -> CheckoutReply:
    return CheckoutReply("wait", reason, RETRY_S, None)
