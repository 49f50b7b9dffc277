"""The rounds of one job on every rank: weights, inner steps, contribution.

Decides when a round ends and whether the model still equals the base copy.
Rank 0 has a `Speaker` and says what all do; every rank makes the same steps.
While the controller says that the weights are already held, the model is not
touched between rounds: a sole site trains bit for bit like a plain loop. Units:
tokens, seconds of `Clock.monotonic`.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import torch

from agent import innerstate
from agent.speaker import Held, Speaker
from agent.team import Team
from agent.transfer import Stopped
from curtail import wire
from curtail.clock import Clock
from curtail.disk import Disk
from curtail.errors import CheckpointError, CurtailError
from nanochat import weights as weight_sets
from nanochat.delta import all_finite, difference, encode, write_delta
from nanochat.device import broadcast_weights, compute_dtype
from nanochat.gpt import GPT
from nanochat.optim import MuonAdamW
from nanochat.presets import from_dict, weight_shapes
from nanochat.schedule import Schedule, default_weight_decay
from nanochat.train import SampleStream, StepBatches, TrainReport, inner_steps

GO_ON, END_ROUND, DRAIN = 0, 1, 2
"""What rank 0 tells all ranks before each step."""


def schedule_of(info: wire.RunInfo) -> Schedule:
    """The run's schedule; a plain loop that must train alike uses the same."""
    return Schedule(
        token_budget=info.token_budget,
        batch_tokens=info.batch_samples * info.sequence_len,
        warmdown_fraction=info.warmdown_fraction,
        weight_decay=default_weight_decay(from_dict(info.model_config).n_layer),
    )


