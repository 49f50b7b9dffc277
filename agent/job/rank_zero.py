"""What rank 0 decides for all ranks of a job: the next round, each step, the end of a round.

Rank 0 alone asks the controller. All ranks get its `Plan` before each round and its
`Command` before each step; `agent.job.loop` shares and obeys them. Units: seconds of
`Clock.monotonic`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from agent.job.agent_link import POLL_S
from agent.job.contribution import Contributor, LocalUpdate, finite
from agent.job.controller_link import ControllerLink, Work
from agent.job.overlap import Rebase, TrainingRound, choose_rebase
from agent.job.upload_thread import UploadThread, closing_work
from curtail import wire
from nanochat.train import TrainReport
from nanochat.weights import Shapes

HOLD_POLL_S = 0.2
"""Seconds between two checks whether a hold is over."""


class Command(IntEnum):
    """What all ranks do before a step."""

    GO_ON = 0
    END_ROUND = 1
    STOP = 2  # the job drains or holds
    SWITCH = 3  # the contribution is committed and the next round is there


@dataclass(frozen=True, slots=True)
class Plan:
    """What all ranks do before a round."""

    kind: str  # train, wait, leave
    reason: str = ""
    assignment: wire.Assignment | None = None
    began: float = 0.0  # when the controller answered
    rebase: Rebase = Rebase.SAME
    closing: bool = False  # train no more, hand in the overlapped steps

    def to_message(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Plan:
        """The inverse of `to_message`."""
        assignment = message["assignment"]
        values = {
            "assignment": wire.Assignment(**assignment) if assignment is not None else None,
            "rebase": Rebase(message["rebase"]),
        }
        return cls(**(message | values))

    def training_round(self, overlapped: TrainReport) -> TrainingRound:
        """The round to train, which begins with the `overlapped` steps."""
        assert self.assignment is not None
        return TrainingRound(self.assignment, self.began, overlapped, self.closing)


class RankZero:
    """Rank 0's decisions before, within and after each round.

    Args: run: names the optimizer states of this run in the site's cache.
    """

    def __init__(self, link: ControllerLink, run: str, shapes: Shapes) -> None:
        self.link, self.agent, self.clock = link, link.agent, link.clock
        self.contributor = Contributor(link, run)
        self.model_is_base = False  # the model's weights equal the base weights
        self._shapes = shapes

    # -- before a round ----------------------------------------------------------

    def next_plan(self) -> Plan:
        """Ask the controller, and bring the base weights up to date."""
        agent, link = self.agent, self.link
        if reason := agent.drain_reason():
            return Plan("leave", reason)
        if reason := agent.hold_reason():
            agent.tell("hold", reason)
            return self._wait(HOLD_POLL_S)
        if agent.phase == "train":
            agent.tell("sync")
        work = link.next_work(self._shapes)
        if work.kind == "leave":
            return Plan("leave", work.reason)
        if work.assignment is None:
            agent.tell(agent.phase, work.reason)
            return self._wait(max(0.05, work.retry_s))
        # What was fetched changed the base weights and must be copied into the model.
        same = self.model_is_base and work.assignment.fetch == "none"
        return _train_plan(work, Rebase.SAME if same else Rebase.LOAD)

    def _wait(self, seconds: float) -> Plan:
        with self.link.seconds("idle"):
            self.agent.wait(seconds)
        return Plan("wait")

    # -- before and after a step ---------------------------------------------------

    def command_in_round(self, current: TrainingRound) -> Callable[[int], Command]:
        """Begin the round; what to command before each of its steps."""
        self.link.progress.begin_round()
        done, assignment = current.report.steps, current.assignment

        def command(step: int) -> Command:
            if self.agent.stopping():
                return Command.STOP
            # One step at least: a round whose time was used up by fetching would otherwise never make progress.
            late = self.clock.monotonic() - current.began >= assignment.train_s
            ends = done + step and (late or self.link.progress.should_end(assignment.round))
            return Command.END_ROUND if ends else Command.GO_ON

        return command

    def command_in_overlap(self, upload: UploadThread) -> Callable[[int], Command]:
        """What to command before each overlapped step."""

        def command(step: int) -> Command:
            return Command.STOP if self.agent.stopping() else Command.SWITCH if upload.ended else Command.GO_ON

        return command

    def step_reporter(self, number: int, before: int, batch_tokens: int) -> Callable[[int, float, int], None]:
        """What to do after each step of round `number`, of which `before` steps were made already."""
        self.agent.tell("train")
        began = self.clock.monotonic()

        def report(step: int, loss: float, tokens: int) -> None:
            rate = (step + 1) * batch_tokens / max(1e-9, self.clock.monotonic() - began)
            steps = before + step + 1
            self.model_is_base = False
            self.agent.tell_progress(self.link.progress.report(number, steps, steps * batch_tokens, finite(loss), rate))

        return report

    # -- after a round -------------------------------------------------------------

    def skip(self, assignment: wire.Assignment) -> None:
        """The round ended without a step."""
        if not self.agent.stopping():
            self.link.log(f"round {assignment.round}: the lease holds no whole step")
            self.agent.wait(1.0)

    def hand_in(self, update: LocalUpdate) -> None:
        """Hand in, and wait until that is done."""
        self.agent.tell("sync", f"handing in the contribution to round {update.assignment.round}")
        if self.contributor.hand_in(update) and update.exact:
            self.model_is_base = True  # the next version is exactly these weights
        self.log_seconds(update)

    def start_upload(self, update: LocalUpdate) -> UploadThread:
        """Hand in beside the training."""
        upload = UploadThread(self.contributor, update, self._shapes)
        upload.start()
        return upload

    def await_upload(self, upload: UploadThread, span: wire.Assignment, overlapped: TrainReport) -> Plan:
        """Wait until the contribution is in and the next round is there; decide whether the overlapped steps count.

        Args: span: the kept samples. overlapped: the steps that were made on them meanwhile.
        """
        link, steps = self.link, overlapped.steps
        self._wait_for(upload)
        work, closing = upload.result(), False
        if work.kind == "leave" and upload.accepted and steps:
            closing = True
            self.agent.tell("sync", f"handing in {steps} overlapped steps")
            work = closing_work(link, self._shapes)
        if work.assignment is None:
            if steps:
                link.log(f"{steps} overlapped steps are dropped: {work.reason}")
            return Plan("leave", self.agent.drain_reason() or work.reason)
        rebase = choose_rebase(
            upload.update.assignment, span.lease_start, overlapped.samples, work.assignment,
            accepted=upload.accepted, snapshot_digest=upload.update.digest,
        )  # fmt: skip
        if rebase is Rebase.LOAD and steps:
            link.log(f"{steps} overlapped steps are dropped: the next round has another base or lease")
        return _train_plan(work, rebase, closing)

    def _wait_for(self, upload: UploadThread) -> None:
        told = ("", "")
        with self.link.seconds("idle"):
            while not upload.join(POLL_S):
                # A job that has committed and waits for the next round counts as holding, if it must not train.
                held = self.agent.hold_reason() if upload.accepted else None
                status = ("hold", held) if held else ("sync", upload.reason)
                if status != told:
                    told = status
                    self.agent.tell(*status)

    def log_seconds(self, update: LocalUpdate) -> None:
        """One line of the log: where the round's time went."""
        self.link.log(f"round {update.assignment.round}: {update.report.steps} steps; {self.link.seconds.take()}")


def _train_plan(work: Work, rebase: Rebase, closing: bool = False) -> Plan:
    return Plan("train", "", work.assignment, work.began, rebase, closing)
