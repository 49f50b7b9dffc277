"""Training hyperparameters by name: `reference`, and `best` with later improvements; no torch.

Computes learning rates, momenta and schedule of a run from its model, batch and token
budget, and parses settings from the command line. Rates are for a batch of 2^19 tokens,
those of embeddings for width 768; the optimizer scales them. Units: tokens; steps where
a name says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from curtail.errors import ConfigError
from nanochat.presets import GPTConfig, config_for, group_counts, parameter_count
from nanochat.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Recipe:
    """All hyperparameters besides the model. Defaults: nanochat 2026-01-12.

    Value embeddings, smear and backout were added later and have nanochat's values of 2026-07-03.
    """

    unembedding_lr: float = 0.004
    unembedding_betas: tuple[float, float] = (0.8, 0.95)
    unembedding_decay: float = 0.0  # per unit of learning rate, of all weights; as the other decays of AdamW
    embedding_lr: float = 0.3
    embedding_betas: tuple[float, float] = (0.8, 0.95)
    embedding_decay: float = 0.0
    resid_lr: float = 0.005  # not scaled by width
    resid_decay: float = 0.0
    x0_lr: float = 0.5  # not scaled by width
    x0_betas: tuple[float, float] = (0.8, 0.95)
    value_embedding_lr: float = 0.15
    value_embedding_betas: tuple[float, float] = (0.8, 0.995)
    value_embedding_decay: float = 0.01
    smear_lr: float = 0.2  # of smear's gate and scale and backout's scale; scaled by neither width nor batch
    adam_betas: tuple[float, float] = (0.8, 0.95)  # of the scales without betas of their own
    adam_eps: float = 1e-10
    matrix_lr: float = 0.02
    muon_beta2: float = 0.95
    equal_rows: bool = False  # normalise the rows of a matrix's update before the polar iteration
    exact_norm: bool = False  # scale the update to the norm of an orthogonal matrix after it
    matrix_decay: float = 0.2  # at depth 12, see `weight_decay`
    decay_by_horizon: bool = False  # the matrices' decay depends on batch and budget, not on depth
    decay_shape: str = "linear"  # how the matrices' decay falls to 0
    warmup_steps: int = 0
    warmdown_fraction: float = 0.4
    final_lr: float = 0.0
    momentum_start: float = 0.85
    momentum_end: float = 0.95
    momentum_warmup_steps: int = 300
    momentum_final: float = 0.95  # at the end of the warmdown
    reference_batch_tokens: int = 2**19
    reference_width: int = 768

    def schedule(self, config: GPTConfig, token_budget: int, batch_tokens: int) -> Schedule:
        """The schedule of a run of `token_budget` tokens in steps of `batch_tokens` tokens.

        Raises: ConfigError: a value is out of range.
        """
        return Schedule(
            token_budget=token_budget,
            batch_tokens=batch_tokens,
            # A short run must not spend most of its steps on the warmup.
            warmup_tokens=min(self.warmup_steps * batch_tokens, token_budget // 10),
            warmdown_fraction=self.warmdown_fraction,
            final_lr=self.final_lr,
            momentum_start=self.momentum_start,
            momentum_end=self.momentum_end,
            momentum_warmup_steps=self.momentum_warmup_steps,
            momentum_final=None if self.momentum_final == self.momentum_end else self.momentum_final,
            weight_decay=self.weight_decay(config, token_budget, batch_tokens),
            decay_shape=self.decay_shape,
        )

    def to_json(self) -> str:
        """All values, in one line."""
        return json.dumps(asdict(self), sort_keys=True)

    def weight_decay(self, config: GPTConfig, token_budget: int, batch_tokens: int) -> float:
        """The matrices' decay at the start, per unit of learning rate.

        By depth: matrix_decay * (12 / layers)^2. By horizon: matrix_decay * sqrt(B / 2^19) * D12 / D, with
        the batch B, the budget D, and D12 the budget of a model of 12 layers, so that the total decay over a
        run is the same at every size (arXiv 2405.13698, as in nanochat 2026-07-03).
        """
        if not self.decay_by_horizon:
            return self.matrix_decay * (12 / config.n_layer) ** 2
        twelve = horizon(config_for("lambdas", 12, config.vocab_size, config.sequence_len), "best")
        return self.matrix_decay * math.sqrt(batch_tokens / self.reference_batch_tokens) * twelve / token_budget


REFERENCE = Recipe()
BEST = Recipe(
    unembedding_lr=0.008, unembedding_betas=(0.8, 0.96), unembedding_decay=0.01,
    embedding_betas=(0.8, 0.995), embedding_decay=0.001, resid_decay=0.05, x0_betas=(0.96, 0.95),
    muon_beta2=0.9, equal_rows=True, exact_norm=True,
    matrix_decay=0.28, decay_by_horizon=True, decay_shape="cosine",
    warmup_steps=40, warmdown_fraction=0.65, final_lr=0.05,
    momentum_end=0.97, momentum_warmup_steps=400, momentum_final=0.90,
)  # fmt: skip
"""The optimizer and schedule of nanochat 2026-07-03; its changes of the model are in `presets`."""

RECIPES = {"reference": REFERENCE, "best": BEST}


def recipe_of(name: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe called `name`, changed by `settings` of the form key=value.

    A pair is written as two numbers with a comma, a boolean as true or false.
    Raises: ConfigError: no such recipe or key, or a value of a wrong type.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}", f"use one of {', '.join(RECIPES)}")
    kinds = {field.name: str(field.type) for field in fields(Recipe)}
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in kinds:
            raise ConfigError(
                f"{setting!r} is not a setting of a recipe", f"write KEY=VALUE, KEY one of {', '.join(kinds)}"
            )
        changes[key] = _parse(key, kinds[key], text)
    made = replace(RECIPES[name], **changes)
    made.schedule(config_for("lambdas", 12, 64, 64), 2**20, 2**10)  # raises if a value is out of range
    return made


def recipe_from_json(text: str) -> Recipe:
    """The inverse of `Recipe.to_json`, strict.

    Raises: ConfigError: a key is missing or unknown, or a value of another type.
    """
    kinds = {field.name: str(field.type) for field in fields(Recipe)}
    try:
        values: dict[str, Any] = json.loads(text)
        if wrong := sorted(set(values) ^ set(kinds)):
            raise ValueError(f"{wrong[0]} is missing or unknown")
        return Recipe(**{key: _checked(key, kinds[key], value) for key, value in values.items()})
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"this is not a recipe of this version: {error}", "run the same version of curtail everywhere"
        ) from None


def _checked(key: str, kind: str, value: Any) -> Any:
    """Check the type of a value from JSON. Raises: ValueError."""
    if kind.startswith("tuple") and isinstance(value, list) and len(value) == 2:
        return tuple(_checked(key, "float", part) for part in value)
    if type(value).__name__ == kind and not (kind == "float" and not 0 <= value < math.inf):
        return value
    raise ValueError(f"{key} is {value!r}")


def _parse(key: str, kind: str, text: str) -> object:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text]
        if kind == "int":
            return int(text)
        if kind == "float":
            return _number(text)
        if kind == "str":
            return text
        first, second = map(_number, text.split(","))
        return first, second
    except (ValueError, KeyError):
        wanted = {"bool": "true or false", "int": "an integer", "float": "a number of at least 0", "str": "a word"}
        raise ConfigError(
            f"{key} cannot be {text!r}", f"give {wanted.get(kind, 'two numbers as in 0.8,0.95')}"
        ) from None


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(text)
    return value


def horizon(config: GPTConfig, recipe: str) -> int:
    """Token budget of a run: 20 per weight; with `best` 12 per weight of matrices and unembedding."""
    if recipe == "best":
        counts = group_counts(config)
        return 12 * (counts["matrices"] + counts["lm_head"])
    return 20 * parameter_count(config)


def batch_tokens_for(config: GPTConfig, recipe: str, token_budget: int) -> int:
    """Tokens of one step: 2^19; with `best` the power of two nearest to 2^19 * (D / D12)^0.383.

    Source: arXiv 2505.13738, as in nanochat 2026-07-03; D12 as in `Recipe.weight_decay`.
    """
    if recipe != "best":
        return 2**19
    twelve = horizon(config_for("lambdas", 12, config.vocab_size, config.sequence_len), "best")
    return int(2 ** round(math.log2(2**19 * (token_budget / twelve) ** 0.383)))
