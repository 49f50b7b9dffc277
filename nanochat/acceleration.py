"""Sets up a model for its device: attention backend, fp8, compilation.

The defaults are the same for plain training, the jobs of a run and the benchmark:
the first attention backend that works, no fp8, and compilation on CUDA only. The
compiler is imported and runs only at the first pass. Environment variables of the
caller choose the cache for compiled code.
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
    """A model that is compiled with `torch.compile` at its first call; other attributes are the model's.

    Weights that change in place do not trigger a recompilation; another input shape does.
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
    """A model that is set up for its device."""

    net: GPT  # training calls this; everything else uses the model itself
    choice: Choice
    fp8_layers: int
    compiled: bool
    not_compiled: str  # why it is not compiled, although it is the default; "": no such reason

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
    """Set up the model, which is on `device`, for fast training.

    Args:
        attention: name of a backend, or auto. fp8: matrix products of the blocks in 8-bit floats.
        compiled: None: on CUDA only, and only if everything that compilation needs is installed.
    Raises: ConfigError: the backend or fp8 does not work here.
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
    """What is missing for `torch.compile` on CUDA; "" if nothing is. Nothing is imported for the check."""
    if (package or importlib.util.find_spec)("triton") is None:
        return "the package triton is not installed"
    if environment.get("CC") or any(which(name) for name in ("cc", "gcc", "clang")):
        return ""
    return "there is no C compiler (cc, gcc, clang or $CC)"
