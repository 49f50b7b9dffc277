"""Hands in a job's contribution at the end of a round.

Decides the order of its steps: encode (`agent.job.encode`), keep the optimizer's
state, write, upload and commit (`agent.job.submit`). Runs on rank 0, in the training
thread or beside it (`agent.job.upload_thread`); uses neither model nor optimizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.job import optimizer_state
from agent.job.base_weights import BaseWeights
from agent.job.controller_link import ControllerLink
from agent.job.encode import EXACT, encode
from agent.job.optimizer_state import Kept
from agent.job.submit import ContributionFile, submit, write
from curtail import wire
from curtail.errors import CurtailError
from nanochat.delta import Encoded
from nanochat.train import TrainReport
from nanochat.weights import Weights

if TYPE_CHECKING:
    import torch

FILE = "contribution.safetensors"
"""In the job's folder, until it is committed, refused or given up."""


@dataclass(slots=True)
class LocalUpdate:
    """Host copies of what a round trained, taken between two steps."""

    assignment: wire.Assignment
    report: TrainReport
    keep: bool  # the job trains on, on the rest of its lease
    weights: Weights
    state: dict[str, torch.Tensor]  # of the optimizer, whole
    digest: str = ""  # of the weights, once computed

    @property
    def exact(self) -> bool:
        """Whether the weights themselves are handed in, to become the next version as they are."""
        return self.assignment.codec == EXACT


class Contributor:
    """Hands in what a job trained, one contribution after the other.

    Args: run: names the folder of optimizer states in the site's cache.
    """

    def __init__(self, link: ControllerLink, run: str) -> None:
        self.link = link
        self.folder = optimizer_state.folder_of(link.env.cache, run)
        self.residual: Encoded = {}  # what the last contribution's codec lost

    def hand_in(self, update: LocalUpdate) -> bool:
        """Commit what was trained; afterwards the base weights are a version that the controller knows.

        Returns: whether the controller accepted it.
        Raises: CheckpointError: the weights are not finite. AuthError, DiskError and others that a retry does not heal.
        """
        link, path = self.link, self.link.env.folder / FILE
        assert link.base is not None
        with link.seconds("encode"):
            contribution = encode(update.weights, link.base.weights, update.assignment.codec, self.residual)
        update.digest = contribution.digest
        if contribution.problem:
            link.log(f"the residual of the last contribution is dropped: {contribution.problem}")
        if update.exact:
            # Before the commit: a job that is killed right after it finds the state of exactly these weights.
            self._save_optimizer_state(update, {})
        try:
            residual, file = contribution.residual, write(link, contribution, path)
            del contribution  # its arrays must not stay in memory during the upload
            accepted = submit(link, file, self._request(update, file)) is not None
        finally:
            path.unlink(missing_ok=True)
        self.residual = residual if accepted else {}
        if not update.exact:
            self._save_optimizer_state(update, self.residual)
        elif accepted:
            # The next version is exactly these weights.
            link.base = BaseWeights(update.assignment.base_version + 1, update.digest, update.weights)
        return accepted

    def load_optimizer_state(self, assignment: wire.Assignment, batch_tokens: int) -> Kept | None:
        """The optimizer state that an earlier job of this site kept, if it still fits the base; takes its residual."""
        log = self.link.log
        kept = optimizer_state.load(self.folder, assignment.base_digest, assignment.tokens_before, batch_tokens, log)
        if kept is not None:
            self.residual = kept.residual
        return kept

    def _save_optimizer_state(self, update: LocalUpdate, residual: Encoded) -> None:
        tokens = update.assignment.tokens_before + update.report.steps * update.assignment.tokens_per_step
        kept, update.state = Kept(tokens, update.digest, update.state, residual), {}  # the copy ends with this call
        try:
            with self.link.seconds("keep"):
                optimizer_state.save(self.folder, kept, update.assignment.base_digest, self.link.disk)
        except CurtailError as error:
            self.link.log(f"the optimizer state is not kept: {error}")

    def _request(self, update: LocalUpdate, file: ContributionFile) -> wire.CommitRequest:
        env, assignment, report = self.link.env, update.assignment, update.report
        return wire.CommitRequest(
            site=env.site,
            fence=env.fence,
            job=env.job,
            round=assignment.round,
            base_version=assignment.base_version,
            base_digest=assignment.base_digest,
            steps=report.steps,
            samples=report.samples,
            tokens=report.tokens,
            blob=file.sha256,
            codec=assignment.codec,
            digest=update.digest if update.exact else "",
            loss_first=finite(report.loss_first),
            loss_mean=finite(report.loss_mean),
            loss_last=finite(report.loss_last),
            seconds=report.seconds,
            keep=update.keep,
        )


def finite(loss: float | None) -> float | None:
    """A loss as the protocol allows it: None if it is not a finite number."""
    return loss if loss is not None and math.isfinite(loss) else None
