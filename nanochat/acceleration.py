"""How a model runs on a device: attention backend, fp8, compilation.

Decides what each of them is when nobody asked, the same for plain training, for
the jobs of a run and for the benchmark: the attention that works, no fp8, and
compilation on CUDA only. Nothing is imported from the compiler and nothing is
compiled before the first pass. Where compiled code is kept is the caller's
affair, by environment variables.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from nanochat import fp8 as fp8_products
from nanochat.attention_backend import Choice, choose_backend
from nanochat.gpt import GPT

Find = Callable[[str], str | None]


class Compiled:
    """A model whose calls go through `torch.compile` from the first one on; all else is the model's own.

    Weights that are changed in place do not make it compile again, another shape of input does.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._form: Callable[..., Any] | None = None

    def __call__(self, *inputs: Any) -> Any:
        if self._form is None:
            self._form = torch.compile(self._model, dynamic=False)
        return self._form(*inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass(frozen=True, slots=True)
class Accelerated:
    """A model as it runs on its device."""

    net: GPT  # what training calls; everything else goes through the model itself
    choice: Choice
    fp8_layers: int
    compiled: bool
    not_compiled: str  # why, where one would expect it

    def __str__(self) -> str:
        said = [str(self.choice)]
        if self.fp8_layers:
            said.append(f"fp8 in {self.fp8_layers} matrices")
        if self.compiled:
            said.append("compiled at the first pass")
        elif self.not_compiled:
            said.append(f"not compiled: {self.not_compiled}")
        return ", ".join(said)


def accelerate(
    model: GPT, device: torch.device, *, attention: str = "auto", fp8: bool = False, compiled: bool | None = None
) -> Accelerated:
    """Choose what makes the model fast on `device`, where it is, and set it up.

    Args:
        attention: name of a backend, or auto. fp8: products of the blocks in 8-bit floats.
        compiled: None: on CUDA only, and only if there is what compiling needs.
    Raises: ConfigError: a backend that does not work here; fp8 where it cannot be.
    """
    if fp8:
        fp8_products.check_fp8(model.config, device)
    choice = choose_backend(model.config, device, model.compute_dtype, attention)
    model.use_attention(choice.backend.attend)
    layers = fp8_products.enable(model) if fp8 else 0
    lacks = "" if compiled is not None or device.type != "cuda" else missing_for_compiling(os.environ, shutil.which)
    use = compiled if compiled is not None else device.type == "cuda" and not lacks
    return Accelerated(cast(GPT, Compiled(model)) if use else model, choice, layers, use, lacks)


def missing_for_compiling(
    environment: Mapping[str, str], which: Find, package: Callable[[str], Any] | None = None
) -> str:
    """What `torch.compile` for CUDA needs and is not here; empty: nothing. All three are asked, none is loaded."""
    if (package or importlib.util.find_spec)("triton") is None:
        return "the package triton is not installed"
    if environment.get("CC") or any(which(name) for name in ("cc", "gcc", "clang")):
        return ""
    return "there is no C compiler (cc, gcc, clang or $CC)"
