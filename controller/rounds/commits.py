"""Checks a contribution and commits it durably; idempotent.

Everything happens in one transaction on the store's thread, so a receipt that was
sent is in the store. A repeated commit gets the first receipt.
"""

from __future__ import annotations

import secrets

from controller.rounds import lifecycle
from controller.rounds.leases import Leases
from controller.rounds.lifecycle import Member, MemberEvent, Round, RoundKind
from controller.store import Transaction
from controller.store.rows import MemberRow, RoundRow
from controller.store.sample_pool import Range
from curtail.config import RunConfig
from curtail.errors import Refused
from curtail.wire import CommitRequest, Receipt


class Commits:
    """Checks and commits contributions."""

    def __init__(self, config: RunConfig, members: Leases) -> None:
        self._config = config
        self._members = members

    def commit(self, tx: Transaction, request: CommitRequest, now: float) -> Receipt:
        """Make a contribution durable.

        Raises: Refused: wrong round, base, fencing token or counts, or a missing blob; then nothing changes.
        """
        row = tx.round(request.round)
        member = None if row is None else tx.member(request.round, request.site)
        if row is None or member is None:
            raise Refused(f"this site is not a member of round {request.round}", "check out again")
        if member.receipt and member.blob == request.blob:
            return Receipt(member.receipt, row.round, member.site, member.tokens, True)
        self._check(tx, row, member, request)
        state = lifecycle.advance_member(Member(member.state), MemberEvent.COMMIT)
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
            arrived_wall=now if member.arrived_wall is None else member.arrived_wall,
        )
        if request.keep:
            self._members.keep(tx, member, request.samples)
        else:
            self._members.give_back(tx, Range(member.lease_start + request.samples, member.lease_stop))
        return Receipt(receipt, row.round, member.site, request.tokens, False)

    def _check(self, tx: Transaction, row: RoundRow, member: MemberRow, request: CommitRequest) -> None:
        run, base = tx.run(), tx.version(row.base_version)
        assert run is not None and base is not None
        batch = self._config.training.batch_samples
        where = f"the commit of round {row.round}"
        if not _takes_commits(Round(row.state), Member(member.state)):
            raise Refused(f"{where} is too late: {member.reason or 'the round has ended'}", "check out again")
        if member.fence != request.fence or member.job != request.job:
            raise Refused(f"{where} is from another job than the one that has the lease", "check out again")
        if (request.base_version, request.base_digest) != (base.version, base.digest):
            raise Refused(f"{where} starts from other weights than version {base.version}", "check out again")
        if request.codec != member.codec:
            raise Refused(f"{where} has the codec {request.codec} instead of {member.codec}", "check out again")
        if not 0 < request.samples <= member.lease_stop - member.lease_start:
            raise Refused(f"{where} has {request.samples} samples, more than its lease")
        if request.samples != request.steps * batch or request.tokens != request.samples * run.sequence_len:
            raise Refused(f"{where}: the numbers of steps, samples and tokens do not match")
        if request.keep and not lifecycle.may_keep(RoundKind(row.kind), self._config.rounds.overlap):
            raise Refused(f"{where} keeps samples, but federated rounds of this run do not overlap", "do not keep any")
        if request.keep and tx.kept(member.site) is not None:
            raise Refused(f"{where} keeps samples, but the site already keeps others", "do not keep any")
        blob = tx.blob(request.blob)
        if blob is None or (blob.kind == "contribution" and blob.site not in ("", member.site)):
            raise Refused(f"{where} refers to a file that was not uploaded", "upload it, then commit again")


def _takes_commits(round_state: Round, state: Member) -> bool:
    return state is Member.LATE or (state is Member.TRAINING and round_state is Round.OPEN)
