"""The optimizer: Muon for the matrices of the blocks, AdamW for embeddings and scales.

It averages gradients over the ranks and updates the weights. The learning rates come
from a `Recipe`. Values that vary over a run (rate scale, momentum, decay) are passed
to each step and are not part of the state. Work and state are sharded over the ranks
(`nanochat.sharded`); after a step all ranks have the same weights. State is saved by
parameter name and unsharded, so that another number of ranks can continue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from curtail.errors import CheckpointError
from nanochat.distributed import average_gradients
from nanochat.polar_express import polar_express
from nanochat.presets import GPTConfig
from nanochat.recipe import Recipe
from nanochat.schedule import Hyper
from nanochat.sharded import Share, gathered, mean_of_share, share_of

__all__ = ["MuonAdamW", "Recipe", "polar_express"]

SPLIT_ELEMENTS = 2**16  # smaller AdamW tensors are not sharded, because that costs two exchanges


@dataclass(slots=True)
class _MuonGroup:
    """Matrices of one shape, updated as one stack of K; this rank updates k of them."""

    names: list[str]
    parameters: list[nn.Parameter]
    share: Share  # this rank's part of the stack
    lr: float
    momentum: Tensor  # (k, rows, cols)
    second: Tensor  # (k, rows, 1) or (k, 1, cols): one mean square per row of the larger side


@dataclass(slots=True)
class _AdamEntry:
    """One AdamW tensor, with the moments of this rank's rows."""

    name: str
    parameter: nn.Parameter
    share: Share  # this rank's rows
    lr: float
    betas: tuple[float, float]
    decay: float
    mean: Tensor
    mean_square: Tensor