class Trainer:
    """Model, optimizer and data of one rank, built once."""

    def __init__(self, info: wire.RunInfo, stream: SampleStream, team: Team, device: torch.device) -> None:
        config = from_dict(info.model_config)
        self.info, self.stream, self.team, self.device = info, stream, team, device
        self.shapes = weight_shapes(config)
        self.batch_tokens = info.batch_samples * info.sequence_len
        self.model = GPT(config, compute_dtype(device)).to(device)
        self.optimizer = MuonAdamW(self.model, config, self.batch_tokens)
        self.schedule = schedule_of(info)
        self.tokens: int | None = None  # global tokens the optimizer has reached, None: it has not stepped here

    def load(self, held: Held | None) -> None:
        """Rank 0's base copy into every rank's model, in place."""
        if held is not None:
            weight_sets.load_into(self.model, held.weights)
        broadcast_weights(self.model)

    def batches(self, assignment: wire.Assignment) -> StepBatches:
        """This rank's micro-batches of the lease."""
        ranks = self.team.ranks
        device_batch = self.info.device_batch_samples or max(1, self.info.batch_samples // ranks.ranks)
        return StepBatches(
            self.stream,
            start=assignment.lease_start,
            stop=assignment.lease_stop,
            batch_samples=self.info.batch_samples,
            device_batch=device_batch,
            rank=ranks.rank,
            ranks=ranks.ranks,
        )


class JobLoop:
    """The rounds of one job on one rank; `speaker` is there on rank 0 only."""

    def __init__(self, trainer: Trainer, speaker: Speaker | None, disk: Disk, clock: Clock) -> None:
        self.trainer, self.speaker, self.disk, self.clock = trainer, speaker, disk, clock
        self.dirty = True  # the model's weights differ from the base copy
        self.fresh = True  # no round was trained yet

    def run(self) -> str:
        """Train rounds until told to leave or to drain; why it ended."""
        while True:
            plan = self.trainer.team.share(self._plan() if self.speaker else None)
            if plan["kind"] == "leave":
                self._keep_inner_state()
                return str(plan["reason"])
            if plan["kind"] == "train":
                self._round(wire.Assignment(**plan["assignment"]), plan["load"], plan["began"])

    def _plan(self) -> dict[str, object]:
        """Rank 0: ask the controller, bring the base copy up to date, say what all ranks do."""
        speaker = self.speaker
        assert speaker is not None
        if reason := speaker.drain_reason():
            return {"kind": "leave", "reason": reason}
        if speaker.phase == "train":
            speaker.tell("sync")
        reply = speaker.checkout()
        began = self.clock.monotonic()
        if reply.kind == "leave":
            return {"kind": "leave", "reason": reply.reason}
        if reply.kind == "wait" or reply.assignment is None:
            speaker.tell(speaker.phase, reply.reason)
            speaker.wait(max(0.05, reply.retry_s))
            return {"kind": "wait"}
        assignment = reply.assignment
        held = speaker.held
        try:
            if not speaker.hold(assignment, self.trainer.shapes):
                speaker.wait(0.5)
                return {"kind": "wait"}
        except Stopped:
            return {"kind": "leave", "reason": speaker.drain_reason() or "draining"}
        # Updates change `held` in place or replace it: whatever was fetched must be copied into the model.
        load = self.dirty or assignment.fetch != "none" or held is None
        return {"kind": "train", "assignment": asdict(assignment), "load": load, "began": began}

    def _round(self, assignment: wire.Assignment, load: bool, began: float) -> None:
        """One round: weights, inner steps, contribution."""
        trainer, speaker = self.trainer, self.speaker
        if load:
            trainer.load(speaker.held if speaker else None)
            self.dirty = False
        if self.fresh:
            self._take_up_inner_state(assignment)
            self.fresh = False
        report = self._train(assignment, began)
        if report.steps:
            trainer.tokens = assignment.tokens_before + report.steps * assignment.tokens_per_step
            self.dirty = True
        if speaker is None:
            return
        if not report.steps:
            if not speaker.draining():
                speaker.log(f"round {assignment.round}: the lease holds no whole step")
                speaker.wait(1.0)
            return
        speaker.tell("sync")
        self._contribute(assignment, report)

    def _train(self, assignment: wire.Assignment, began: float) -> TrainReport:
        speaker, team = self.speaker, self.trainer.team
        started = self.clock.monotonic()
        batch_tokens = self.trainer.batch_tokens

        def until(step: int) -> bool:
            code = GO_ON
            if speaker is not None:
                if speaker.draining():
                    code = DRAIN
                # One step at least: a round that fetching used up would else never get anywhere.
                elif step and (speaker.round_should_end() or self.clock.monotonic() - began >= assignment.train_s):
                    code = END_ROUND
            return team.share_code(code) != GO_ON

        def on_step(step: int, loss: float, tokens: int) -> None:
            assert speaker is not None
            done = (step + 1) * batch_tokens
            rate = done / max(1e-9, self.clock.monotonic() - started)
            env = speaker.env
            speaker.report(
                wire.Progress(env.site, env.fence, env.job, assignment.round, step + 1, done, _finite(loss), rate)
            )

        def steps() -> TrainReport:
            return inner_steps(
                self.trainer.model,
                self.trainer.optimizer,
                self.trainer.schedule,
                self.trainer.batches(assignment),
                tokens_before=assignment.tokens_before,
                tokens_per_step=assignment.tokens_per_step,
                until=until,
                on_step=on_step if speaker else None,
                device=self.trainer.device,
            )

        if speaker is None:
            return steps()
        speaker.tell("train")
        with speaker.reporting():
            return steps()

    def _contribute(self, assignment: wire.Assignment, report: TrainReport) -> None:
        """Rank 0: commit what was learned; afterwards `dirty` says whether the model is the base copy."""
        speaker = self.speaker
        assert speaker is not None and speaker.held is not None
        local = weight_sets.from_model(self.trainer.model)
        if not all_finite(local):
            # A new process gets the base and an optimizer without the damage.
            raise CheckpointError(f"round {assignment.round} made weights that are not finite", "lower the rates")
        path = speaker.env.folder / "contribution.safetensors"
        exact = assignment.codec == "weights"
        digest = weight_sets.digest(local) if exact else ""
        if exact:
            weight_sets.write_weights(path, local, self.disk, "CONTRIBUTION")
        else:
            encoded = encode(difference(speaker.held.weights, local), assignment.codec)
            write_delta(path, encoded, self.disk, "CONTRIBUTION")

        def request(blob: str) -> wire.CommitRequest:
            env = speaker.env
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
                digest=digest,
                loss_first=_finite(report.loss_first),
                loss_mean=_finite(report.loss_mean),
                loss_last=_finite(report.loss_last),
                seconds=report.seconds,
            )

        try:
            accepted = speaker.hand_in(path, request)
        finally:
            path.unlink(missing_ok=True)
        if accepted and exact:
            # The next version is exactly these weights: the model stays untouched.
            speaker.held = Held(assignment.base_version + 1, digest, local)
            self.dirty = False

    def _take_up_inner_state(self, assignment: wire.Assignment) -> None:
        """Before the first step: the optimizer state of an earlier job of this site, if it still fits."""
        trainer, speaker = self.trainer, self.speaker
        state = None
        if speaker is not None:
            path = innerstate.state_path(speaker.env.cache, trainer.info.run)
            state = innerstate.load(path, assignment.tokens_before, trainer.batch_tokens, speaker.log)
            if state is not None:
                try:
                    trainer.optimizer.load_state_dict(state)
                except CheckpointError as error:
                    speaker.log(f"the optimizer starts afresh: {error}")
                    state = None
        if not trainer.team.share({"inner": state is not None} if speaker else None)["inner"]:
            return
        if state is None:
            state = trainer.optimizer.blank_state()
        trainer.team.share_tensors(state)
        if speaker is None:
            trainer.optimizer.load_state_dict(state)

    def _keep_inner_state(self) -> None:
        """At the end: rank 0 keeps the optimizer state for the next job, put together from all ranks."""
        trainer, speaker = self.trainer, self.speaker
        if trainer.tokens is None:
            return
        state = trainer.optimizer.state_dict(wanted=speaker is not None)
        if speaker is None:
            return
        path = innerstate.state_path(speaker.env.cache, trainer.info.run)
        digest = weight_sets.digest(weight_sets.from_model(trainer.model))
        try:
            innerstate.save(path, state, trainer.tokens, digest, self.disk)
        except CurtailError as error:
            speaker.log(f"the optimizer state is not kept: {error}")


def _finite(loss: float | None) -> float | None:
    return loss if loss is not None and math.isfinite(loss) else None
