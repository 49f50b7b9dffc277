"""What a job hands in at the end of a round, and how long it tries.

Decides the form of a contribution (exact weights or a coded delta), when the
inner optimizer's state is written, and how long a finished contribution waits for
a controller that cannot be reached. Runs on rank 0, in the training thread or
beside it (`agent.job.upload_thread`); touches neither model nor optimizer. Units: seconds
of `Clock.monotonic`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agent.http.transfer import pause_s, upload
from agent.job import optimizer_state
from agent.job.controller_link import BaseWeights, ControllerLink
from agent.job.optimizer_state import Kept
from curtail import wire
from curtail.errors import CheckpointError, CurtailError, DiskError, Refused, Unreachable
from curtail.system.disk import Disk, file_sha256
from nanochat import weights as weight_sets
from nanochat.delta import Encoded, all_finite, difference, encode_with_feedback, write_delta
from nanochat.train import TrainReport
from nanochat.weights import Weights

if TYPE_CHECKING:
    import torch

FILE = "contribution.safetensors"
"""In the job's folder; lies there until it is committed, refused or given up."""

WAITING = "waiting for the controller with a finished contribution"
NO_SPACE = "waiting for space on this machine's disk with a finished contribution"


@dataclass(slots=True)
class LocalUpdate:
    """Host copies of what a round made, taken at a step boundary."""

    assignment: wire.Assignment
    report: TrainReport
    keep: bool  # the job trains on, on the rest of the lease
    weights: Weights
    state: dict[str, torch.Tensor]  # of the optimizer, whole
    digest: str = ""  # of the weights, once computed


