"""Muon for the blocks' matrices, AdamW for embeddings and scales, as one optimizer.

Decides how averaged gradients change the weights. Rates are nanochat's of
2026-01-12; what varies over a run (rate scale, momentum, decay) comes with
each step as plain numbers, and is never stored. State is saved by parameter
name, whole, so that another number of ranks can continue. Every rank makes the
same update; gradients are averaged over the process group first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from curtail.errors import CheckpointError
from nanochat.device import average_gradients
from nanochat.presets import GPTConfig
from nanochat.schedule import Hyper

# Coefficients of five quintic iterations, from the Polar Express paper (arXiv
# 2505.16932) as nanochat and modded-nanogpt use them.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Rates at a batch of 2^19 tokens; embedding rates at width 768. Source: nanochat 2026-01-12."""

    unembedding_lr: float = 0.004
    embedding_lr: float = 0.3
    resid_lr: float = 0.005  # not scaled by width
    x0_lr: float = 0.5  # not scaled by width
    matrix_lr: float = 0.02
    adam_betas: tuple[float, float] = (0.8, 0.95)
    adam_eps: float = 1e-10
    muon_beta2: float = 0.95
    reference_batch_tokens: int = 2**19
    reference_width: int = 768


def polar_express(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values go to about 1.

    Args: matrices: (K, rows, cols), each treated alone. dtype: of the products.
    Returns: the same shape in `dtype`.
    """
    x = matrices.to(dtype)
    # the factor keeps the largest singular value below 1 despite rounding
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


@dataclass(slots=True)
class _MuonGroup:
    """Matrices of one shape, updated as one stack of K."""

    names: list[str]
    parameters: list[nn.Parameter]
    lr: float
    momentum: Tensor  # (K, rows, cols)
    second: Tensor  # (K, rows, 1) or (K, 1, cols): one mean square per row of the larger side


@dataclass(slots=True)
class _AdamEntry:
    """One tensor under AdamW."""

    name: str
    parameter: nn.Parameter
    lr: float
    mean: Tensor
    mean_square: Tensor


class MuonAdamW:
    """The optimizer of one model.

    Args:
        model: on its final device; `presets.weight_shapes` names its parameters.
        config: gives the width that scales embedding rates.
        batch_tokens: tokens of one step at this site; rates scale with its square root.
        recipe: the rates before scaling.
        group: process group to average gradients over; the default group if None.
    """

    def __init__(
        self,
        model: nn.Module,
        config: GPTConfig,
        batch_tokens: int,
        recipe: Recipe | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.recipe = recipe or Recipe()
        self.group = group
        self.step_count = 0
        self._parameters = dict(sorted(model.named_parameters()))
        batch_scale = (batch_tokens / self.recipe.reference_batch_tokens) ** 0.5
        width_scale = (config.n_embd / self.recipe.reference_width) ** -0.5
        rates = {
            "lm_head.weight": self.recipe.unembedding_lr * width_scale,
            "transformer.wte.weight": self.recipe.embedding_lr * width_scale,
            "resid_lambdas": self.recipe.resid_lr,
            "x0_lambdas": self.recipe.x0_lr,
        }
        self._adam: list[_AdamEntry] = []
        stacks: dict[tuple[int, int], list[str]] = {}
        for name, p in self._parameters.items():
            if name in rates:
                rate = rates[name] * batch_scale
                self._adam.append(_AdamEntry(name, p, rate, torch.zeros_like(p), torch.zeros_like(p)))
            else:
                assert p.ndim == 2, f"{name} is no matrix"
                stacks.setdefault((p.size(0), p.size(1)), []).append(name)
        self._muon = [self._stack(names, rows, cols, batch_scale) for (rows, cols), names in stacks.items()]

    def _stack(self, names: list[str], rows: int, cols: int, batch_scale: float) -> _MuonGroup:
        parameters = [self._parameters[name] for name in names]
        shape = (len(names), rows, cols)
        second_shape = (len(names), rows, 1) if rows >= cols else (len(names), 1, cols)
        return _MuonGroup(
            names,
            parameters,
            self.recipe.matrix_lr * batch_scale * max(1.0, rows / cols) ** 0.5,
            parameters[0].new_zeros(shape),
            parameters[0].new_zeros(second_shape),
        )

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, hyper: Hyper) -> None:
        """Average the gradients over the ranks and update every weight in place.

        All ranks must call it together. A weight without a gradient counts as gradient zero.
        """
        average_gradients(self._parameters.values(), self.group)
        self.step_count += 1
        for entry in self._adam:
            self._adam_step(entry, hyper)
        for group in self._muon:
            self._muon_step(group, hyper)

    def _adam_step(self, entry: _AdamEntry, hyper: Hyper) -> None:
        gradient = entry.parameter.grad if entry.parameter.grad is not None else torch.zeros_like(entry.parameter)
        beta1, beta2 = self.recipe.adam_betas
        entry.mean.lerp_(gradient, 1 - beta1)
        entry.mean_square.lerp_(gradient.square(), 1 - beta2)
        rate = entry.lr * hyper.lr_scale / (1 - beta1**self.step_count)
        root = (entry.mean_square / (1 - beta2**self.step_count)).sqrt_().add_(self.recipe.adam_eps)
        entry.parameter.addcdiv_(entry.mean, root, value=-rate)

    def _muon_step(self, group: _MuonGroup, hyper: Hyper) -> None:
        gradients = torch.stack([p.grad if p.grad is not None else torch.zeros_like(p) for p in group.parameters])
        group.momentum.lerp_(gradients, 1 - hyper.muon_momentum)
        update = gradients.lerp_(group.momentum, hyper.muon_momentum)  # Nesterov: look one step ahead
        update = polar_express(update, torch.bfloat16 if update.is_cuda else torch.float32).float()
        update = self._even_out(update, group.second)
        weights = torch.stack([p.data for p in group.parameters])
        rate = group.lr * hyper.lr_scale
        # cautious decay: only where the step and the decay pull the same way
        decay = weights * (update * weights >= 0) * (rate * hyper.weight_decay)
        weights.sub_(update.mul_(rate).add_(decay))
        for parameter, new in zip(group.parameters, weights, strict=True):
            parameter.copy_(new)

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

    def _tensors(self) -> dict[str, Tensor]:
        """The live state by saved name; writing into a tensor changes the optimizer."""
        tensors: dict[str, Tensor] = {}
        for entry in self._adam:
            tensors[f"adamw.mean.{entry.name}"] = entry.mean
            tensors[f"adamw.mean_square.{entry.name}"] = entry.mean_square
        for group in self._muon:
            for index, name in enumerate(group.names):
                tensors[f"muon.momentum.{name}"] = group.momentum[index]
                tensors[f"muon.second.{name}"] = group.second[index]
        return dict(sorted(tensors.items()))

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the whole state on the CPU, by parameter name, and the step count as `step`."""
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self._tensors().items()}
        copies["step"] = torch.tensor(self.step_count, dtype=torch.int64)
        return copies

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state that `state_dict` gave, whatever the number of ranks was.

        Raises: CheckpointError: a name is missing or unknown, or a shape differs; nothing is changed then.
        """
        live = self._tensors()
        if wrong := sorted((set(live) | {"step"}) ^ set(state)):
            what = "has the unknown entry" if wrong[0] in state else "lacks"
            raise CheckpointError(f"the optimizer state {what} {wrong[0]!r}", "use the state of the same model")
        for name, tensor in live.items():
            if state[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{name} of the optimizer state has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}",
                    "use the state of the same model",
                )
        for name, tensor in live.items():
            tensor.copy_(state[name])
        self.step_count = int(state["step"])
