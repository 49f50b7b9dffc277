"""Starts merges of contributions, and publishes the result as a new version.

`Merger` does the arithmetic in another process; its result is passed to `publish`.
The files of the version are durable before the single transaction that records
version, tokens, samples and receipts. A crash in between repeats the merge.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from controller.aggregation.loss import mean_loss, smoothed, span_tokens
from controller.aggregation.outer_step import USUAL_OF, MergeResult, MergeSpec, Part, usual
from controller.files.uploads import Uploads
from controller.files.versions import Versions
from controller.rounds import lifecycle
from controller.rounds.leases import Members
from controller.rounds.lifecycle import Kind, Member, MemberEvent, Round, RoundEvent
from controller.store import Transaction
from controller.store.events import Event
from controller.store.rows import BlobRow, MemberRow, RoundRow, RunRow, VersionRow
from controller.store.sample_pool import Range
from curtail.config import RunConfig
from curtail.system.home_files import UPDATE_FILE
from nanochat.checkpoint import MODEL_FILE

MERGE_RETRY_S = 5.0
"""Pause before a failed merge (for example after a full disk) is retried."""


DOUBTFUL = 3
"""Refusals in a row after which the norms of earlier rounds are ignored. Otherwise a single site whose learning
rates were raised would repeat the same round forever."""


class Merger(Protocol):
    """Runs a merge in the background and reports once: the result, or None if it failed."""

    def start(self, spec: MergeSpec, done: Callable[[MergeResult | None], None]) -> None: ...


class Merging:
    """Starts merges, one at a time, and publishes versions.

    Args: merged: called after a merge failed or ended, in the merger's thread, with the spec and result.
    """

    def __init__(
        self,
        config: RunConfig,
        versions: Versions,
        uploads: Uploads,
        merger: Merger,
        members: Members,
        event: Event,
        merged: Callable[[MergeSpec, MergeResult | None], None],
    ) -> None:
        self._config = config
        self._versions = versions
        self._uploads = uploads
        self._merger = merger
        self._members = members
        self._event = event
        self._merged = merged
        self._merging: int | None = None
        self._retry_at = 0.0

    # -- before ------------------------------------------------------------------

    def retry(self, tx: Transaction, row: RoundRow, now: float) -> None:
        """Restart a merge after a restart of the controller, or some time after it failed."""
        if now >= self._retry_at:
            self.start(tx, row)

    def collect(self, tx: Transaction, now: float) -> RoundRow | None:
        """Start a round without members that merges late contributions; None if there are none.

        Call only while no round is live.
        """
        if not tx.waiting(Member.COMMITTED.value):
            return None
        base = tx.latest_version().version
        row = RoundRow(tx.next_round(), Kind.FEDERATED.value, Round.MERGING.value, base, now, now, 0, None)
        tx.add_round(row)
        self.start(tx, row)
        return row

    def start(self, tx: Transaction, row: RoundRow) -> None:
        """Start the merge of a round that is MERGING after this transaction is committed."""
        if self._merging == row.round:
            return
        run = tx.run()
        assert run is not None
        spec = self._spec(tx, run, row)

        def begin() -> None:
            if self._merging == row.round:
                return  # this transaction has already started the merge
            self._merging = row.round
            self._merger.start(spec, lambda result: self._merged(spec, result))

        tx.after_commit.append(begin)

    def _spec(self, tx: Transaction, run: RunRow, row: RoundRow) -> MergeSpec:
        settings = self._config.rounds
        number = tx.latest_version().version + 1
        # After several refusals in a row the usual norm has probably changed.
        recent = tx.recent_norms(USUAL_OF) if tx.refused_in_a_row() < DOUBTFUL else []
        usual_norm, usual_tokens = usual(recent)
        return MergeSpec(
            round=row.round,
            version=number,
            base=str(self._versions.path(row.base_version)),
            out=str(self._versions.prepare(number)),
            parts=tuple(self._part(tx, row, m) for m in self._contributions(tx, row)),
            codec=settings.broadcast_codec,
            outer=tuple((step.sites, step.lr, step.momentum) for step in settings.outer),
            momentum_off=lifecycle.momentum_off(run.tokens, run.sample_limit * run.sequence_len),
            tokens=run.tokens,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            usual_norm=usual_norm,
            usual_tokens=usual_tokens,
        )

    def _contributions(self, tx: Transaction, row: RoundRow) -> list[MemberRow]:
        """The contributions to merge: the round's own, and in a FEDERATED round late ones of earlier rounds."""
        waiting = tx.waiting(Member.COMMITTED.value)
        return [m for m in waiting if m.round == row.round or Kind(row.kind) is Kind.FEDERATED]

    def _part(self, tx: Transaction, row: RoundRow, member: MemberRow) -> Part:
        own = tx.round(member.round)
        assert own is not None
        blob = tx.blob(member.blob)
        path = str(self._uploads.path(member.blob)) if blob is None else blob.path
        stale = row.base_version - own.base_version
        weight = lifecycle.discount(self._config.rounds.staleness_discount, stale)
        return Part(
            part_name(row, member), path, member.codec, member.tokens, member.digest, weight=weight, stale=stale
        )

    # -- after ---------------------------------------------------------------------

    def publish(self, tx: Transaction, spec: MergeSpec, result: MergeResult | None, now: float) -> None:
        """Publish the merged version: weights, tokens, leases and receipts in one transaction."""
        self._merging = None
        row = tx.round(spec.round)
        if row is None or Round(row.state) is not Round.MERGING:
            return
        if result is None:
            self._retry_at = now + MERGE_RETRY_S
            self._event(tx, "merge", f"merging round {row.round} failed, retrying; see the controller's log")
            return
        parts = {part.site for part in spec.parts}
        members = [m for m in self._contributions(tx, row) if part_name(row, m) in parts]
        accepted = [m for m in members if part_name(row, m) in result.accepted]
        for member in members:
            if member not in accepted:
                self._refuse(tx, row, member, result.refused.get(part_name(row, member), "refused"))
        self._drop_contributions(tx, members)
        run = tx.run()
        assert run is not None
        if not accepted:
            tx.set_round(row.round, state=lifecycle.advance_round(Round.MERGING, RoundEvent.ALL_REFUSED).value)
            return
        state_after = lifecycle.advance_round(Round.MERGING, RoundEvent.VERSION_PUBLISHED)
        folder = self._versions.publish(spec.version)
        tokens, loss = self._accept(tx, row, accepted, spec.version, result)
        first = accepted[0].loss_first if run.loss_first is None else run.loss_first
        span = span_tokens(self._config.training.batch_samples, run.sequence_len)
        last = smoothed(run.loss_last, run.tokens, loss, tokens, span)
        self._add_version(tx, spec, result, folder, run.tokens + tokens, now)
        tx.set_round(row.round, state=state_after.value, version=spec.version)
        tx.set_run(tokens=run.tokens + tokens, loss_first=first, loss_last=last)
        self._event(
            tx,
            "version",
            f"version {spec.version} from round {row.round} ({', '.join(result.accepted)}),"
            f" its loss {'unknown' if loss is None else f'{loss:.3f}'}, digest {result.digest[:12]}",
        )
        self._prune(tx)

    def _refuse(self, tx: Transaction, row: RoundRow, member: MemberRow, reason: str) -> None:
        """Return the samples of a refused contribution; those that its job kept stay with it and are trained again."""
        state = lifecycle.advance_member(Member.COMMITTED, MemberEvent.REFUSE)
        tx.set_member(member.round, member.site, state=state.value, reason=reason)
        self._members.give_back(tx, Range(member.lease_start, member.lease_start + member.samples))
        self._event(tx, "member", f"round {row.round}: {part_name(row, member)} was refused: {reason}")

    def _accept(
        self, tx: Transaction, row: RoundRow, accepted: list[MemberRow], version: int, result: MergeResult
    ) -> tuple[int, float | None]:
        """Record the merged contributions. Returns: their tokens and mean loss."""
        state = lifecycle.advance_member(Member.COMMITTED, MemberEvent.MERGE)
        for member in accepted:
            norm = result.norms.get(part_name(row, member))
            tx.set_member(member.round, member.site, state=state.value, version=version, norm=norm)
            site = tx.site(member.site)
            assert site is not None
            tx.set_site(member.site, tokens=site.tokens + member.tokens)
        return sum(m.tokens for m in accepted), mean_loss((m.tokens, m.loss_mean) for m in accepted)

    def _drop_contributions(self, tx: Transaction, members: list[MemberRow]) -> None:
        """Delete uploads that are no longer needed: those of this merge, and those that came too late."""
        waiting = {m.blob for m in tx.waiting(Member.COMMITTED.value)} - {m.blob for m in members}
        late = bool(tx.waiting(Member.LATE.value))  # they may have uploaded their file without a commit yet
        merged = {m.blob for m in members}
        for blob in tx.blobs_of_kind("contribution"):
            if blob.sha256 not in waiting and (blob.sha256 in merged or not late):
                tx.drop_blob(blob.sha256)
                tx.after_commit.append(lambda name=blob.sha256: self._uploads.remove(name))  # type: ignore[misc]

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
            tx.put_blob(BlobRow(result.updates, str(folder / UPDATE_FILE), result.updates_size, "update"))

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


def part_name(row: RoundRow, member: MemberRow) -> str:
    """The name of a contribution in the merge of `row`; a site can have a late one besides its current one."""
    return member.site if member.round == row.round else f"{member.site}, late from round {member.round}"
