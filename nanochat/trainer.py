"""Plain data-parallel training on every rank: `python -m nanochat.trainer OPTIONS` under torchrun.

The baseline for federated runs: the same inner steps over the same samples in the
same order, from sample 0 on. This module decides when to save and to evaluate, from
which checkpoint to resume, and what is recorded. Only rank 0 writes files. A signal
ends the run after the current step, with a checkpoint. Units: tokens, steps, seconds.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from curtail.errors import CheckpointError, CurtailError
from curtail.system.clock import Clock, SystemClock
from curtail.system.disk import Disk, SystemDisk, disk_error
from curtail.system.process import die_with_parent, on_signals
from nanochat import train_checkpoints, weights
from nanochat.acceleration import accelerate
from nanochat.bpb import bits_per_byte
from nanochat.distributed import (
    COLLECTIVE_S,
    agree,
    broadcast_weights,
    choose_device,
    compute_dtype,
    join_ranks,
    leave_ranks,
    ranks_from_environment,
)
from nanochat.gpt import GPT
from nanochat.metrics import Metrics
from nanochat.micro_batch import device_batch
from nanochat.optim import MuonAdamW
from nanochat.pack import TokenStream
from nanochat.peak_flops import utilisation
from nanochat.presets import flops_per_token
from nanochat.tokenizer import FILE_NAME, Tokenizer
from nanochat.train import StepBatches, inner_steps
from nanochat.train_options import FAILURE_FILE, TrainOptions, TrainPlan, check_out, make_plan

SAY_EVERY_S = 2.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a run."""

    steps: int
    tokens: int
    loss: float | None  # of the last step, nats per token; None if there was none
    seconds: float  # of training, including earlier parts of the run
    checkpoint: str | None
    stopped_by: int | None  # the signal that ended it early


