"""Model configurations by name, with their weights' shapes and FLOPs per token; no torch.

The names and shapes of the weights are here, so that a process without torch (the
controller) can check weights. Units: lengths in tokens, work in floating-point
operations per trained token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any

from curtail.errors import ConfigError

VOCAB_MULTIPLE = 64  # embedding rows are padded to this multiple, for aligned matrix products
WINDOW_MULTIPLE = 128  # short windows of nanochat since 2026-03 are whole tiles of its attention kernel
SMEAR_CHANNELS = 24  # channels of a token's embedding that gate how much of the previous token is mixed in
HEAD_WIDTH = 128
WIDTH_PER_LAYER = 64
INIT_PROFILES = ("2026-01", "2026-03")


@dataclass(frozen=True, slots=True)
class GPTConfig:
    """The configuration of one model. Raises ConfigError for combinations that cannot be built."""

    sequence_len: int  # longest input, tokens
    vocab_size: int  # ids of the tokenizer; the weights have `padded_vocab_size` rows
    n_layer: int
    n_head: int  # query heads
    n_kv_head: int  # key and value heads; divides n_head
    n_embd: int  # width; n_head equal even head widths
    window_pattern: str = "L"  # repeated over the layers: L attends to all, S to a short window; the last layer is L
    lambdas: bool = True  # learned per-layer scales of the residual stream and of the embedding
    rope_base: float = 10000.0
    softcap: float = 15.0  # logits = softcap * tanh(raw / softcap)
    # Added later. A stored configuration without these fields has the defaults given here, so they must not change.
    short_window: int = 0  # window of an S layer in tokens; 0: half of sequence_len
    qk_scale: float = 1.0  # multiplies queries and keys after their norm
    value_embeds: bool = False  # every other layer, including the last, adds a gated embedding to its values
    ve_gate_channels: int = 12  # channels of the layer's input that compute the gate of each key head
    ve_gate_scale: float = 3.0  # gate = ve_gate_scale * sigmoid(matrix @ channels)
    smear: bool = False  # part of the previous token's embedding is added to each token's embedding
    backout: bool = False  # part of the middle layer's residual stream is subtracted before the logits
    init_profile: str = "2026-01"  # distribution of the initial weights: nanochat's of that month

    def __post_init__(self) -> None:
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}", "give an integer of at least 1")
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
            raise ConfigError(
                f"window pattern {self.window_pattern!r} has other letters than L and S", "use L, or SSSL"
            )
        if self.short_window < 0:
            raise ConfigError(f"short_window is {self.short_window}", "give tokens, or 0 for half of sequence_len")
        for name, usual in (("rope_base", 10000), ("softcap", 15), ("qk_scale", 1), ("ve_gate_scale", 3)):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be positive and finite", f"{usual} is usual")
        if self.value_embeds and not 1 <= self.ve_gate_channels <= self.n_embd:
            raise ConfigError(f"ve_gate_channels is {self.ve_gate_channels}", f"give 1 to {self.n_embd}; 12 is usual")
        if self.smear and self.n_embd < SMEAR_CHANNELS:
            raise ConfigError(
                f"smear needs {SMEAR_CHANNELS} channels, but the width is {self.n_embd}", "use a wider model"
            )
        if self.init_profile not in INIT_PROFILES:
            raise ConfigError(
                f"there is no init profile {self.init_profile!r}", f"use one of {', '.join(INIT_PROFILES)}"
            )

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def windows(self) -> tuple[int, ...]:
        """The attention window of each layer in tokens, first layer first."""
        tiled = [self.window_pattern[i % len(self.window_pattern)] for i in range(self.n_layer)]
        tiled[-1] = "L"
        short = min(self.short_window or max(1, self.sequence_len // 2), self.sequence_len)
        return tuple(self.sequence_len if kind == "L" else short for kind in tiled)

    def value_embed_layers(self) -> tuple[int, ...]:
        """The layers with a value embedding: every other one, including the last."""
        return tuple(range((self.n_layer - 1) % 2, self.n_layer, 2)) if self.value_embeds else ()


def rounded_window(sequence_len: int, divisor: int) -> int:
    """sequence_len / divisor, rounded up to whole tiles: nanochat's short window since 2026-03, in tokens."""
    return -(-sequence_len // (divisor * WINDOW_MULTIPLE)) * WINDOW_MULTIPLE


FAMILIES = ("launch", "lambdas", "ve")
"""nanochat's model versions: launch (2025-10-13), lambdas (2026-01-12, per-layer scales), ve (2026-03-14, all)."""


def config_for(family: str, depth: int, vocab_size: int, sequence_len: int) -> GPTConfig:
    """The model of a family at a depth. Its width is 64 channels per layer, rounded up to whole heads of 128.

    The rounding matters only for odd depths and is that of nanochat since 2026-03; before, odd depths
    had heads of another width.
    Raises: ConfigError: no such family; a number below 1.
    """
    if depth < 1:
        raise ConfigError(f"the depth is {depth}", "give a number of layers of at least 1")
    heads = -(-depth * WIDTH_PER_LAYER // HEAD_WIDTH)
    plain = GPTConfig(sequence_len, vocab_size, depth, heads, heads, heads * HEAD_WIDTH)
    if family == "lambdas":
        return plain
    if family == "launch":
        return replace(plain, lambdas=False)
    if family == "ve":
        return replace(
            plain, window_pattern="SSSL", short_window=rounded_window(sequence_len, 4), rope_base=100000.0,
            qk_scale=1.2, value_embeds=True, smear=True, backout=True, init_profile="2026-03",
        )  # fmt: skip
    raise ConfigError(f"there is no model family {family!r}", f"use one of {', '.join(FAMILIES)}")


PRESETS: dict[str, GPTConfig] = {
    # the model of exalsius/curtail-llm: nanochat of 2026-01-12, vocabulary 65,536
    "d20-561m": GPTConfig(2048, 65536, 20, 10, 10, 1280),
    # nanochat at its launch of 2025-10-13: no per-layer scales
    "d20-launch": GPTConfig(2048, 65536, 20, 10, 10, 1280, lambdas=False),
    # nanochat since 2026-03-14: value embeddings, smear, backout, short windows, vocabulary 32,768
    "d20-ve": config_for("ve", 20, 32768, 2048),
    "d4-test": GPTConfig(128, 4096, 4, 2, 2, 256),
    "d2-test": GPTConfig(64, 512, 2, 1, 1, 128),
    # small and fast on a CPU, to try out the whole system
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


def preset_for(name: str, vocab_size: int, sequence_len: int) -> GPTConfig:
    """The configuration called `name`, adapted to the data's vocabulary size and sample length.

    Raises: ConfigError: no such preset; or it has another vocabulary, or its samples are shorter.
    """
    config = preset(name)
    if vocab_size != config.vocab_size:
        raise ConfigError(
            f"the data use a tokenizer with {vocab_size} ids, but the preset {name} has {config.vocab_size}",
            f"train the tokenizer with --vocab-size {config.vocab_size}, or choose another model",
        )
    if sequence_len > config.sequence_len:
        raise ConfigError(
            f"the data have samples of {sequence_len} tokens, but the preset {name} takes at most"
            f" {config.sequence_len}",
            f"run `curtail data prepare` with --sequence-len {config.sequence_len}",
        )
    return replace(config, sequence_len=sequence_len)


def weight_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight, in name order; the names are nanochat's state-dict names."""
    width, kv_width = config.n_embd, config.n_kv_head * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (config.padded_vocab_size, width),
        "lm_head.weight": (config.padded_vocab_size, width),
    }
    if config.lambdas:
        shapes["resid_lambdas"] = shapes["x0_lambdas"] = (config.n_layer,)
    if config.smear:
        shapes |= {"smear_gate.weight": (1, SMEAR_CHANNELS), "smear_lambda": (1,)}
    if config.backout:
        shapes["backout_lambda"] = (1,)
    for layer in config.value_embed_layers():
        shapes[f"value_embeds.{layer}.weight"] = (config.padded_vocab_size, kv_width)
        shapes[f"transformer.h.{layer}.attn.ve_gate.weight"] = (config.n_kv_head, config.ve_gate_channels)
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
    """Number of trained scalars, including padded vocabulary rows."""
    return sum(prod(shape) for shape in weight_shapes(config).values())


def group_counts(config: GPTConfig) -> dict[str, int]:
    """Number of trained scalars by kind: wte, lm_head, matrices of the blocks, value_embeds, scalars.

    The grouping is nanochat's: gates of value embeddings are matrices, that of smear is among the scalars.
    """
    counts = dict.fromkeys(("wte", "lm_head", "matrices", "value_embeds", "scalars"), 0)
    kinds = {
        "transformer.wte": "wte",
        "transformer.h": "matrices",
        "lm_head": "lm_head",
        "value_embeds": "value_embeds",
    }
    for name, shape in weight_shapes(config).items():
        found = [kind for prefix, kind in kinds.items() if name.startswith(f"{prefix}.")]
        counts[found[0] if found else "scalars"] += prod(shape)
    return counts


def flops_per_token(config: GPTConfig) -> int:
    """Forward and backward work for one token, in floating-point operations.

    6 per parameter of a matrix product (embeddings are look-ups and do not count) plus
    12 * n_head * head_dim * window per layer for attention. The causal mask is not taken
    into account, as in PaLM (arXiv 2204.02311) and nanochat, so that MFU figures are
    comparable.
    """
    shapes = weight_shapes(config)
    looked_up = ("transformer.wte.", "value_embeds.")
    products = sum(prod(shape) for name, shape in shapes.items() if len(shape) == 2 and not name.startswith(looked_up))
    attention = sum(12 * config.n_head * config.head_dim * window for window in config.windows())
    return 6 * products + attention


# Fields that stored configurations may omit, with their defaults.
_LATER: dict[str, Any] = {
    field.name: field.default
    for field in fields(GPTConfig)[[field.name for field in fields(GPTConfig)].index("short_window") :]
}


def to_dict(config: GPTConfig) -> dict[str, int | float | str | bool]:
    """The configuration as plain values.

    Fields added later are included only if they differ from their default, so that a
    configuration has the same form in all versions that support it.
    """
    values = {field.name: getattr(config, field.name) for field in fields(GPTConfig)}
    return {name: value for name, value in values.items() if name not in _LATER or value != _LATER[name]}


def from_dict(values: object) -> GPTConfig:
    """The configuration with these values; strict, except that fields added later may be missing.

    Raises: ConfigError: not an object; an unknown or missing field; a wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError("a model configuration is not a JSON object", "give the object that to_json writes")
    kinds = {"int": int, "float": float, "str": str, "bool": bool}
    names = {field.name: kinds[str(field.type)] for field in fields(GPTConfig)}
    if wrong := sorted((set(values) | set(_LATER)) ^ set(names), key=str):
        what = "lacks" if wrong[0] in names else "has the unknown field"
        raise ConfigError(f"the model configuration {what} {wrong[0]!r}", f"its fields are {', '.join(names)}")
    checked: dict[str, Any] = {}
    for name, kind in names.items():
        value = values.get(name, _LATER.get(name))
        if kind is float and type(value) is int:  # JSON may write 15.0 as 15
            value = float(value)
        if type(value) is not kind:
            raise ConfigError(f"{name} of the model configuration is {value!r}", f"its type is {kind.__name__}")
        checked[name] = value
    return GPTConfig(**checked)


def to_json(config: GPTConfig) -> str:
    """One line of JSON, keys sorted: equal configurations give equal text."""
    return json.dumps(to_dict(config), sort_keys=True)


def from_json(text: str) -> GPTConfig:
    """The inverse of `to_json`, strict: see `from_dict`.

    Raises: ConfigError.
    """
    try:
        return from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the model configuration is not JSON: {error}", "give what to_json writes") from None
