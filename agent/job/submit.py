"""The second half of a hand-in: a contribution's file is written, uploaded and committed, with patience.

Decides how long a finished contribution waits: a full disk and a controller that
cannot be reached are retried, with backoff, until the run's `upload_timeout` has passed since
the first failure. The agent is told until when, so that no drain ends the job before.
Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from agent.http.transfer import pause_s, upload
from agent.job.controller_link import ControllerLink
from agent.job.encode import EXACT, Contribution
from curtail import wire
from curtail.errors import CurtailError, DiskError, Refused, Unreachable
from curtail.system.disk import file_sha256
from nanochat.delta import write_delta
from nanochat.weights import write_weights

NO_ANSWER = "waiting for the controller with a finished contribution"
NO_SPACE = "waiting for space on this machine's disk with a finished contribution"


@dataclass(frozen=True, slots=True)
class ContributionFile:
    """A contribution on disk."""

    path: Path
    sha256: str
    size: int  # bytes


@dataclass(slots=True)
class Patience:
    """Retries until `outage_s` after the first failure. Pure: time and chance are arguments."""

    outage_s: float
    failures: int = 0
    until: float = 0.0  # when it ends; meaningless before the first failure

    def pause_s(self, now: float, chance: float) -> float | None:
        """Count a failure at `now`; seconds to wait before the next try, or None to give up."""
        if not self.failures:
            self.until = now + self.outage_s
        if now >= self.until:
            return None
        self.failures += 1
        return pause_s(self.failures, chance)


def write(link: ControllerLink, contribution: Contribution, path: Path) -> ContributionFile:
    """Write the contribution durably; waits for space on a full disk, for its weights exist only in memory.

    Raises: DiskError: there is no space after the run's `upload_timeout`.
    """
    patience = Patience(link.outage_s)
    while True:
        try:
            with link.seconds("encode"):
                if contribution.codec == EXACT:
                    write_weights(path, contribution.arrays, link.disk, "CONTRIBUTION")
                else:
                    write_delta(path, contribution.arrays, link.disk, "CONTRIBUTION")
                return ContributionFile(path, file_sha256(path), path.stat().st_size)
        except DiskError as error:
            if not _wait(link, patience, NO_SPACE, error, chance=0.0):
                raise


def submit(link: ControllerLink, file: ContributionFile, request: wire.CommitRequest) -> wire.Receipt | None:
    """Upload the file and commit it.

    Returns: None: the controller refused it, or did not answer for the run's `upload_timeout`.
    Raises: AuthError, DiskError and others that a retry does not heal.
    """
    patience = Patience(link.outage_s)
    sent: int | None = None
    link.agent.tell_handing_in(link.clock.monotonic() + link.outage_s)
    try:
        while True:
            try:
                with link.seconds("upload"):
                    if sent is None:
                        sent = upload(link.control, file.path, file.sha256, clock=link.clock, patience=0)
                    # Once the file is there, only the commit is repeated: the controller deletes files after a merge.
                    receipt = link.control.commit(request, file.size)
                again = " (again)" if receipt.repeated else ""
                link.log(f"round {request.round}: committed {request.tokens} tokens, sent {sent} bytes{again}")
                return receipt
            except (Refused, Unreachable) as error:
                if isinstance(error, Refused) or not _wait(link, patience, NO_ANSWER, error, chance=random.random()):
                    link.log(f"round {request.round}: the contribution is dropped: {error}")
                    return None
    finally:
        link.agent.tell_handing_in(link.clock.monotonic())


def _wait(link: ControllerLink, patience: Patience, why: str, error: CurtailError, chance: float) -> bool:
    """Wait before the next try, and say so; False: the outage has lasted too long."""
    pause = patience.pause_s(link.clock.monotonic(), chance)
    if pause is None:
        return False
    if patience.failures == 1:
        link.log(f"{why}, {link.outage_s:.0f} s at most: {error}")
    link.agent.tell_handing_in(patience.until, why)
    link.clock.sleep(pause)
    return True
