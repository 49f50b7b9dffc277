"""Chooses a model's attention backend: the first that runs on the device and is correct.

A package that can be imported may not run on the device, and one that runs may
compute wrong values. So each backend is tried with one attention layer, forward and
backward, and its output and gradients are compared with those of the math backend.
The reason of each refusal is kept. The table of backends is an argument. Lengths and
windows in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curtail.errors import ConfigError
from nanochat.attention import Attention, rotary_tables
from nanochat.attention_kernels import BACKENDS, MATH, Backend
from nanochat.presets import GPTConfig

TOLERANCE = {torch.bfloat16: 0.02, torch.float16: 0.005, torch.float32: 1e-3}
"""Largest accepted distance from the math backend, as a share of its norm. Measured in bf16: 0.005 between correct
kernels, 0.05 if a window of 128 is one token short."""

LONGEST_REASON = 200  # characters


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen backend, and why others were refused."""

    backend: Backend
    windows: str  # "none": every layer attends to all; "native": the kernel's own; "masked": an explicit mask
    refused: tuple[tuple[str, str], ...]  # name and reason of the backends before it

    def __str__(self) -> str:
        said = [f"windows: {self.windows}"] if self.windows != "none" else []
        said += [f"not {name}: {reason}" for name, reason in self.refused]
        return f"attention: {self.backend.name}" + (f" ({'; '.join(said)})" if said else "")


def choose_backend(
    config: GPTConfig,
    device: torch.device,
    dtype: torch.dtype,
    asked: str = "auto",
    batch: int = 1,
    length: int | None = None,
    table: Sequence[Backend] | None = None,
) -> Choice:
    """Choose and activate the backend called `asked`, or with "auto" the first one that works.

    If the model has windows, "auto" prefers backends that support windows.

    Args:
        dtype: of the products. batch, length: of the trial; by default one input of sequence_len.
        table: backends, the best first; by default those for the device.
    Raises: ConfigError: no such backend, or it does not work here, or none does; with the reasons.
    """
    length = length or config.sequence_len
    backends = list(table if table is not None else BACKENDS[device.type])
    windowed = min(config.windows()) < length
    if asked == "auto":
        backends.sort(key=lambda backend: windowed and not backend.windows)  # stable: otherwise keeps the order
    else:
        names = [backend.name for backend in backends]
        if asked not in names:
            raise ConfigError(
                f"there is no attention backend {asked!r} for {device.type}", f"use auto, {', '.join(names)}"
            )
        backends = [backends[names.index(asked)]]
    trial = Trial(config, device, dtype, batch, length)
    refused: list[tuple[str, str]] = []
    for backend in backends:
        reason = trial.refusal(backend)
        if reason is None:
            windows = "none" if not windowed else "native" if backend.windows else "masked"
            return Choice(backend, windows, tuple(refused))
        refused.append((backend.name, reason))
    if asked != "auto":
        raise ConfigError(f"the attention backend {asked} does not work here: {refused[0][1]}", "use auto")
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
    raise ConfigError(f"no attention backend works here: {reasons}", "check the driver and the installation of torch")


class Trial:
    """One attention layer for each window of a model, for trials of several backends."""

    def __init__(self, config: GPTConfig, device: torch.device, dtype: torch.dtype, batch: int, length: int) -> None:
        self.config, self.device, self.dtype, self.shape = config, device, dtype, (batch, length)
        self._expected: dict[str, Tensor] | str | None = None

    def refusal(self, backend: Backend) -> str | None:
        """Why the backend cannot be used here; None: it runs and agrees with the math backend."""
        found = self._outcome(backend)
        if isinstance(found, str):
            return found
        for name, values in found.items():
            if not bool(values.isfinite().all()):
                return f"{name} is not finite"
        if backend.attend is MATH.attend:
            return None
        if self._expected is None:
            self._expected = self._outcome(MATH)
            backend.enter()  # it has just run, so this cannot fail
        if isinstance(self._expected, str):
            return f"it cannot be compared, because the math backend fails: {self._expected}"
        return disagreement(found, self._expected, TOLERANCE[self.dtype])

    def _outcome(self, backend: Backend) -> dict[str, Tensor] | str:
        """Outputs and gradients by name, or the error message."""
        try:
            backend.enter()
            found: dict[str, Tensor] = {}
            for window in dict.fromkeys(min(window, self.shape[1]) for window in self.config.windows()):
                found |= {f"{name}, window {window}": values for name, values in self._layer(backend, window).items()}
            return found
        except Exception as error:  # whatever a kernel raises is the reason not to use it
            return _first_line(error)
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _layer(self, backend: Backend, window: int) -> dict[str, Tensor]:
        """Run one layer forward and backward, always with the same weights and input."""
        random = torch.Generator(device="cpu").manual_seed(1)
        draw: Callable[..., Tensor] = lambda *shape: torch.randn(*shape, generator=random, device="cpu")  # noqa: E731
        layer = Attention(self.config, window)
        layer.attend = backend.attend
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.copy_(draw(*parameter.shape) * self.config.n_embd**-0.5)
        layer.to(self.device)
        batch, length = self.shape
        x, push = (draw(batch, length, self.config.n_embd).to(self.device, self.dtype) for _ in range(2))
        tables = rotary_tables(length, self.config.head_dim, self.config.rope_base, self.dtype)
        cos, sin = (values.to(self.device) for values in tables)
        with torch.enable_grad():
            y = layer(x.requires_grad_(), cos, sin)
            (y * push).sum().backward()  # y.backward(push) would import SymPy, a third of a second
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # errors of a kernel are raised here
        gradients = {f"the gradient of {name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
        assert x.grad is not None
        return {"the output": y.detach(), "the gradient of the input": x.grad, **gradients}


def disagreement(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> str | None:
    """Which values differ too much from the expected ones, as a share of their norm; None if all are close."""
    for name, wanted in expected.items():
        distance = (found[name].float() - wanted.float()).norm() / wanted.float().norm().clamp(min=1e-30)
        if not distance.item() <= tolerance:  # not >: a NaN is a disagreement too
            return f"{name} differs from math by {distance.item():.1%}, at most {tolerance:.1%} is allowed"
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")[:LONGEST_REASON]
