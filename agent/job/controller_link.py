"""What rank 0 of a job says to the controller and to its agent.

Decides when the job drains and which weights it holds. It trains nothing and hands
in nothing (`agent.job.contribution` does). The base copy, `BaseWeights`, is always exactly a
version the controller knows: deltas are measured against it. While a contribution
is under way, its thread alone touches the base copy. Units: seconds of
`Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent import job_files
from agent.http.backoff import spread
from agent.http.client import Control
from agent.http.transfer import Stop, Stopped, download, pause_s
from agent.job.timings import Phases
from agent.job_files import JobStatus
from curtail import wire
from curtail.errors import CheckpointError, CurtailError, DiskError, NotFound, Refused, Unreachable, WireError
from curtail.system.clock import Clock
from curtail.system.disk import Disk
from nanochat.delta import apply_update, decode, read_delta
from nanochat.weights import Shapes, Weights, digest, read_weights

OUTAGE_S = 600.0
"""How long a finished contribution waits for an unreachable controller, unless the run says otherwise."""

SLICE_S = 0.1
"""Longest sleep without a look at the agent's orders."""

PROGRESS_S = 1.0
"""Between two progress messages."""

NO_SPACE_S = 2.0
"""Until a job asks again for work for which its disk had no space."""


@dataclass(slots=True)
class BaseWeights:
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
    device_batch_samples: int = 0  # per rank and pass at this site; 0: as the run says
    link_bytes_s: float = 0.0  # limit of transfers, bytes per second; 0: none
    server_name: str = ""  # that the controller's certificate must hold; "": the host of its address
    insecure: bool = False  # plain HTTP to another machine is wanted


@dataclass(frozen=True, slots=True)
class Work:
    """What the controller wants next, with the base copy brought up to date."""

    kind: str  # train, wait, leave
    reason: str = ""
    retry_s: float = 0.0
    assignment: wire.Assignment | None = None
    began: float = 0.0  # when the answer came


