"""The rounds of one job on every rank: weights, inner steps, contribution.

Decides when a round ends and whether the model still equals the base copy.
Rank 0 has a `ControllerLink` and says what all do; every rank makes the same steps.
Where the controller keeps the rest of a lease for this job, the ranks train on it
while the contribution travels and is merged (`agent.job.overlap` says what that is
worth). A sole site's model is never touched between rounds: it trains bit for bit
like a plain loop. Units: tokens, seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from agent.job.contribution import Contributor, LocalUpdate, finite
from agent.job.controller_link import SLICE_S, ControllerLink, Work
from agent.job.overlap import Rebase, TrainingRound, land, part, rest, steps_of
from agent.job.trainer import Trainer
from agent.job.upload_thread import UploadThread, close
from curtail import wire
from curtail.system.clock import Clock
from curtail.system.disk import Disk
from nanochat import weights as weight_sets
from nanochat.train import NO_STEPS, TrainReport

GO_ON, END_ROUND, DRAIN, SWITCH = 0, 1, 2, 3
"""What rank 0 tells all ranks before each step; DRAIN, too, where the job is to hold; SWITCH: the contribution is in
and the next round is there."""

HOLD_SLICE_S = 0.2
"""Between two looks at whether a hold is over."""


class JobLoop:
    """The rounds of one job on one rank; `link` is there on rank 0 only."""

    def __init__(self, trainer: Trainer, link: ControllerLink | None, disk: Disk, clock: Clock) -> None:
        self.trainer, self.link, self.clock = trainer, link, clock
        self.contributor = Contributor(link, trainer.info.run, disk) if link else None
        self.batch = trainer.info.batch_samples
        self.dirty = True  # the model's weights differ from the base copy
        self.fresh = True  # no round was trained yet

    def run(self) -> str:
        """Train rounds until told to leave or to drain; why it ended."""
        with self.link.reporting() if self.link else contextlib.nullcontext():
            reason = None
            while reason is None:
                plan = self.trainer.group.share(self._plan() if self.link else None)
                if plan["kind"] == "leave":
                    reason = str(plan["reason"])
                elif plan["kind"] == "train":
                    reason = self._rounds(self._enter(plan))
            return reason

    def _plan(self) -> dict[str, object]:
        """Rank 0: ask the controller, bring the base copy up to date, say what all ranks do."""
        link = self.link
        assert link is not None
        if reason := link.drain_reason():
            return {"kind": "leave", "reason": reason}
        if reason := link.hold_reason():
            link.tell("hold", reason)
            with link.seconds("idle"):
                link.wait(HOLD_SLICE_S)
            return {"kind": "wait"}
        if link.phase == "train":
            link.tell("sync")
        held = link.base
        following = link.next(self.trainer.shapes)
        if following.kind == "leave":
            return {"kind": "leave", "reason": following.reason}
        if following.assignment is None:
            link.tell(link.phase, following.reason)
            with link.seconds("idle"):
                link.wait(max(0.05, following.retry_s))
            return {"kind": "wait"}
        # Updates change `held` in place or replace it: whatever was fetched must be copied into the model.
        load = self.dirty or following.assignment.fetch != "none" or held is None
        return _train_plan(following, load=load)

    def _enter(self, plan: dict[str, Any]) -> TrainingRound:
        """A round that begins with nothing trained ahead."""
        current = TrainingRound(wire.Assignment(**plan["assignment"]), plan["began"])
        if plan["load"]:
            self._load()
        if self.fresh:
            kept = self.contributor.take_up(current.assignment, self.trainer.batch_tokens) if self.contributor else None
            log = self.link.log if self.link else None
            self.trainer.take_up(kept.state if kept else None, current.assignment.base_version, log)
            self.fresh = False
        return current

    def _rounds(self, current: TrainingRound) -> str | None:
        """This round, and the next ones as long as each begins before its forerunner is merged; why to leave."""
        while True:
            draining = self._train(current)
            if not current.report.steps:
                self._idle(current.assignment)
                return None
            self.dirty = True
            ahead = None if draining else rest(current.assignment, current.report, self.batch)
            if ahead is None:
                self._contribute(current, self._snapshot(current, keep=False))
                return None
            # No name holds the snapshot here: the next one must not meet it in memory.
            following = self._fly(current, self._snapshot(current, keep=True), ahead)
            if isinstance(following, str):
                return following
            current = following

    # -- inner steps -----------------------------------------------------------

    def _train(self, current: TrainingRound) -> bool:
        """Inner steps until the round ends; whether it ended because the job drains."""
        link = self.link
        if current.closing:
            return True
        done = current.report.steps
        most = steps_of(current.assignment, self.batch, done)

        def say(step: int) -> int:
            assert link is not None
            if link.stopping():
                return DRAIN
            # One step at least: a round that fetching used up would else never get anywhere.
            late = self.clock.monotonic() - current.began >= current.assignment.train_s
            return END_ROUND if done + step and (late or link.should_end(current.assignment.round)) else GO_ON

        if link is not None:
            link.enter()
        if done >= most:
            return False
        report, code = self._steps(current.assignment, part(current.assignment, done, most, self.batch), done, say)
        current.report = current.report.then(report)
        return code == DRAIN

    def _steps(
        self, assignment: wire.Assignment, span: wire.Assignment, before: int, say: Callable[[int], int]
    ) -> tuple[TrainReport, int]:
        """Inner steps on `span` until rank 0 says otherwise or it is used up; what was done, and what rank 0 said.

        Args: before: steps of the round that were made already. say: rank 0 only, asked before each step.
        """
        trainer, link = self.trainer, self.link
        began, said = self.clock.monotonic(), GO_ON

        def until(step: int) -> bool:
            nonlocal said
            said = trainer.group.share_code(say(step) if link is not None else GO_ON)
            return said != GO_ON

        def on_step(step: int, loss: float, tokens: int) -> None:
            assert link is not None
            done = (step + 1) * trainer.batch_tokens
            rate = done / max(1e-9, self.clock.monotonic() - began)
            env, steps = link.env, before + step + 1
            tokens = steps * trainer.batch_tokens
            link.report(
                wire.Progress(env.site, env.fence, env.job, assignment.round, steps, tokens, finite(loss), rate)
            )

        if link is not None:
            link.tell("train")
        report = trainer.steps(span, until, on_step if link else None)
        if link is not None:
            link.seconds.add("step", self.clock.monotonic() - began)
        return report, said

    # -- contributions -----------------------------------------------------------

    def _snapshot(self, current: TrainingRound, keep: bool) -> LocalUpdate | None:
        """All ranks: host copies of weights and optimizer state, on rank 0."""
        trainer, link = self.trainer, self.link
        began = self.clock.monotonic()
        state = trainer.optimizer.state_dict(wanted=link is not None)
        if link is None:
            return None
        weights = weight_sets.from_model(trainer.model)
        link.seconds.add("snapshot", self.clock.monotonic() - began)
        return LocalUpdate(current.assignment, current.report, keep, weights, state)

    def _contribute(self, current: TrainingRound, update: LocalUpdate | None) -> None:
        """Rank 0: hand in and wait for it; afterwards `dirty` says whether the model is the base copy."""
        if self.link is None or self.contributor is None or update is None:
            return
        self.link.tell("sync", f"handing in the contribution to round {current.assignment.round}")
        if self.contributor.hand_in(update) and update.assignment.codec == "weights":
            self.dirty = False  # the next version is exactly these weights: the model stays untouched
        self._say_seconds(current)

    def _fly(self, current: TrainingRound, update: LocalUpdate | None, ahead: wire.Assignment) -> TrainingRound | str:
        """Hand in beside the training; the next round with the steps made meanwhile, or why to leave."""
        link, upload = self.link, None
        if self.contributor is not None and update is not None:
            upload = UploadThread(self.contributor, update, self.trainer.shapes)
            upload.start()

        def say(step: int) -> int:
            assert link is not None and upload is not None
            return DRAIN if link.stopping() else SWITCH if upload.ended else GO_ON

        report, _ = self._steps(current.assignment, ahead, current.report.steps, say)
        plan = self.trainer.group.share(self._landing(upload, ahead, report) if upload else None)
        if plan["kind"] == "leave":
            return str(plan["reason"])
        self._land(Rebase(plan["how"]), upload)
        if upload is not None:
            self._say_seconds(current)
        kept = report if plan["how"] != Rebase.LOAD else NO_STEPS
        return TrainingRound(wire.Assignment(**plan["assignment"]), plan["began"], kept, plan["closing"])

    def _landing(self, upload: UploadThread, ahead: wire.Assignment, report: TrainReport) -> dict[str, object]:
        """Rank 0: wait until the contribution is in and the next round is there; say what all ranks do."""
        link = self.link
        assert link is not None
        told = ("", "")
        with link.seconds("idle"):
            while not upload.join(SLICE_S):
                # a contribution that is in, and a round that is waited for, is a hold
                holds = upload.accepted and (reason := link.hold_reason())
                says = ("hold", reason) if holds and reason else ("sync", upload.reason)
                if says != told:
                    told = says
                    link.tell(*told)
        following, closing = upload.result(), False
        if following.kind == "leave" and upload.accepted and report.steps:
            closing = True
            link.tell("sync", f"handing in {report.steps} steps trained ahead")
            following = close(link, self.trainer.shapes)
        if following.assignment is None:
            if report.steps:
                link.log(f"{report.steps} steps trained ahead are dropped: {following.reason}")
            return {"kind": "leave", "reason": link.drain_reason() or following.reason}
        how = land(
            upload.update.assignment, ahead.lease_start, report.samples, following.assignment,
            accepted=upload.accepted, snapshot_digest=upload.update.digest,
        )  # fmt: skip
        if how is Rebase.LOAD and report.steps:
            link.log(f"{report.steps} steps trained ahead are dropped: the next round has another base or lease")
        return _train_plan(following, how=how.value, closing=closing)

    def _land(self, how: Rebase, upload: UploadThread | None) -> None:
        """All ranks: the model goes on from the next base."""
        if how is Rebase.LOAD:
            self._load()
        elif how is Rebase.ADD:
            began = self.clock.monotonic()
            held = self.link.base if self.link else None
            self.trainer.add((upload.update.weights, held.weights) if held and upload else None)
            if self.link is not None:
                self.link.seconds.add("apply", self.clock.monotonic() - began)

    def _load(self) -> None:
        began, link = self.clock.monotonic(), self.link
        self.trainer.load(link.base if link else None)
        self.dirty = False
        if link is not None:
            link.seconds.add("apply", self.clock.monotonic() - began)

    def _idle(self, assignment: wire.Assignment) -> None:
        link = self.link
        if link is not None and not link.stopping():
            link.log(f"round {assignment.round}: the lease holds no whole step")
            link.wait(1.0)

    def _say_seconds(self, current: TrainingRound) -> None:
        assert self.link is not None
        self.link.log(f"round {current.assignment.round}: {current.report.steps} steps; {self.link.seconds.take()}")


def _train_plan(following: Work, **more: object) -> dict[str, object]:
    assert following.assignment is not None
    return {"kind": "train", "assignment": asdict(following.assignment), "began": following.began, **more}
