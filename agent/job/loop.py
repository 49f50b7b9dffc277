"""The rounds of one job, as every rank goes through them.

Every rank makes the same steps; `RankZero` decides for all. A round: load the base
weights into the model, make inner steps, take a snapshot, hand it in. Where the
controller keeps the rest of the lease for this job, the ranks train on it while the
snapshot travels and is merged; then the model is rebased onto the next version, and
the overlapped steps are the first ones of the next round (`agent.job.overlap`). A sole
site's model is not touched between rounds: it trains bit for bit like a plain loop.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from agent.job.contribution import LocalUpdate
from agent.job.overlap import Rebase, TrainingRound, overlap_part, part, steps_of
from agent.job.rank_zero import Command, Plan, RankZero
from agent.job.timings import Phases
from agent.job.trainer import RankTrainer
from curtail import wire
from curtail.system.clock import Clock
from nanochat import weights as weight_sets
from nanochat.train import NO_STEPS, TrainReport
from nanochat.weights import Weights


class JobLoop:
    """The rounds of one job on one rank.

    Args: rank_zero: on rank 0, None on the others.
    """

    def __init__(self, trainer: RankTrainer, rank_zero: RankZero | None, clock: Clock) -> None:
        self.trainer, self.rank_zero = trainer, rank_zero
        self.batch = trainer.info.batch_samples
        self.first = True  # no round was trained yet
        self.seconds = rank_zero.link.seconds if rank_zero else Phases(clock)

    def run(self) -> str:
        """Train rounds until told to leave or to drain; returns why it ended."""
        with self.rank_zero.link.progress.sending() if self.rank_zero else contextlib.nullcontext():
            reason = None
            while reason is None:
                plan = self._share(self.rank_zero.next_plan() if self.rank_zero else None)
                if plan.kind == "leave":
                    reason = plan.reason
                elif plan.kind == "train":
                    reason = self._rounds(self._begin(plan))
            return reason

    def _begin(self, plan: Plan) -> TrainingRound:
        """A round without overlapped steps; before the job's first one, load the optimizer's state."""
        current = plan.training_round(NO_STEPS)
        self._rebase(plan.rebase, None)
        if self.first:
            zero, assignment = self.rank_zero, current.assignment
            kept = zero.contributor.load_optimizer_state(assignment, self.trainer.batch_tokens) if zero else None
            state, log = kept.state if kept else None, zero.link.log if zero else None
            self.trainer.start_optimizer(state, assignment.base_version, log)
            self.first = False
        return current

    def _rounds(self, current: TrainingRound) -> str | None:
        """Train this round, and each next one that begins while its predecessor's contribution travels.

        Returns: why to leave; None: ask for work.
        """
        zero = self.rank_zero
        while True:
            stopped = self._train(current)
            if not current.report.steps:
                if zero is not None:
                    zero.skip(current.assignment)
                return None
            span = None if stopped else overlap_part(current.assignment, current.report, self.batch)
            if span is None:
                update = self._snapshot(current, keep=False)
                if zero is not None and update is not None:
                    zero.hand_in(update)
                return None
            # No name holds the snapshot here: the next one must not meet it in memory.
            following = self._overlap(current, self._snapshot(current, keep=True), span)
            if isinstance(following, str):
                return following
            current = following

    def _train(self, current: TrainingRound) -> bool:
        """Inner steps until the round ends; returns whether it ended because the job drains or holds."""
        if current.closing:
            return True
        command = self.rank_zero.command_in_round(current) if self.rank_zero else None
        done = current.report.steps
        most = steps_of(current.assignment, self.batch, done)
        if done >= most:
            return False
        span = part(current.assignment, done, most, self.batch)
        report, last = self._steps(current.assignment.round, span, done, command)
        current.report = current.report.then(report)
        return last is Command.STOP

    def _snapshot(self, current: TrainingRound, keep: bool) -> LocalUpdate | None:
        """Host copies of weights and optimizer state, on rank 0; all ranks together."""
        with self.seconds("snapshot"):
            state = self.trainer.optimizer.state_dict(wanted=self.rank_zero is not None)
            if self.rank_zero is None:
                return None
            weights = weight_sets.from_model(self.trainer.model)
        return LocalUpdate(current.assignment, current.report, keep, weights, state)

    def _overlap(
        self, current: TrainingRound, update: LocalUpdate | None, span: wire.Assignment
    ) -> TrainingRound | str:
        """Inner steps on `span` while the update travels and is merged; the next round, or why to leave."""
        zero = self.rank_zero
        upload = zero.start_upload(update) if zero and update else None
        command = zero.command_in_overlap(upload) if zero and upload else None
        overlapped, _ = self._steps(current.assignment.round, span, current.report.steps, command)
        plan = self._share(zero.await_upload(upload, span, overlapped) if zero and upload else None)
        if plan.kind == "leave":
            return plan.reason
        self._rebase(plan.rebase, upload.update.weights if upload else None)
        if zero and upload:
            zero.log_seconds(upload.update)
        return plan.training_round(NO_STEPS if plan.rebase is Rebase.LOAD else overlapped)

    def _rebase(self, rebase: Rebase, snapshot: Weights | None) -> None:
        """The model goes on from the base weights, on all ranks; rank 0 has the `snapshot` to be replaced by them."""
        zero = self.rank_zero
        base = zero.link.base if zero else None
        with self.seconds("apply"):
            if rebase is Rebase.LOAD:
                self.trainer.load(base)
                if zero is not None:
                    zero.model_is_base = True
            elif rebase is Rebase.ADD:
                self.trainer.add((snapshot, base.weights) if base and snapshot else None)

    def _steps(
        self, number: int, span: wire.Assignment, before: int, command: Callable[[int], Command] | None
    ) -> tuple[TrainReport, Command]:
        """Inner steps on `span` until rank 0 commands otherwise or it is used up; all ranks together.

        Args:
            number, before: of the round, and the steps of it that were made before.
            command: rank 0's, asked before each step.
        Returns: what was done, and the last command.
        """
        said = Command.GO_ON

        def until(step: int) -> bool:
            nonlocal said
            said = Command(self.trainer.group.share_code(command(step) if command else Command.GO_ON))
            return said is not Command.GO_ON

        zero = self.rank_zero
        on_step = zero.step_reporter(number, before, self.trainer.batch_tokens) if zero else None
        with self.seconds("step"):
            report = self.trainer.steps(span, until, on_step)
        return report, said

    def _share(self, plan: Plan | None) -> Plan:
        """Rank 0's plan, on every rank."""
        return Plan.from_message(self.trainer.group.share(plan.to_message() if plan else None))