class Contributor:
    """Hands in what a job made, one contribution after the other.

    Args: run: names the folder of optimizer states in the site's cache.
    """

    def __init__(self, link: ControllerLink, run: str, disk: Disk) -> None:
        self.link, self.disk = link, disk
        self.folder = optimizer_state.folder_of(link.env.cache, run)
        self.residual: Encoded = {}  # what coding lost, added to the next delta

    def hand_in(self, update: LocalUpdate) -> bool:
        """Commit what was made; afterwards the base copy is what the controller knows. False: it was not taken.

        Raises: CheckpointError: weights that are not finite. AuthError, DiskError and others
            that another try does not heal.
        """
        if not all_finite(update.weights):
            # A new process gets the base and an optimizer without the damage.
            raise CheckpointError(
                f"round {update.assignment.round} made weights that are not finite", "lower the learning rates"
            )
        link, exact = self.link, update.assignment.codec == "weights"
        path = link.env.folder / FILE
        with link.seconds("encode"):
            update.digest = weight_sets.digest(update.weights)
        if exact:
            # Before the commit: a job that is killed right after it finds the state of exactly these weights.
            self._keep(update, {})
        try:
            residual = self._write_patiently(path, update, exact)
            accepted = self._send(path, update)
        finally:
            path.unlink(missing_ok=True)
        self.residual = residual if accepted else {}
        if exact and accepted:
            # The next version is exactly these weights.
            link.base = BaseWeights(update.assignment.base_version + 1, update.digest, update.weights)
        elif not exact:
            self._keep(update, self.residual)
        return accepted

    def take_up(self, assignment: wire.Assignment, batch_tokens: int) -> Kept | None:
        """The optimizer state that an earlier job of this site kept, if it still fits the base."""
        log = self.link.log
        kept = optimizer_state.load(self.folder, assignment.base_digest, assignment.tokens_before, batch_tokens, log)
        if kept is not None:
            self.residual = kept.residual
        return kept

    def _keep(self, update: LocalUpdate, residual: Encoded) -> None:
        tokens = update.assignment.tokens_before + update.report.steps * update.assignment.tokens_per_step
        kept, update.state = Kept(tokens, update.digest, update.state, residual), {}  # the copy ends with this call
        try:
            with self.link.seconds("keep"):
                optimizer_state.save(self.folder, kept, update.assignment.base_digest, self.disk)
        except CurtailError as error:
            self.link.log(f"the optimizer state is not kept: {error}")

    def _write_patiently(self, path: Path, update: LocalUpdate, exact: bool) -> Encoded:
        """Like `_write`, but a full disk is waited out as long as a controller that does not answer would be.

        The weights are in memory; giving up at once would lose the round for a disk that is full for a minute.
        Raises: DiskError: there is still no space after the run's `outage`.
        """
        link, clock = self.link, self.link.clock
        until = clock.monotonic() + link.outage_s
        failures = 0
        while True:
            try:
                return self._write(path, update, exact)
            except DiskError as error:
                if clock.monotonic() >= until:
                    raise
                failures += 1
                if failures == 1:
                    link.log(f"round {update.assignment.round}: {NO_SPACE}, {link.outage_s:.0f} s at most: {error}")
                link.tell_handing_in(until, NO_SPACE)
                clock.sleep(pause_s(failures))

    def _write(self, path: Path, update: LocalUpdate, exact: bool) -> Encoded:
        """The file that travels; returns what its coding lost."""
        with self.link.seconds("encode"):
            if exact:
                weight_sets.write_weights(path, update.weights, self.disk, "CONTRIBUTION")
                return {}
            assert self.link.base is not None
            encoded, lost = self._encode(self.link.base.weights, update)
            write_delta(path, encoded, self.disk, "CONTRIBUTION")
            return lost

    def _encode(self, base: Weights, update: LocalUpdate) -> tuple[Encoded, Encoded]:
        """One array after the other: a whole delta would be a further model in memory."""
        encoded: Encoded = {}
        lost: Encoded = {}
        for name in sorted(base):
            delta = difference({name: base[name]}, {name: update.weights[name]})
            try:
                parts = encode_with_feedback(delta, update.assignment.codec, self.residual or None)
            except CheckpointError as error:
                if not self.residual:
                    raise
                self.link.log(f"what the last contribution's coding lost is dropped: {error}")
                self.residual = {}
                parts = encode_with_feedback(delta, update.assignment.codec, None)
            encoded |= parts[0]
            lost |= parts[1]
        return encoded, lost

    def _send(self, path: Path, update: LocalUpdate) -> bool:
        """Upload the file and commit it; False: it was not accepted, or nobody answered for too long."""
        link, clock = self.link, self.link.clock
        with link.seconds("encode"):
            sha256, size = file_sha256(path), path.stat().st_size
        request = self._request(update, sha256)
        number = request.round
        lost: float | None = None
        failures = 0
        sent: int | None = None
        link.tell_handing_in(clock.monotonic() + link.outage_s)
        try:
            while True:
                try:
                    with link.seconds("upload"):
                        if sent is None:
                            sent = upload(link.control, path, sha256, clock=clock, patience=0)
                        # Only this is repeated once the file is there: after a merge the controller drops the file.
                        receipt = link.control.commit(request, size)
                    again = " (again)" if receipt.repeated else ""
                    link.log(f"round {number}: committed {request.tokens} tokens, sent {sent} bytes{again}")
                    return True
                except Refused as error:
                    link.log(f"round {number}: the contribution is dropped: {error}")
                    return False
                except Unreachable as error:
                    now = clock.monotonic()
                    lost = now if lost is None else lost
                    if now >= lost + link.outage_s:
                        link.log(f"round {number}: the contribution is dropped: {error}")
                        return False
                    failures += 1
                    if failures == 1:
                        link.log(f"round {number}: {WAITING}, {link.outage_s:.0f} s at most: {error}")
                    link.tell_handing_in(lost + link.outage_s, WAITING)
                    clock.sleep(pause_s(failures, random.random()))
        finally:
            link.tell_handing_in(clock.monotonic())

    def _request(self, update: LocalUpdate, blob: str) -> wire.CommitRequest:
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
            blob=blob,
            codec=assignment.codec,
            digest=update.digest if assignment.codec == "weights" else "",
            loss_first=finite(report.loss_first),
            loss_mean=finite(report.loss_mean),
            loss_last=finite(report.loss_last),
            seconds=report.seconds,
            keep=update.keep,
        )


def finite(loss: float | None) -> float | None:
    """A loss as it may travel: None if it is no number."""
    return loss if loss is not None and math.isfinite(loss) else None
