"""Learning rate, Muon momentum and weight decay as functions of trained tokens.

The three values of an optimizer step depend only on the global token count. There is
no state, no clock and no step counter of a process, so a site that joins late or
resumes gets the same values. `joint` adapts them for several sites that train at once.
Progress is clamped to [0, 1], and no value is ever negative. Units: tokens; `lr_scale`
multiplies every learning rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from curtail.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Hyper:
    """The values for one optimizer step."""

    lr_scale: float  # multiplies each group's learning rate, 0 to 1
    muon_momentum: float  # 0 to 1
    weight_decay: float  # of Muon's matrices, per unit of learning rate


class Timetable(Protocol):
    """Gives the values of each step."""

    def at(self, tokens: int | float) -> Hyper:
        """The values for a step that starts after `tokens` global tokens."""
        ...


def default_weight_decay(n_layer: int) -> float:
    """0.2 * (12 / n_layer)^2: nanochat's rule, tuned at 12 layers (2026-01-12)."""
    return 0.2 * (12 / n_layer) ** 2


def rewarm_factor(step: int, steps: int) -> float:
    """Factor on the learning rate in step `step` (from 0) of a fresh optimizer on trained weights.

    It rises linearly to 1 over `steps` steps, because without optimizer state the first updates
    are too large. After that, and always if `steps` is 0, it is 1.
    """
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Constant rate, then linear warmdown; the defaults are nanochat's of 2026-01-12."""

    token_budget: int  # of the whole run
    batch_tokens: int  # tokens of one optimizer step at one site; converts tokens to steps for the momentum
    warmup_tokens: int = 0
    warmdown_fraction: float = 0.4  # last part of the budget, in which the rate falls
    final_lr: float = 0.0  # lr_scale at the end of the budget
    momentum_start: float = 0.85
    momentum_end: float = 0.95
    momentum_warmup_steps: int = 300
    weight_decay: float = 0.072  # at the start, falls to 0; default_weight_decay(20)
    momentum_final: float | None = None  # at the end of the warmdown; None: as before it
    decay_shape: str = "linear"  # how the decay falls: linear, or cosine

    def __post_init__(self) -> None:
        if self.token_budget < 1 or self.batch_tokens < 1:
            raise ConfigError("token_budget and batch_tokens must be at least 1", "give both in tokens")
        if self.warmup_tokens < 0 or self.momentum_warmup_steps < 0 or not 0 <= self.weight_decay < float("inf"):
            raise ConfigError("a schedule length or the weight decay is negative", "use 0 to switch it off")
        for name in ("warmdown_fraction", "final_lr", "momentum_start", "momentum_end"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", "give a number from 0 to 1")
        if self.momentum_final is not None and not 0 <= self.momentum_final <= 1:
            raise ConfigError(f"momentum_final is {self.momentum_final}", "give a number from 0 to 1")
        if self.decay_shape not in ("linear", "cosine"):
            raise ConfigError(f"decay_shape is {self.decay_shape!r}", "use linear or cosine")

    def at(self, tokens: int | float) -> Hyper:
        """The values for a step that starts after `tokens` global tokens."""
        progress = min(max(tokens / self.token_budget, 0.0), 1.0)
        warmup = 1.0
        if self.warmup_tokens:
            # The first step, at 0 tokens, must have a rate above 0, so the step's own tokens count.
            warmup = min(max(tokens, 0) + self.batch_tokens, self.warmup_tokens) / self.warmup_tokens
        left = 1.0
        if self.warmdown_fraction:
            left = min((1.0 - progress) / self.warmdown_fraction, 1.0)
        falling = left + (1.0 - left) * self.final_lr
        ramp = 1.0
        if self.momentum_warmup_steps:
            ramp = min(max(tokens, 0) / self.batch_tokens / self.momentum_warmup_steps, 1.0)
        momentum = (1.0 - ramp) * self.momentum_start + ramp * self.momentum_end
        if self.momentum_final is not None and left < 1.0 and ramp == 1.0:
            momentum = left * momentum + (1.0 - left) * self.momentum_final
        decay = 1.0 - progress if self.decay_shape == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return Hyper(
            lr_scale=min(warmup, falling),
            muon_momentum=momentum,
            weight_decay=self.weight_decay * decay,
        )


MEMORY_SHARE = 1 / 16
"""Upper limit of the momentum's memory (1 / (1 - momentum)), as a share of a site's steps in a whole run."""


@dataclass(frozen=True, slots=True)
class JointSchedule:
    """A schedule for one of several sites that train at once and average their weights.

    The mean of the steps of K sites is a step on K batches, so the rates grow with K as with the batch
    size. But each site's optimizer sees the noise of its own batch only. A longer momentum averages some
    of that noise, without more communication (benchmarks/parity.md).

    Args:
        tokens_per_step: global tokens during one step of this site.
        rate: factor on the learning rate.
        memory: factor on 1 / (1 - momentum), the number of steps that the momentum averages. The result is
            at most `MEMORY_SHARE` of the steps that a site makes in a whole run, and never less than before.
    """

    schedule: Timetable
    token_budget: int
    tokens_per_step: int
    rate: float
    memory: float

    def at(self, tokens: int | float) -> Hyper:
        """The values for a step that starts after `tokens` global tokens."""
        hyper = self.schedule.at(tokens)
        return replace(hyper, lr_scale=hyper.lr_scale * self.rate, muon_momentum=self._longer(hyper.muon_momentum))

    def _longer(self, momentum: float) -> float:
        if momentum >= 1.0:
            return momentum
        steps = 1.0 / (1.0 - momentum)
        most = max(steps, MEMORY_SHARE * self.token_budget / self.tokens_per_step)
        wanted = min(steps * self.memory, most)
        return momentum if wanted <= steps else 1.0 - 1.0 / wanted


def joint(schedule: Schedule, tokens_per_step: int, rate: float, memory: float) -> Timetable:
    """`schedule` for one of several sites that train at once; `schedule` itself if both factors are 1."""
    if rate == 1.0 and memory == 1.0:
        return schedule
    return JointSchedule(schedule, schedule.token_budget, tokens_per_step, rate, memory)