class ControllerLink:
    """Rank 0's side of the conversation.

    Args: log: told, in one line each, what a person may want to read.
    """

    def __init__(
        self, env: JobEnvironment, control: Control, clock: Clock, disk: Disk, log: Callable[[str], None]
    ) -> None:
        self.env, self.control, self.clock, self.disk, self.log = env, control, clock, disk, log
        self.base: BaseWeights | None = None
        self.outage_s = OUTAGE_S
        self.seconds = Phases(clock)
        self.phase = "start"
        self._handing_in: float | None = None
        self._progress: wire.Progress | None = None
        self._ending: int | None = None  # the round that the controller asked to end
        self._quiet = threading.Event()
        self._lock = threading.RLock()
        self._told = float("-inf")

    def drain_reason(self) -> str | None:
        """Why the job must drain now, or None."""
        return job_files.must_drain(job_files.read_orders(self.env.folder), self.clock.monotonic())

    def draining(self) -> bool:
        """Whether the job must drain now."""
        return self.drain_reason() is not None

    def hold_reason(self) -> str | None:
        """Why the job must not train now but may keep its weights where they are, or None."""
        return job_files.must_hold(job_files.read_orders(self.env.folder), self.clock.monotonic())

    def stopping(self) -> bool:
        """Whether the job must not train now: it drains or holds."""
        orders, now = job_files.read_orders(self.env.folder), self.clock.monotonic()
        return job_files.must_drain(orders, now) is not None or job_files.must_hold(orders, now) is not None

    def tell(self, phase: str, reason: str = "", exit_code: int | None = None) -> None:
        """Tell the agent the phase; failing to is not worth ending a job."""
        with self._lock, contextlib.suppress(CurtailError):
            self.phase = phase
            latest = self._progress
            job_files.write_status(
                self.env.folder,
                JobStatus(
                    phase,
                    latest.round if latest else None,
                    latest.step if latest else 0,
                    latest.loss if latest else None,
                    latest.tokens_per_s if latest else 0.0,
                    reason,
                    exit_code,
                    self._handing_in,
                ),
            )
        self._told = self.clock.monotonic()

    def tell_handing_in(self, until: float, reason: str = "") -> None:
        """Tell the agent that a finished contribution may need until `until`: no drain ends the job before."""
        with self._lock:
            self._handing_in = until
            self.tell(self.phase, reason if self.phase != "train" else "")

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
                info = self.control.run_info()
                self.outage_s = info.outage_s
                return info
            except Unreachable as error:
                failures += 1
                self.log(str(error))
                self.wait(pause_s(failures, random.random()))
        return None

    def checkout(self, closing: bool = False) -> wire.CheckoutReply:
        """What to do next; while the controller cannot be reached: wait.

        Args: closing: only to hand in what was trained ahead.
        Raises: Refused: another agent speaks for the site. AuthError.
        """
        held = self.base
        request = wire.CheckoutRequest(
            self.env.site,
            self.env.fence,
            self.env.job,
            held.version if held else None,
            held.digest if held else None,
            closing=closing,
        )
        try:
            return self.control.checkout(request)
        except Unreachable as error:
            return wire.CheckoutReply("wait", error.message, spread(1.0, random.random()), None)

    def next(self, shapes: Shapes, closing: bool = False, stop: Stop | None = None) -> Work:
        """Ask what to do next and fetch what that needs; `wait` also means: ask again.

        Args: stop: ends a download; by default a drain does.
        Raises: as `checkout` and `hold`, but Stopped and DiskError.
        """
        reply = self.checkout(closing)
        began = self.clock.monotonic()
        if reply.kind != "train" or reply.assignment is None:
            return Work("leave" if reply.kind == "leave" else "wait", reply.reason, reply.retry_s)
        try:
            with self.seconds("fetch"):
                held = self.hold(reply.assignment, shapes, stop or self.draining)
        except Stopped:
            return Work("leave", self.drain_reason() or "draining")
        except DiskError as error:  # what is held stays as it was; somebody may free some space
            return Work("wait", str(error), NO_SPACE_S)
        if not held:
            return Work("wait", "whole weights must be fetched", 0.5)
        return Work("train", "", 0.0, reply.assignment, began)

    def hold(self, assignment: wire.Assignment, shapes: Shapes, stop: Stop) -> bool:
        """Bring the base copy to the assignment's base; False: it could not be, hold nothing and ask again.

        Raises: Stopped: `stop` said so. Unreachable, CheckpointError, DiskError.
        """
        if assignment.fetch == "none":
            if self.base is not None and self.base.digest == assignment.base_digest:
                self.base.version = assignment.base_version
                return True
            return self._drop("the controller takes weights for held that are not")
        if assignment.fetch not in ("update", "weights"):
            raise WireError(f"an assignment fetches {assignment.fetch!r}", "update curtail on this machine")
        path = self.env.folder / f"{assignment.fetch}.safetensors"
        try:
            download(self.control, assignment.blob, path, self.disk, clock=self.clock, stop=stop)
            if assignment.fetch == "weights":
                # Copied out of the mapped file: later updates are made in place, and the file is not kept.
                weights = {name: array.copy() for name, array in read_weights(path, shapes).items()}
            elif self.base is None:
                return self._drop("the controller sent an update and there is nothing to update")
            else:
                weights = self.base.weights
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
        self.base = BaseWeights(assignment.base_version, assignment.base_digest, weights)
        return True

    def _drop(self, why: str) -> bool:
        self.log(f"{why}; fetching whole weights")
        self.base = None
        return False

    def report(self, progress: wire.Progress) -> None:
        """The latest progress, for the controller within a second and for the agent."""
        with self._lock:
            self._progress = progress
        if self.phase != "train" or self.clock.monotonic() - self._told >= PROGRESS_S:
            self.tell("train")

    def enter(self) -> None:
        """A new round begins: nobody asked to end it yet."""
        self._ending = None

    def should_end(self, number: int) -> bool:
        """Whether the controller asked to end round `number` at the next step."""
        return self._ending == number

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Send progress from a thread while the block runs; errors are tolerated."""
        thread = threading.Thread(target=self._send_progress, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._quiet.set()
            thread.join()

    def _send_progress(self) -> None:
        sent: wire.Progress | None = None
        while not self._quiet.wait(PROGRESS_S):
            with self._lock:
                latest = self._progress
            if latest is None or latest is sent:
                continue
            try:
                reply = self.control.progress(latest)
                sent = latest
                if reply.end_round:
                    self._ending = latest.round
            except Refused:
                # The round is over without this site, or its fence is old: more steps would be lost.
                self._ending = latest.round
            except CurtailError:
                continue  # the job rides through an outage; its permit is the agent's matter
