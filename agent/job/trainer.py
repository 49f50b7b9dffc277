"""Model, optimizer and data of one rank, built once for a whole curtailment window.

Decides how the samples of a lease become changed weights, and how a fresh optimizer on
trained weights warms up again. It knows no rounds and communicates with the other ranks
only; weights are always changed in place. Units: tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from agent.job.base_weights import BaseWeights
from agent.job.ranks import RankGroup
from curtail import wire
from curtail.errors import CheckpointError
from nanochat import weights as weight_sets
from nanochat.acceleration import accelerate
from nanochat.distributed import broadcast_weights, compute_dtype
from nanochat.gpt import GPT
from nanochat.micro_batch import device_batch
from nanochat.optim import MuonAdamW
from nanochat.presets import from_dict, weight_shapes
from nanochat.recipe import recipe_from_json
from nanochat.schedule import Schedule, joint, rewarm_factor
from nanochat.train import SampleStream, StepBatches, TrainReport, inner_steps
from nanochat.weights import Weights


def schedule_of(info: wire.RunInfo) -> Schedule:
    """The run's schedule; a plain loop that must give the same weights uses the same one."""
    recipe, batch_tokens = recipe_from_json(info.recipe), info.batch_samples * info.sequence_len
    return recipe.schedule(from_dict(info.model_config), info.token_budget, batch_tokens)


class RankTrainer:
    """What one rank trains with; all ranks must build theirs together.

    Args: per_pass: samples in a forward pass at this site; 0: the run's value.
    Raises: ConfigError: a recipe of another version. CurtailError: not even one sample fits into this GPU.
    """

    def __init__(
        self, info: wire.RunInfo, stream: SampleStream, group: RankGroup, device: torch.device, per_pass: int = 0
    ) -> None:
        config = from_dict(info.model_config)
        self.info, self.stream, self.group, self.device = info, stream, group, device
        self.shapes = weight_shapes(config)
        self.batch_tokens = info.batch_samples * info.sequence_len
        self.model = GPT(config, compute_dtype(device)).to(device)
        # Compiled once for all rounds, since weights are changed in place.
        self.fast = accelerate(self.model, device)
        self.optimizer = MuonAdamW(self.model, config, self.batch_tokens, recipe_from_json(info.recipe))
        self.schedule = schedule_of(info)
        self.device_batch = per_pass or info.device_batch_samples or self._fitting()
        self.own_steps = 0
        self.rewarm = 0  # steps of this job over which the learning rate rises; 0: none

    def _fitting(self) -> int:
        """Samples in a forward pass if neither site nor run say: what fits on a GPU; on a CPU the rank's share."""
        most = max(1, self.info.batch_samples // self.group.ranks.ranks)
        if self.device.type != "cuda":
            return most
        return device_batch(self.fast.net, self.model.config, self.info.sequence_len, most, self.device)

    def load(self, base: BaseWeights | None) -> None:
        """Copy rank 0's base weights into every rank's model, in place; the other ranks pass None."""
        if base is not None:
            weight_sets.load_into(self.model, base.weights)
        broadcast_weights(self.model)

    def batches(self, assignment: wire.Assignment) -> StepBatches:
        """This rank's micro-batches of the leased samples."""
        ranks = self.group.ranks
        return StepBatches(
            self.stream,
            start=assignment.lease_start,
            stop=min(assignment.lease_stop, assignment.lease_start + assignment.steps * self.info.batch_samples),
            batch_samples=self.info.batch_samples,
            device_batch=self.device_batch,
            rank=ranks.rank,
            ranks=ranks.ranks,
        )

    def steps(
        self, span: wire.Assignment, until: Callable[[int], bool], on_step: Callable[[int, float, int], None] | None
    ) -> TrainReport:
        """Make inner steps on the samples of `span`; see `nanochat.train.inner_steps`. All ranks together."""
        own, warm = self.own_steps, self.rewarm
        report = inner_steps(
            self.fast.net,
            self.optimizer,
            joint(self.schedule, span.tokens_per_step, span.rate_factor, span.memory_factor),
            self.batches(span),
            tokens_before=span.tokens_before,
            tokens_per_step=span.tokens_per_step,
            until=until,
            on_step=on_step,
            lr_factor=(lambda step: rewarm_factor(own + step, warm)) if own < warm else None,
            device=self.device,
        )
        self.own_steps += report.steps
        return report

    @torch.no_grad()
    def add(self, versions: tuple[Weights, Weights] | None) -> None:
        """Add the second weight set minus the first to every rank's model; the other ranks pass None."""
        if versions is not None:
            before, after = versions
            for name, parameter in self.model.named_parameters():
                parameter.add_(torch.from_numpy(after[name] - before[name]).to(parameter.device))
        broadcast_weights(self.model)

    def start_optimizer(
        self, state: Mapping[str, torch.Tensor] | None, version: int, log: Callable[[str], None] | None
    ) -> None:
        """Before the first step on weights of `version`: load rank 0's optimizer state, if it has one that fits.

        Otherwise the optimizer starts fresh, and on trained weights its learning rate rises from near 0.
        Args: log: rank 0's; None on the other ranks.
        """
        if state is not None and log is not None:
            try:
                self.optimizer.load_state_dict(state)
            except CheckpointError as error:
                log(f"an optimizer state cannot be used: {error}")
                state = None
        if not self.group.share({"inner": state is not None} if log is not None else None)["inner"]:
            self.rewarm = self.info.rewarm_steps if version > 0 else 0
            if self.rewarm and log is not None:
                log(f"the optimizer starts afresh: its learning rate rises over {self.rewarm} steps")
            return
        shared = dict(state) if state is not None else self.optimizer.blank_state()
        self.group.share_tensors(shared)
        if log is None:
            self.optimizer.load_state_dict(shared)
