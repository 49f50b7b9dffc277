"""The rounds of one job on every rank: weights, inner steps, contribution.

Decides when a round ends and whether the model still equals the base copy.
Rank 0 has a `Speaker` and says what all do; every rank makes the same steps.
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

from agent.job.contribution import Contributor, Made, finite
from agent.job.controller_link import SLICE_S, Next, Speaker
from agent.job.overlap import Landing, Work, land, part, rest, steps_of
from agent.job.trainer import Trainer
from agent.job.upload_thread import Flight, close
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
    """The rounds of one job on one rank; `speaker` is there on rank 0 only."""

    def __init__(self, trainer: Trainer, speaker: Speaker | None, disk: Disk, clock: Clock) -> None:
        self.trainer, self.speaker, self.clock = trainer, speaker, clock
        self.contributor = Contributor(speaker, trainer.info.run, disk) if speaker else None
        self.batch = trainer.info.batch_samples
        self.dirty = True  # the model's weights differ from the base copy
        self.fresh = True  # no round was trained yet

    def run(self) -> str:
        """Train rounds until told to leave or to drain; why it ended."""
        with self.speaker.reporting() if self.speaker else contextlib.nullcontext():
            reason = None
            while reason is None:
                plan = self.trainer.team.share(self._plan() if self.speaker else None)
                if plan["kind"] == "leave":
                    reason = str(plan["reason"])
                elif plan["kind"] == "train":
                    reason = self._rounds(self._enter(plan))
            return reason

    def _plan(self) -> dict[str, object]:
        """Rank 0: ask the controller, bring the base copy up to date, say what all ranks do."""
        speaker = self.speaker
        assert speaker is not None
        if reason := speaker.drain_reason():
            return {"kind": "leave", "reason": reason}
        if reason := speaker.hold_reason():
            speaker.tell("hold", reason)
            with speaker.seconds("idle"):
                speaker.wait(HOLD_SLICE_S)
            return {"kind": "wait"}
        if speaker.phase == "train":
            speaker.tell("sync")
        held = speaker.held
        following = speaker.next(self.trainer.shapes)
        if following.kind == "leave":
            return {"kind": "leave", "reason": following.reason}
        if following.assignment is None:
            speaker.tell(speaker.phase, following.reason)
            with speaker.seconds("idle"):
                speaker.wait(max(0.05, following.retry_s))
            return {"kind": "wait"}
        # Updates change `held` in place or replace it: whatever was fetched must be copied into the model.
        load = self.dirty or following.assignment.fetch != "none" or held is None
        return _train_plan(following, load=load)

    def _enter(self, plan: dict[str, Any]) -> Work:
        """A round that begins with nothing trained ahead."""
        work = Work(wire.Assignment(**plan["assignment"]), plan["began"])
        if plan["load"]:
            self._load()
        if self.fresh:
            kept = self.contributor.take_up(work.assignment, self.trainer.batch_tokens) if self.contributor else None
            log = self.speaker.log if self.speaker else None
            self.trainer.take_up(kept.state if kept else None, work.assignment.base_version, log)
            self.fresh = False
        return work

    def _rounds(self, work: Work) -> str | None:
        """This round, and the next ones as long as each begins before its forerunner is merged; why to leave."""
        while True:
            draining = self._train(work)
            if not work.report.steps:
                self._idle(work.assignment)
                return None
            self.dirty = True
            ahead = None if draining else rest(work.assignment, work.report, self.batch)
            if ahead is None:
                self._contribute(work, self._snapshot(work, keep=False))
                return None
            # No name holds the snapshot here: the next one must not meet it in memory.
            following = self._fly(work, self._snapshot(work, keep=True), ahead)
            if isinstance(following, str):
                return following
            work = following

    # -- inner steps -----------------------------------------------------------

    def _train(self, work: Work) -> bool:
        """Inner steps until the round ends; whether it ended because the job drains."""
        speaker = self.speaker
        if work.closing:
            return True
        done = work.report.steps
        most = steps_of(work.assignment, self.batch, done)

        def say(step: int) -> int:
            assert speaker is not None
            if speaker.stopping():
                return DRAIN
            # One step at least: a round that fetching used up would else never get anywhere.
            late = self.clock.monotonic() - work.began >= work.assignment.train_s
            return END_ROUND if done + step and (late or speaker.should_end(work.assignment.round)) else GO_ON

        if speaker is not None:
            speaker.enter()
        if done >= most:
            return False
        report, code = self._steps(work.assignment, part(work.assignment, done, most, self.batch), done, say)
        work.report = work.report.then(report)
        return code == DRAIN

    def _steps(
        self, assignment: wire.Assignment, span: wire.Assignment, before: int, say: Callable[[int], int]
    ) -> tuple[TrainReport, int]:
        """Inner steps on `span` until rank 0 says otherwise or it is used up; what was done, and what rank 0 said.

        Args: before: steps of the round that were made already. say: rank 0 only, asked before each step.
        """
        trainer, speaker = self.trainer, self.speaker
        began, said = self.clock.monotonic(), GO_ON

        def until(step: int) -> bool:
            nonlocal said
            said = trainer.team.share_code(say(step) if speaker is not None else GO_ON)
            return said != GO_ON

        def on_step(step: int, loss: float, tokens: int) -> None:
            assert speaker is not None
            done = (step + 1) * trainer.batch_tokens
            rate = done / max(1e-9, self.clock.monotonic() - began)
            env, steps = speaker.env, before + step + 1
            tokens = steps * trainer.batch_tokens
            speaker.report(
                wire.Progress(env.site, env.fence, env.job, assignment.round, steps, tokens, finite(loss), rate)
            )

        if speaker is not None:
            speaker.tell("train")
        report = trainer.steps(span, until, on_step if speaker else None)
        if speaker is not None:
            speaker.seconds.add("step", self.clock.monotonic() - began)
        return report, said

    # -- contributions -----------------------------------------------------------

    def _snapshot(self, work: Work, keep: bool) -> Made | None:
        """All ranks: host copies of weights and optimizer state, on rank 0."""
        trainer, speaker = self.trainer, self.speaker
        began = self.clock.monotonic()
        state = trainer.optimizer.state_dict(wanted=speaker is not None)
        if speaker is None:
            return None
        weights = weight_sets.from_model(trainer.model)
        speaker.seconds.add("snapshot", self.clock.monotonic() - began)
        return Made(work.assignment, work.report, keep, weights, state)

    def _contribute(self, work: Work, made: Made | None) -> None:
        """Rank 0: hand in and wait for it; afterwards `dirty` says whether the model is the base copy."""
        if self.speaker is None or self.contributor is None or made is None:
            return
        self.speaker.tell("sync", f"handing in the contribution to round {work.assignment.round}")
        if self.contributor.hand_in(made) and made.assignment.codec == "weights":
            self.dirty = False  # the next version is exactly these weights: the model stays untouched
        self._say_seconds(work)

    def _fly(self, work: Work, made: Made | None, ahead: wire.Assignment) -> Work | str:
        """Hand in beside the training; the next round with the steps made meanwhile, or why to leave."""
        speaker, flight = self.speaker, None
        if self.contributor is not None and made is not None:
            flight = Flight(self.contributor, made, self.trainer.shapes)
            flight.start()

        def say(step: int) -> int:
            assert speaker is not None and flight is not None
            return DRAIN if speaker.stopping() else SWITCH if flight.ended else GO_ON

        report, _ = self._steps(work.assignment, ahead, work.report.steps, say)
        plan = self.trainer.team.share(self._landing(flight, ahead, report) if flight else None)
        if plan["kind"] == "leave":
            return str(plan["reason"])
        self._land(Landing(plan["how"]), flight)
        if flight is not None:
            self._say_seconds(work)
        kept = report if plan["how"] != Landing.LOAD else NO_STEPS
        return Work(wire.Assignment(**plan["assignment"]), plan["began"], kept, plan["closing"])

    def _landing(self, flight: Flight, ahead: wire.Assignment, report: TrainReport) -> dict[str, object]:
        """Rank 0: wait until the contribution is in and the next round is there; say what all ranks do."""
        speaker = self.speaker
        assert speaker is not None
        told = ("", "")
        with speaker.seconds("idle"):
            while not flight.join(SLICE_S):
                # a contribution that is in, and a round that is waited for, is a hold
                holds = flight.accepted and (reason := speaker.hold_reason())
                says = ("hold", reason) if holds and reason else ("sync", flight.reason)
                if says != told:
                    told = says
                    speaker.tell(*told)
        following, closing = flight.result(), False
        if following.kind == "leave" and flight.accepted and report.steps:
            closing = True
            speaker.tell("sync", f"handing in {report.steps} steps trained ahead")
            following = close(speaker, self.trainer.shapes)
        if following.assignment is None:
            if report.steps:
                speaker.log(f"{report.steps} steps trained ahead are dropped: {following.reason}")
            return {"kind": "leave", "reason": speaker.drain_reason() or following.reason}
        how = land(
            flight.made.assignment, ahead.lease_start, report.samples, following.assignment,
            accepted=flight.accepted, snapshot_digest=flight.made.digest,
        )  # fmt: skip
        if how is Landing.LOAD and report.steps:
            speaker.log(f"{report.steps} steps trained ahead are dropped: the next round has another base or lease")
        return _train_plan(following, how=how.value, closing=closing)

    def _land(self, how: Landing, flight: Flight | None) -> None:
        """All ranks: the model goes on from the next base."""
        if how is Landing.LOAD:
            self._load()
        elif how is Landing.ADD:
            began = self.clock.monotonic()
            held = self.speaker.held if self.speaker else None
            self.trainer.add((flight.made.weights, held.weights) if held and flight else None)
            if self.speaker is not None:
                self.speaker.seconds.add("apply", self.clock.monotonic() - began)

    def _load(self) -> None:
        began, speaker = self.clock.monotonic(), self.speaker
        self.trainer.load(speaker.held if speaker else None)
        self.dirty = False
        if speaker is not None:
            speaker.seconds.add("apply", self.clock.monotonic() - began)

    def _idle(self, assignment: wire.Assignment) -> None:
        speaker = self.speaker
        if speaker is not None and not speaker.stopping():
            speaker.log(f"round {assignment.round}: the lease holds no whole step")
            speaker.wait(1.0)

    def _say_seconds(self, work: Work) -> None:
        assert self.speaker is not None
        self.speaker.log(f"round {work.assignment.round}: {work.report.steps} steps; {self.speaker.seconds.take()}")


def _train_plan(following: Next, **more: object) -> dict[str, object]:
    assert following.assignment is not None
    return {"kind": "train", "assignment": asdict(following.assignment), "began": following.began, **more}
