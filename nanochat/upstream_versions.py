"""Infers which version of nanochat made a model, and so the constants that its files do not contain.

The constants of a model (rotary base, windows, scale of queries and keys, gates) follow
from the names and shapes of its weights. Also here: which version of nanochat can read
a model of ours. Dates are those of the commits in karpathy/nanochat that changed the
arithmetic. No files and no tensors.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from curtail.errors import CheckpointError
from nanochat.presets import GPTConfig, rounded_window, weight_shapes
from nanochat.weights import Shapes

NUMBERS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
"""The values that nanochat's files always contain."""


def infer_config(model_config: object, shapes: Shapes) -> tuple[GPTConfig, str]:
    """The configuration of a model of nanochat, and the version that made it.

    The constants follow from the names: smear or backout exist since a825e63 (2026-03-14), value embeddings
    with a gate of 12 channels since 6ed7d1d (2026-03-09), of 32 channels since e85db6b (2026-01-16). The
    softcap was 20 from 2026-03-02 to 03-09, which no file shows; for such a model the user must give it.
    Raises: CheckpointError: an unknown configuration or version. ConfigError: a value is out of range.
    """
    values = dict(model_config) if isinstance(model_config, dict) else {}
    pattern = values.pop("window_pattern", "L")
    if set(values) != set(NUMBERS) or any(type(value) is not int for value in values.values()):
        raise CheckpointError(
            "the meta file does not describe a model of nanochat", f"model_config must contain {', '.join(NUMBERS)}"
        )
    if type(pattern) is not str:
        raise CheckpointError(f"window_pattern is {pattern!r}", "nanochat writes it with the letters S and L")
    plain = GPTConfig(**values, window_pattern=pattern.upper())
    gates = {shape[-1:] for name, shape in shapes.items() if name.endswith(".attn.ve_gate.weight")}
    embeds = any(name.startswith("value_embeds.") for name in shapes)
    if not embeds and not gates:
        return plain, "nanochat from its launch to 2026-01-16"
    if not embeds or gates not in ({(12,)}, {(32,)}):
        raise CheckpointError(
            "its value embeddings are of no known version of nanochat", "known are gates of 12 or 32 channels"
        )
    if gates == {(32,)}:
        config = replace(plain, value_embeds=True, ve_gate_channels=32, ve_gate_scale=2.0)
        return config, "nanochat from 2026-01-16 to 2026-03-09"
    smear = "smear_gate.weight" in shapes or "backout_lambda" in shapes
    short = rounded_window(plain.sequence_len, 4 if smear else 3) if "S" in plain.window_pattern else 0
    config = replace(plain, value_embeds=True, rope_base=100000.0, short_window=short)
    if smear:
        config = replace(config, qk_scale=1.2, smear=True, backout=True, init_profile="2026-03")
        return config, "nanochat since 2026-03-14"
    return replace(config, qk_scale=1.15), "nanochat from 2026-03-09 to 2026-03-14"


def their_config(config: GPTConfig) -> dict[str, Any]:
    """The `model_config` of nanochat's meta file for a configuration."""
    values: dict[str, Any] = {name: getattr(config, name) for name in NUMBERS}
    if config.lambdas or config.window_pattern != "L":  # the launch version refuses the key
        values["window_pattern"] = config.window_pattern
    return values


def reader_of(config: GPTConfig) -> str | None:
    """The version of nanochat that computes the same from an export of such a model; None: there is none."""
    try:
        found, origin = infer_config(their_config(config), weight_shapes(config))
    except CheckpointError:
        return None
    # Values that have no effect on this model may differ.
    unused: dict[str, Any] = {
        "init_profile": config.init_profile,
        "lambdas": config.lambdas,
        "short_window": config.short_window,
    }
    if not config.value_embeds:
        unused |= {"ve_gate_channels": config.ve_gate_channels, "ve_gate_scale": config.ve_gate_scale}
    same = replace(found, **unused) == config and found.windows() == config.windows()
    return origin if same else None
