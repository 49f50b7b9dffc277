"""What rank 0 of a job says to the controller and to its agent.

Decides when the job drains, which weights it holds, and how long it waits for a
controller that does not answer. It trains nothing. The base copy, `Held`, is
always exactly a version the controller knows: deltas are measured against it.
Units: seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent import jobfolder
from agent.client import Control
from agent.jobfolder import JobStatus
from agent.transfer import download, pause_s, upload
from curtail import wire
from curtail.clock import Clock
from curtail.disk import Disk
from curtail.errors import CheckpointError, CurtailError, NotFound, Refused, Unreachable, WireError
from nanochat.delta import apply_update, decode, read_delta
from nanochat.weights import Shapes, Weights, digest, file_sha256, read_weights

COMMIT_PATIENCE_S = 120.0
"""How long a finished contribution waits for an unreachable controller: longer than its restart
takes, shorter than the time in which training the round again would cost more than it saves."""

DRAIN_PATIENCE_S = 20.0
"""The same once the job drains: the agent ends it after 60 s, and the upload needs its part of that."""

SLICE_S = 0.1
"""Longest sleep without a look at the agent's orders."""

PROGRESS_S = 1.0
"""Between two progress messages."""


@dataclass(slots=True)
class Held:
    """The base copy: weights in memory that the controller knows under this digest."""

    version: int
    digest: str
    weights: Weights  # writable arrays


@dataclass(frozen=True, slots=True)
class JobEnvironment:
    """What the agent tells the job through environment variables."""

    url: str
    credential_file: Path
    site: str
    fence: int
    job: str
    cache: Path
    folder: Path
    threads: int


