"""The model's shapes: named configurations, the parameters they have, the work per token.

Decides which numbers make a model of a given name and which weight names and
shapes belong to it, so that a process without torch (the controller) can check
weights. It holds no tensors and knows nothing of training. Units: lengths in
tokens, work in floating-point operations per trained token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from math import prod
from typing import Any

from curtail.errors import ConfigError

VOCAB_MULTIPLE = 64  # embedding rows are padded to this multiple: aligned matrix products


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """The numbers that define one model. Refuses combinations that cannot be built (ConfigError)."""

    sequence_len: int  # longest input, tokens
    vocab_size: int  # ids of the tokenizer; the weights have `padded_vocab_size` rows
    n_layer: int
    n_head: int  # query heads
    n_kv_head: int  # key and value heads; divides n_head
    n_embd: int  # width; n_head equal even head widths
    window_pattern: str = "L"  # tiled over the layers: L sees all, S half the length; the last layer is L
    lambdas: bool = True  # learned per-layer scales of the residual stream and of the embedding
    rope_base: float = 10000.0
    softcap: float = 15.0  # logits = softcap * tanh(raw / softcap)

    def __post_init__(self) -> None:
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", "give a whole number of at least 1")
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 2:
            raise ConfigError(
                f"width {self.n_embd} does not split into {self.n_head} heads of even width",
                "choose n_embd as a multiple of 2 * n_head",
            )
        if self.n_head % self.n_kv_head:
            raise ConfigError(
                f"{self.n_head} query heads cannot share {self.n_kv_head} key heads",
                "choose n_kv_head as a divisor of n_head",
            )
        if not self.window_pattern or set(self.window_pattern) - {"L", "S"}:
            raise ConfigError(f"window pattern {self.window_pattern!r} is not made of L and S", "use L, or SSSL")
        if not (0 < self.rope_base < float("inf") and 0 < self.softcap < float("inf")):
            raise ConfigError("rope_base and softcap must be positive and finite", "10000 and 15 are usual")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def windows(self) -> tuple[int, ...]:
        """How far back each layer looks, in tokens, first layer first."""
        tiled = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer)]
        tiled[-1] = "L"
        return tuple(self.sequence_len if kind == "L" else max(1, self.sequence_len // 2) for kind in tiled)


PRESETS: dict[str, GPTConfig] = {
    # the model of exalsius/curtail-llm: nanochat of 2026-01-12, vocabulary 65,536
    "d20-561m": GPTConfig(2048, 65536, 20, 10, 10, 1280),
    # nanochat at its launch of 2025-10-13: no per-layer scales
    "d20-launch": GPTConfig(2048, 65536, 20, 10, 10, 1280, lambdas=False),
    "d4-test": GPTConfig(128, 4096, 4, 2, 2, 256),
    "d2-test": GPTConfig(64, 512, 2, 1, 1, 128),
    # small and fast on a CPU, for a first look at the whole system
    "d2-demo": GPTConfig(128, 2048, 2, 2, 2, 128),
}


def preset(name: str) -> GPTConfig:
    """The configuration called `name`.

    Raises: ConfigError: no such preset; the remedy lists the names.
    """
    try:
        return PRESETS[name]
    except KeyError:
        raise ConfigError(f"there is no model preset {name!r}", f"use one of {', '.join(sorted(PRESETS))}") from None


def weight_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in name order; the names are nanochat's state-dict names."""
    width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.padded_vocab_size, width),
        "lm_head.weight": (config.padded_vocab_size, width),
    }
    if config.lambdas:
        shapes["resid_lambdas"] = shapes["x0_lambdas"] = (config.n_layer,)
    for layer in range(config.n_layer):
        block = f"transformer.h.{layer}"
        shapes[f"{block}.attn.c_q.weight"] = (width, width)
        shapes[f"{block}.attn.c_k.weight"] = (kv_width, width)
        shapes[f"{block}.attn.c_v.weight"] = (kv_width, width)
        shapes[f"{block}.attn.c_proj.weight"] = (width, width)
        shapes[f"{block}.mlp.c_fc.weight"] = (4 * width, width)
        shapes[f"{block}.mlp.c_proj.weight"] = (width, 4 * width)
    return dict(sorted(shapes.items()))


def parameter_count(config: GPTConfig) -> int:
    """Number of trained scalars, padded vocabulary rows included."""
    return sum(prod(shape) for shape in weight_shapes(config).values())


def flops_per_token(config: GPTConfig) -> int:
    """Forward and backward work for one token, in floating-point operations.

    6 per parameter of a matrix product (the embedding is a look-up and counts
    nothing) plus 12 * n_head * head_dim * window per layer for attention,
    counted without the causal half, as PaLM (arXiv 2204.02311) and nanochat do,
    so that utilisation figures compare.
    """
    shapes = weight_shapes(config)
    products = sum(prod(shape) for name, shape in shapes.items() if len(shape) == 2 and ".wte." not in name)
    attention = sum(12 * config.n_head * config.head_dim * window for window in config.windows())
    return 6 * products + attention


def to_dict(config: GPTConfig) -> dict[str, int | float | str | bool]:
    """The configuration as plain values, every field present."""
    return {field.name: getattr(config, field.name) for field in fields(GPTConfig)}


def from_dict(values: object) -> GPTConfig:
    """The configuration with these values; nothing is guessed.

    Raises: ConfigError: not an object; an unknown or missing field; a wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError("a model configuration is not a JSON object", "give the object that to_json writes")
    kinds = {"int": int, "float": float, "str": str, "bool": bool}
    names = {field.name: kinds[str(field.type)] for field in fields(GPTConfig)}
    if wrong := sorted(set(values) ^ set(names), key=str):
        what = "lacks" if wrong[0] in names else "has the unknown field"
        raise ConfigError(f"the model configuration {what} {wrong[0]!r}", f"its fields are {', '.join(names)}")
    checked: dict[str, Any] = {}
    for name, kind in names.items():
        value = values[name]
        if kind is float and type(value) is int:  # JSON may write 15.0 as 15
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"{name} of the model configuration is {value!r}", f"its type is {kind.__name__}")
        checked[name] = value
    return GPTConfig(**checked)


def to_json(config: GPTConfig) -> str:
    """One line of JSON with every field, keys sorted: equal configurations give equal text."""
    return json.dumps(to_dict(config), sort_keys=True)


def from_json(text: str) -> GPTConfig:
    """The inverse of `to_json`, strict: see `from_dict`.

    Raises: ConfigError.
    """
    try:
        return from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the model configuration is not JSON: {error}", "give what to_json writes") from None