class Trainer:
    """Model, optimizer and data of one rank.

    Args: say: prints a message for the user; on rank 0 only.
    Raises: CurtailError: the plan cannot be trained here.
    """

    def __init__(self, options: TrainOptions, disk: Disk, clock: Clock, say: Say) -> None:
        self.options, self.disk, self.clock = options, disk, clock
        self.out = Path(options.out)
        place = ranks_from_environment()
        self.plan: TrainPlan = make_plan(options, place.ranks)
        if options.threads:
            torch.set_num_threads(options.threads)
        self.device = choose_device(options.device, place.local_rank)
        self.ranks = join_ranks(self.device, COLLECTIVE_S)
        self.first = self.ranks.rank == 0
        self.say: Say = say if self.first else lambda _: None
        self.model = GPT(self.plan.config, compute_dtype(self.device)).to(self.device)
        # Training uses `fast.net`, everything else the model itself.
        self.fast = accelerate(
            self.model, self.device, attention=options.attention, fp8=options.fp8, compiled=options.compile
        )
        self.optimizer = MuonAdamW(self.model, self.plan.config, self.plan.batch_tokens, self.plan.recipe)
        self.stream = TokenStream(Path(options.data), self.plan.manifest, "train")
        self.device_name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        self.flops = flops_per_token(self.plan.config)
        self.signal: int | None = None  # the signal that this rank received
        self.stopped = False  # all ranks agreed to stop
        self.progress = self.plan.progress
        self.metrics: Metrics | None = None
        self.saved: Path | None = None

    def start(self) -> None:
        """Load weights and state from the newest intact checkpoint, else initialise them from the seed."""
        found = None
        if self.first:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise disk_error("create", self.out, error) from error
            for line in check_out(self.options, self.plan):
                self.say(line)
            train_checkpoints.sweep(self.out)
            found = train_checkpoints.newest(self.out, self.say)
        facts = self._share(asdict(found.progress) if found else {})
        if facts:
            self._take_up(train_checkpoints.Progress(**facts), found)
        elif self.first:
            self.model.init_weights(self.options.seed)
        broadcast_weights(self.model)
        self._choose_device_batch(facts)
        if self.first:
            settings = {**asdict(self.options), **asdict(self.plan.recipe), "ranks": self.ranks.ranks}
            settings |= {"attention": self.fast.choice.backend.name, "compile": self.fast.compiled}
            if self.device.type == "cuda" or self.options.attention != "auto":
                self.say(str(self.fast))
            self.metrics = Metrics(
                self.out, self.progress.step, self.disk, wandb=self.options.wandb, settings=settings
            )  # fmt: skip

    def _take_up(self, old: train_checkpoints.Progress, found: train_checkpoints.Found | None) -> None:
        """Resume from a checkpoint that rank 0 has read."""
        now = self.plan.progress
        self.progress = replace(old, token_budget=now.token_budget, ranks=now.ranks)
        if found:
            weights.load_into(self.model, found.weights)
        state = weights.to_tensors(found.optimizer) if found else self.optimizer.blank_state()
        if self.ranks.ranks > 1:
            for name in sorted(self.optimizer.state_shapes()):
                if name not in state:
                    raise CheckpointError(f"the optimizer state lacks {name!r}", "use another checkpoint")
                tensor = state[name].to(self.device)
                dist.broadcast(tensor, 0)
                state[name] = tensor
        self.optimizer.load_state_dict(state)
        self.say(f"resuming from step {old.step:,} ({old.tokens:,} tokens)")

    def _choose_device_batch(self, old: dict[str, Any]) -> None:
        """Set the samples per pass: given, as before, or found. Args: old: the progress of a resumed run, or empty."""
        most = self.plan.batch_samples // self.ranks.ranks
        chosen = self.options.device_batch_samples
        if not chosen and old and old["ranks"] == self.ranks.ranks:
            chosen = old["device_batch"]  # for the same rounding as before
        if not chosen:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            length = self.plan.manifest.sequence_len
            chosen = device_batch(self.fast.net, self.plan.config, length, most, self.device, local_ranks=local)
        self.progress = replace(self.progress, device_batch=min(chosen, most))

    def run(self) -> TrainResult:
        """Train to the end of the budget, or until a signal. Returns: the result, on every rank."""
        options, plan = self.options, self.plan
        gc.collect()
        gc.freeze()  # existing objects stay alive, so later garbage collections need not scan them
        while self.progress.step < plan.steps and not self.stopped:
            marks = [plan.steps]
            for every in (options.save_every, options.eval_every):
                if every:
                    marks.append((self.progress.step // every + 1) * every)
            self._train_to(min(marks))
            step = self.progress.step
            done = step == plan.steps or self.stopped
            if options.eval_every and (step % options.eval_every == 0 or step == plan.steps):
                self._score()
            if done or (options.save_every and step % options.save_every == 0):
                self._save()
        last = self.saved or (train_checkpoints.folder_of(self.out, self.progress.step) if self.progress.step else None)
        return TrainResult(
            steps=self.progress.step,
            tokens=self.progress.tokens,
            loss=self.progress.loss,
            seconds=self.progress.seconds,
            checkpoint=str(last) if last else None,
            stopped_by=(self.signal or signal.SIGTERM) if self.stopped else None,
        )

    def _train_to(self, stop: int) -> None:
        """Make the steps up to `stop`, or fewer if a signal comes."""
        plan, before = self.plan, self.progress
        batch = plan.batch_samples
        batches = StepBatches(
            self.stream,
            start=before.step * batch,
            stop=stop * batch,
            batch_samples=batch,
            device_batch=before.device_batch,
            rank=self.ranks.rank,
            ranks=self.ranks.ranks,
        )
        began = self.clock.monotonic()

        def until(step: int) -> bool:
            # The ranks agree, because a signal reaches them at different steps.
            self.stopped = agree(self.signal is not None, self.device)
            return self.stopped

        report = inner_steps(
            self.fast.net,
            self.optimizer,
            plan.schedule,
            batches,
            tokens_before=before.tokens,
            tokens_per_step=plan.batch_tokens,
            until=until,
            on_step=self._recorder(before, began) if self.first else None,
            device=self.device,
        )
        self.progress = replace(
            before,
            step=before.step + report.steps,
            tokens=before.tokens + report.tokens,
            seconds=before.seconds + self.clock.monotonic() - began,
            loss=report.loss_last if report.steps else before.loss,
        )

    def _recorder(self, before: train_checkpoints.Progress, began: float) -> Callable[[int, float, int], None]:
        """A function that records each step after `before`, and prints a message at intervals."""
        plan, metrics = self.plan, self.metrics
        assert metrics is not None
        last = said = began

        def record(step: int, loss: float, tokens: int) -> None:
            nonlocal last, said
            now = self.clock.monotonic()
            rate = plan.batch_tokens / max(1e-9, now - last)
            last = now
            number = before.step + step + 1
            mfu = utilisation(rate, self.flops, self.device_name, self.ranks.ranks)
            line = {
                "step": number,
                "tokens": tokens,
                "loss": loss,
                "lr_scale": plan.schedule.at(tokens - plan.batch_tokens).lr_scale,
                "tok_s": rate,
                "mfu": mfu,
                "seconds": before.seconds + now - began,
            }
            metrics.write(line)
            if not math.isfinite(loss):
                raise CurtailError(f"the loss of step {number} is {loss}", "lower the rates with --set, and resume")
            if now - said >= SAY_EVERY_S or number in (1, plan.steps):
                said = now
                share = f", MFU {mfu:.1%}" if mfu is not None else ""
                self.say(f"step {number:,} of {plan.steps:,}: loss {loss:.4f}, {rate:,.0f} tok/s{share}")

        return record

    def _score(self) -> None:
        """Compute bits per byte on the validation part, with all ranks."""
        data, length = Path(self.options.data), self.plan.manifest.sequence_len
        stream = TokenStream(data, self.plan.manifest, "validation")
        samples = max(1, min(stream.samples, self.options.eval_tokens // length))
        result = bits_per_byte(
            self.model,
            stream,
            Tokenizer.load(data / FILE_NAME).token_bytes(),
            tokens=samples * length,
            device=self.device,
            device_batch=max(1, min(16, self.progress.device_batch)),
            ranks=self.ranks,
        )
        if self.metrics:
            line = {"step": self.progress.step, "tokens": self.progress.tokens}
            self.metrics.write({**line, "val_bpb": result.bpb, "val_loss": result.loss, "val_tokens": result.tokens})
        self.say(f"step {self.progress.step:,}: {result.bpb:.4f} bits per byte on {result.tokens:,} tokens")

    def _save(self) -> None:
        """Save a checkpoint of this step; all ranks contribute their shards of the optimizer's state."""
        if not self.progress.step or self.saved == train_checkpoints.folder_of(self.out, self.progress.step):
            return
        state = self.optimizer.state_dict(wanted=self.first)
        if not self.first:
            return
        created = datetime.fromtimestamp(self.clock.wall(), UTC).isoformat(timespec="seconds")
        meta = replace(self.plan.meta, tokens=self.progress.tokens, version=self.progress.step, created=created)
        self.saved = train_checkpoints.save(
            self.out, weights.from_model(self.model), weights.from_tensors(state), meta, self.progress, self.disk
        )
        train_checkpoints.thin_out(self.out, self.options.keep, self.options.milestone_every)
        self.say(f"saved {self.saved}")

    def _share(self, message: dict[str, Any]) -> dict[str, Any]:
        """Rank 0's message on every rank."""
        if self.ranks.ranks == 1:
            return message
        box = [json.dumps(message)]
        dist.broadcast_object_list(box, 0, device=self.device)
        shared = json.loads(box[0])
        assert isinstance(shared, dict)
        return shared


def train(options: TrainOptions, say: Say, disk: Disk | None = None, clock: Clock | None = None) -> TrainResult:
    """Train on this rank; SIGINT and SIGTERM end the run after the current step.

    Raises: CurtailError.
    """
    trainer = Trainer(options, disk or SystemDisk(), clock or SystemClock(), say)

    def stop(number: int, _: object) -> None:
        trainer.signal = trainer.signal or number

    with on_signals((signal.SIGINT, signal.SIGTERM), stop):
        try:
            trainer.start()
            result = trainer.run()
            leave_ranks()  # not after an error, because other ranks may not reach this call
            return result
        finally:
            if trainer.metrics:
                trainer.metrics.close()


def main() -> int:
    """Run one rank under torchrun. The last line of rank 0 is the result as JSON. Returns: the exit code."""
    die_with_parent(os.getppid())
    options = TrainOptions.from_json(sys.argv[1])
    try:
        result = train(options, lambda line: print(line, flush=True))
    except CurtailError as error:
        failure = {"message": error.message, "remedy": error.remedy, "exit_code": error.exit_code}
        SystemDisk().replace("TRAIN_FAILURE", Path(options.out) / FAILURE_FILE, json.dumps(failure).encode())
        return error.exit_code
    if ranks_from_environment().rank == 0:
        print(json.dumps(asdict(result)), flush=True)
    return 128 + result.stopped_by if result.stopped_by else 0


if __name__ == "__main__":
    sys.exit(main())