class Speaker:
    """Rank 0's side of the conversation.

    Args: log: told, in one line each, what a person may want to read.
    """

    def __init__(
        self, env: JobEnvironment, control: Control, clock: Clock, disk: Disk, log: Callable[[str], None]
    ) -> None:
        self.env, self.control, self.clock, self.disk, self.log = env, control, clock, disk, log
        self.held: Held | None = None
        self.phase = "start"
        self._progress: wire.Progress | None = None
        self._sent: wire.Progress | None = None
        self._end_round = threading.Event()
        self._quiet = threading.Event()
        self._lock = threading.Lock()
        self._told = float("-inf")

    def drain_reason(self) -> str | None:
        """Why the job must drain now, or None."""
        return jobfolder.must_drain(jobfolder.read_orders(self.env.folder), self.clock.monotonic())

    def draining(self) -> bool:
        """Whether the job must drain now."""
        return self.drain_reason() is not None

    def tell(self, phase: str, reason: str = "", exit_code: int | None = None) -> None:
        """Tell the agent the phase; failing to is not worth ending a job."""
        with self._lock:
            self.phase = phase
            latest = self._progress
        with contextlib.suppress(CurtailError):
            jobfolder.write_status(
                self.env.folder,
                JobStatus(
                    phase,
                    latest.round if latest else None,
                    latest.step if latest else 0,
                    latest.loss if latest else None,
                    latest.tokens_per_s if latest else 0.0,
                    reason,
                    exit_code,
                ),
            )
        self._told = self.clock.monotonic()

    def wait(self, seconds: float) -> str | None:
        """Sleep, but not past a drain; why to drain, or None."""
        end = self.clock.monotonic() + seconds
        while True:
            reason = self.drain_reason()
            left = end - self.clock.monotonic()
            if reason is not None or left <= 0:
                return reason
            self.clock.sleep(min(left, SLICE_S))

    def run_info(self) -> wire.RunInfo | None:
        """What is fixed for the run; None if the job must drain before the controller answers."""
        failures = 0
        while not self.draining():
            try:
                return self.control.run_info()
            except Unreachable as error:
                failures += 1
                self.log(str(error))
                self.wait(pause_s(failures))
        return None

    def checkout(self) -> wire.CheckoutReply:
        """What to do next; while the controller cannot be reached: wait.

        Raises: Refused: another agent speaks for the site. AuthError.
        """
        held = self.held
        request = wire.CheckoutRequest(
            self.env.site, self.env.fence, self.env.job, held.version if held else None, held.digest if held else None
        )
        try:
            return self.control.checkout(request)
        except Unreachable as error:
            return wire.CheckoutReply("wait", error.message, 1.0, None)

    def hold(self, assignment: wire.Assignment, shapes: Shapes) -> bool:
        """Bring the base copy to the assignment's base; False: it could not be, hold nothing and ask again.

        Raises: Stopped: the job must drain. Unreachable, CheckpointError, DiskError.
        """
        if assignment.fetch == "none":
            if self.held is not None and self.held.digest == assignment.base_digest:
                self.held.version = assignment.base_version
                return True
            return self._drop("the controller takes weights for held that are not")
        if assignment.fetch not in ("update", "weights"):
            raise WireError(f"an assignment fetches {assignment.fetch!r}", "update curtail on this machine")
        path = self.env.folder / f"{assignment.fetch}.safetensors"
        try:
            download(self.control, assignment.blob, path, self.disk, clock=self.clock, stop=self.draining)
            if assignment.fetch == "weights":
                # Copied out of the mapped file: later updates are made in place, and the file is not kept.
                weights = {name: array.copy() for name, array in read_weights(path, shapes).items()}
            elif self.held is None:
                return self._drop("the controller sent an update and there is nothing to update")
            else:
                weights = self.held.weights
                apply_update(weights, decode(read_delta(path, shapes)), out=weights)
        except NotFound as error:  # the round ended meanwhile and its version was cleared away
            return self._drop(error.message)
        except CheckpointError as error:
            if assignment.fetch == "weights":
                raise
            return self._drop(f"the update cannot be used: {error}")
        finally:
            path.unlink(missing_ok=True)
        if digest(weights) != assignment.base_digest:
            if assignment.fetch == "weights":
                raise CheckpointError(
                    f"the weights of version {assignment.base_version} are not what the controller says",
                    "look at the controller's disk; its versions are damaged",
                )
            return self._drop("after the update the weights differ from the controller's")
        self.held = Held(assignment.base_version, assignment.base_digest, weights)
        return True

    def _drop(self, why: str) -> bool:
        self.log(f"{why}; fetching whole weights")
        self.held = None
        return False

    def hand_in(self, path: Path, make_request: Callable[[str], wire.CommitRequest]) -> bool:
        """Upload the file at `path` and commit it; False: it was not accepted and is dropped.

        Args: make_request: the commit, given the file's SHA-256.
        Raises: AuthError, DiskError and others that another try does not heal.
        """
        sha256 = file_sha256(path)
        request = make_request(sha256)
        lost: float | None = None
        drained: float | None = None
        failures = 0
        sent: int | None = None
        while True:
            try:
                if sent is None:
                    sent = upload(self.control, path, sha256, clock=self.clock, patience=0)
                # Only this is repeated once the file is there: after a merge the controller drops the file.
                receipt = self.control.commit(request)
                again = " (again)" if receipt.repeated else ""
                self.log(f"round {request.round}: committed {request.tokens} tokens, sent {sent} bytes{again}")
                return True
            except Refused as error:
                self.log(f"round {request.round}: the contribution is dropped: {error}")
                return False
            except Unreachable as error:
                now = self.clock.monotonic()
                lost = now if lost is None else lost
                drained = now if drained is None and self.draining() else drained
                limit = lost + COMMIT_PATIENCE_S
                if drained is not None:
                    limit = min(limit, drained + DRAIN_PATIENCE_S)
                if now >= limit:
                    self.log(f"round {request.round}: the contribution is dropped: {error}")
                    return False
                failures += 1
                self.clock.sleep(pause_s(failures))

    def report(self, progress: wire.Progress) -> None:
        """The latest progress, for the controller within a second and for the agent."""
        with self._lock:
            self._progress = progress
        if self.phase != "train" or self.clock.monotonic() - self._told >= PROGRESS_S:
            self.tell("train")

    def round_should_end(self) -> bool:
        """Whether the controller asked to end this round at the next step."""
        return self._end_round.is_set()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Send progress from a thread while the block runs; errors are tolerated."""
        self._end_round.clear()
        self._quiet.clear()
        with self._lock:
            self._progress = self._sent = None
        thread = threading.Thread(target=self._send_progress, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._quiet.set()
            thread.join()

    def _send_progress(self) -> None:
        while not self._quiet.wait(PROGRESS_S):
            with self._lock:
                latest = self._progress
            if latest is None or latest is self._sent:
                continue
            try:
                reply = self.control.progress(latest)
                self._sent = latest
                if reply.end_round:
                    self._end_round.set()
            except Refused:
                # The round is over without this site, or its fence is old: more steps would be lost.
                self._end_round.set()
            except CurtailError:
                continue  # the job rides through an outage; its permit is the agent's matter
