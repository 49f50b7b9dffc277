"""The job's link to the controller: what to do next, with base weights brought up to date.

Decides what an answer, an outage or a full disk means for the job: train, wait or
leave. It trains nothing and hands in nothing (`agent.job.contribution` does). While
a contribution is under way, its thread alone uses the base weights. Units: seconds of
`Clock.monotonic`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from agent.http.backoff import spread
from agent.http.client import Control
from agent.http.transfer import Stop, Stopped, download, pause_s
from agent.job.agent_link import AgentLink, JobEnvironment
from agent.job.base_weights import BaseWeights, OutOfSync, bring_up_to_date
from agent.job.progress import ProgressReporter
from agent.job.timings import Phases
from curtail import wire
from curtail.errors import CheckpointError, DiskError, NotFound, Unreachable, WireError
from curtail.system.clock import Clock
from curtail.system.disk import Disk
from nanochat.weights import Shapes

OUTAGE_S = 600.0
"""How long a finished contribution waits for an unreachable controller, unless the run says otherwise."""

NO_SPACE_S = 2.0
"""Seconds until a job asks again for work for which its disk had no space."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the controller wants next."""

    kind: str  # train: the base weights are those of `assignment`; wait: ask again after `retry_s`; leave
    reason: str = ""
    retry_s: float = 0.0
    assignment: wire.Assignment | None = None
    began: float = 0.0  # when the answer came


class ControllerLink:
    """The link to the controller and, beside it, what every talk with it needs.

    `agent`: its drain ends every wait and download. `progress`: reports of inner steps. `seconds`: where a
    round's time goes.

    Args: log: told, in one line each, what a person may want to read.
    """

    def __init__(
        self, env: JobEnvironment, control: Control, clock: Clock, disk: Disk, log: Callable[[str], None]
    ) -> None:
        self.env, self.control, self.clock, self.disk, self.log = env, control, clock, disk, log
        self.agent = AgentLink(env.folder, clock)
        self.progress = ProgressReporter(env, control)
        self.seconds = Phases(clock)
        self.base: BaseWeights | None = None
        self.outage_s = OUTAGE_S

    def run_info(self) -> wire.RunInfo | None:
        """What is fixed for the run; None if the job must drain before the controller answers."""
        failures = 0
        while not self.agent.draining():
            try:
                info = self.control.run_info()
                self.outage_s = info.outage_s
                return info
            except Unreachable as error:
                failures += 1
                self.log(str(error))
                self.agent.wait(pause_s(failures, random.random()))
        return None

    def next_work(self, shapes: Shapes, closing: bool = False, stop: Stop | None = None) -> Work:
        """Ask what to do next and bring the base weights up to date for it.

        Args:
            closing: the job drains and asks only for a round in which to hand in its overlapped steps.
            stop: ends a download; by default a drain does.
        Raises: Refused: another agent speaks for the site. AuthError. CheckpointError: the controller's weights
            are damaged. Unreachable: a download failed too often.
        """
        reply = self._checkout(closing)
        began = self.clock.monotonic()
        if reply.kind != "train" or reply.assignment is None:
            return Work("leave" if reply.kind == "leave" else "wait", reply.reason, reply.retry_s)
        try:
            with self.seconds("fetch"):
                self._update_base(reply.assignment, shapes, stop or self.agent.draining)
        except Stopped:
            return Work("leave", self.agent.drain_reason() or "draining")
        except DiskError as error:  # the base weights are as they were; somebody may free some space
            return Work("wait", str(error), NO_SPACE_S)
        except OutOfSync as error:
            self.log(f"{error.message}; fetching whole weights")
            self.base = None
            return Work("wait", "whole weights must be fetched", 0.5)
        return Work("train", "", 0.0, reply.assignment, began)

    def _checkout(self, closing: bool) -> wire.CheckoutReply:
        """The controller's answer; `wait` while it cannot be reached."""
        env, base = self.env, self.base
        version, digest = (base.version, base.digest) if base else (None, None)
        request = wire.CheckoutRequest(env.site, env.fence, env.job, version, digest, closing=closing)
        try:
            return self.control.checkout(request)
        except Unreachable as error:
            return wire.CheckoutReply("wait", error.message, spread(1.0, random.random()), None)

    def _update_base(self, assignment: wire.Assignment, shapes: Shapes, stop: Stop) -> None:
        if assignment.fetch == "none":
            self.base = bring_up_to_date(self.base, assignment, None, shapes)
            return
        if assignment.fetch not in ("update", "weights"):
            raise WireError(f"an assignment fetches {assignment.fetch!r}", "update curtail on this machine")
        path = self.env.folder / f"{assignment.fetch}.safetensors"
        try:
            download(self.control, assignment.blob, path, self.disk, clock=self.clock, stop=stop)
            self.base = bring_up_to_date(self.base, assignment, path, shapes)
        except NotFound as error:  # the round ended meanwhile, and its version was deleted
            raise OutOfSync(error.message) from error
        except CheckpointError as error:
            if assignment.fetch == "weights":
                raise
            raise OutOfSync(f"the update cannot be used: {error}") from error
        finally:
            path.unlink(missing_ok=True)