class MuonAdamW:
    """The optimizer of one model.

    Args:
        model: on its final device; `presets.weight_shapes` names its parameters.
        config: its width scales the rates of embeddings.
        batch_tokens: tokens of one step at this site; rates scale with its square root.
        recipe: the rates before scaling.
        group: process group over which gradients are averaged; None: the default group.
        shard: shard work and state over the ranks of the group; otherwise every rank does everything.
    """

    def __init__(
        self,
        model: nn.Module,
        config: GPTConfig,
        batch_tokens: int,
        recipe: Recipe | None = None,
        group: dist.ProcessGroup | None = None,
        shard: bool = True,
    ) -> None:
        self.recipe = recipe or Recipe()
        self.group, self.shard = group, shard
        self.step_count = 0
        self._parameters = dict(sorted(model.named_parameters()))
        self._batch_scale = (batch_tokens / self.recipe.reference_batch_tokens) ** 0.5
        self._width_scale = (config.n_embd / self.recipe.reference_width) ** -0.5
        self._adam: list[_AdamEntry] = []
        stacks: dict[tuple[int, int], list[str]] = {}
        for name, p in self._parameters.items():
            if name.startswith("transformer.h."):
                stacks.setdefault((p.size(0), p.size(1)), []).append(name)
            else:
                self._adam.append(self._entry(name, p))
        self._muon = [self._stack(names, rows, cols) for (rows, cols), names in stacks.items()]

    def _entry(self, name: str, parameter: nn.Parameter) -> _AdamEntry:
        r, batch, width = self.recipe, self._batch_scale, self._width_scale
        kinds: dict[str, tuple[float, tuple[float, float], float]] = {
            "lm_head": (r.unembedding_lr * width * batch, r.unembedding_betas, r.unembedding_decay),
            "transformer": (r.embedding_lr * width * batch, r.embedding_betas, r.embedding_decay),
            "value_embeds": (r.value_embedding_lr * width * batch, r.value_embedding_betas, r.value_embedding_decay),
            "resid_lambdas": (r.resid_lr * batch, r.adam_betas, r.resid_decay),
            "x0_lambdas": (r.x0_lr * batch, r.x0_betas, 0.0),
            "smear_gate": (r.smear_lr, r.adam_betas, 0.0),
            "smear_lambda": (r.smear_lr, r.adam_betas, 0.0),
            "backout_lambda": (r.smear_lr, r.adam_betas, 0.0),
        }
        kind = name.split(".")[0]
        assert kind in kinds, f"{name} has no rate"
        share = share_of(parameter.size(0), self.group, self.shard and parameter.numel() >= SPLIT_ELEMENTS)
        own = parameter.data[share.own]
        return _AdamEntry(name, parameter, share, *kinds[kind], torch.zeros_like(own), torch.zeros_like(own))

    def _stack(self, names: list[str], rows: int, cols: int) -> _MuonGroup:
        parameters = [self._parameters[name] for name in names]
        share = share_of(len(names), self.group, self.shard)
        own = share.stop - share.start
        second_shape = (own, rows, 1) if rows >= cols else (own, 1, cols)
        return _MuonGroup(
            names,
            parameters,
            share,
            self.recipe.matrix_lr * self._batch_scale * max(1.0, rows / cols) ** 0.5,
            parameters[0].new_zeros((own, rows, cols)),
            parameters[0].new_zeros(second_shape),
        )

    def zero_grad(self) -> None:
        """Delete all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, hyper: Hyper) -> None:
        """Average the gradients over the ranks and update every weight in place.

        All ranks must call it together. A weight without a gradient counts as gradient zero.
        """
        self.step_count += 1
        average_gradients([entry.parameter for entry in self._adam if entry.share.ranks == 1], self.group)
        for entry in self._adam:
            self._adam_step(entry, hyper)
        for group in self._muon:
            self._muon_step(group, hyper)

    def _adam_step(self, entry: _AdamEntry, hyper: Hyper) -> None:
        gradient = _gradient(entry.parameter)
        split = entry.share.ranks > 1
        if split:
            gradient = mean_of_share(gradient, entry.share, self.group)
        weights = entry.parameter.data[entry.share.own]
        beta1, beta2 = entry.betas
        entry.mean.lerp_(gradient, 1 - beta1)
        entry.mean_square.lerp_(gradient.square(), 1 - beta2)
        if entry.decay:
            weights.mul_(1 - entry.lr * hyper.lr_scale * entry.decay)
        rate = entry.lr * hyper.lr_scale / (1 - beta1**self.step_count)
        root = (entry.mean_square / (1 - beta2**self.step_count)).sqrt_().add_(self.recipe.adam_eps)
        weights.addcdiv_(entry.mean, root, value=-rate)
        if split:
            entry.parameter.copy_(gathered(weights, entry.share, self.group))

    def _muon_step(self, group: _MuonGroup, hyper: Hyper) -> None:
        gradients = torch.stack([_gradient(p) for p in group.parameters])
        gradients = mean_of_share(gradients, group.share, self.group)
        weights = torch.empty_like(gradients)
        for number, parameter in enumerate(group.parameters[group.share.own]):
            weights[number] = parameter.data
        if len(gradients):
            self._muon_update(group, gradients, weights, hyper)
        for parameter, new in zip(group.parameters, gathered(weights, group.share, self.group), strict=True):
            parameter.copy_(new)

    def _muon_update(self, group: _MuonGroup, gradients: Tensor, weights: Tensor, hyper: Hyper) -> None:
        """Update `weights` (k, rows, cols) in place; overwrites `gradients`."""
        group.momentum.lerp_(gradients, 1 - hyper.muon_momentum)
        update = gradients.lerp_(group.momentum, hyper.muon_momentum)  # Nesterov: look one step ahead
        if self.recipe.equal_rows:
            # source: arXiv 2603.28254
            row = update.norm(dim=-1, keepdim=True).clamp_min(1e-6)
            update = update * (update.norm(dim=(-2, -1), keepdim=True) / update.size(-2) ** 0.5 / row)
        update = polar_express(update, torch.bfloat16 if update.is_cuda else torch.float32).float()
        if self.recipe.exact_norm:
            # source: arXiv 2602.21545
            norm = update.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
            update = update * (min(update.shape[-2:]) ** 0.5 / norm)
        update = self._even_out(update, group.second)
        rate = group.lr * hyper.lr_scale
        # Cautious weight decay: only where step and decay have the same direction.
        decay = weights * (update * weights >= 0) * (rate * hyper.weight_decay)
        weights.sub_(update.mul_(rate).add_(decay))

    def _even_out(self, update: Tensor, second: Tensor) -> Tensor:
        """Divide each row of the larger side by its running RMS, keeping each matrix's norm.

        Source: NorMuon, arXiv 2510.05491.
        """
        side = -1 if update.size(-2) >= update.size(-1) else -2
        mean_square = update.square().mean(dim=side, keepdim=True)
        second.lerp_(mean_square, 1 - self.recipe.muon_beta2)
        factor = second.clamp_min(1e-10).rsqrt()
        before = mean_square.sum(dim=(-2, -1), keepdim=True)
        after = (mean_square * factor.square()).sum(dim=(-2, -1), keepdim=True)
        return update * (factor * (before / after.clamp_min(1e-20)).sqrt())

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the whole state, in name order; `step` is a scalar int64."""
        shapes: dict[str, tuple[int, ...]] = {"step": ()}
        for entry in self._adam:
            shapes |= dict.fromkeys(
                (f"adamw.mean.{entry.name}", f"adamw.mean_square.{entry.name}"), tuple(entry.parameter.shape)
            )
        for group in self._muon:
            for name in group.names:
                shapes[f"muon.momentum.{name}"] = tuple(group.momentum.shape[1:])
                shapes[f"muon.second.{name}"] = tuple(group.second.shape[1:])
        return dict(sorted(shapes.items()))

    def blank_state(self) -> dict[str, Tensor]:
        """A whole state of zeros on the CPU, to be overwritten by another rank's."""
        return {
            name: torch.zeros(shape, dtype=torch.int64 if name == "step" else torch.float32)
            for name, shape in self.state_shapes().items()
        }

    @torch.no_grad()
    def state_dict(self, wanted: bool = True) -> dict[str, Tensor]:
        """A copy of the whole state on the CPU, by parameter name, and the step count as `step`.

        All ranks must call it together. Args: wanted: False on a rank that takes part, but needs no copy.
        """
        state: dict[str, Tensor] = {}

        def keep(name: str, tensor: Tensor) -> None:
            if wanted:
                state[name] = tensor.detach().to("cpu", copy=True)

        for entry in self._adam:
            keep(f"adamw.mean.{entry.name}", gathered(entry.mean, entry.share, self.group))
            keep(f"adamw.mean_square.{entry.name}", gathered(entry.mean_square, entry.share, self.group))
        for group in self._muon:
            for kind, own in (("momentum", group.momentum), ("second", group.second)):
                for name, tensor in zip(group.names, gathered(own, group.share, self.group), strict=True):
                    keep(f"muon.{kind}.{name}", tensor)
        if wanted:
            state["step"] = torch.tensor(self.step_count, dtype=torch.int64)
        return dict(sorted(state.items()))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load an unsharded state from `state_dict`; the number of ranks may have been another.

        Each rank takes its share, without communication.
        Raises: CheckpointError: a name is missing or unknown, or a shape differs; then nothing is changed.
        """
        shapes = self.state_shapes()
        if wrong := sorted(set(shapes) ^ set(state)):
            what = "has the unknown entry" if wrong[0] in state else "lacks"
            raise CheckpointError(f"the optimizer state {what} {wrong[0]!r}", "use the state of the same model")
        for name, shape in shapes.items():
            if tuple(state[name].shape) != shape:
                raise CheckpointError(
                    f"{name} of the optimizer state has shape {tuple(state[name].shape)}, not {shape}",
                    "use the state of the same model",
                )
        for entry in self._adam:
            entry.mean.copy_(state[f"adamw.mean.{entry.name}"][entry.share.own])
            entry.mean_square.copy_(state[f"adamw.mean_square.{entry.name}"][entry.share.own])
        for group in self._muon:
            for number, name in enumerate(group.names[group.share.own]):
                group.momentum[number].copy_(state[f"muon.momentum.{name}"])
                group.second[number].copy_(state[f"muon.second.{name}"])
        self.step_count = int(state["step"])


def _gradient(parameter: nn.Parameter) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
