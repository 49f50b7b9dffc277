"""Training with matrix products in 8-bit floats (fp8), for layers that are large enough.

Activations and weights are rounded to e4m3 (3 mantissa bits), gradients to e5m2 (more
range, 2 mantissa bits), with dynamic scaling: each tensor has one scale from its
present largest value. The device accumulates in higher precision; weights stay fp32.
Only the matrices of blocks use fp8, not the unembedding or the gates, and only in
training. Source: nanochat's method since 2026-02, and torchao's tensorwise recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curtail.errors import ConfigError
from nanochat.presets import GPTConfig, weight_shapes

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # the device needs dimensions that are multiples of this
LEAST = 128  # for smaller matrices the rounding costs more time than is gained
CAPABILITY = (9, 0)  # lowest compute capability with fp8 products: Hopper


def quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x as 8-bit floats scaled to the whole range of `dtype`, and the fp32 scale that undoes it.

    If a value is not finite, the result is NaN, so that it is noticed.
    """
    largest = x.abs().amax().float()
    most = torch.finfo(dtype).max
    scale = most / largest.clamp(min=torch.finfo(torch.float32).tiny * most)
    # Rounding could move the largest value out of range, which is NaN in e4m3.
    return (x.float() * scale).clamp(-most, most).to(dtype), scale.reciprocal()


def _by_columns(x: Tensor) -> Tensor:
    """The same matrix with contiguous columns, as needed for the second factor."""
    return x.t().contiguous().t()


def _multiplied(a: Tensor, b: Tensor, scale: tuple[Tensor, Tensor], dtype: torch.dtype, fast: bool) -> Tensor:
    """a @ b for 8-bit a (rows contiguous) and b (columns contiguous); `fast` accumulates less exactly."""
    return torch._scaled_mm(a, b, scale_a=scale[0], scale_b=scale[1], out_dtype=dtype, use_fast_accum=fast)


class _Product(torch.autograd.Function):
    """x @ weight.T and its two gradients, all as products of 8-bit floats."""

    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        x8, x_scale = quantised(x, FORWARD)
        w8, w_scale = quantised(weight, FORWARD)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        ctx.weight_dtype = weight.dtype
        return _multiplied(x8, w8.t(), (x_scale, w_scale), x.dtype, fast=True)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        g8, g_scale = quantised(grad.contiguous(), BACKWARD)
        to_x = _multiplied(g8, _by_columns(w8), (g_scale, w_scale), grad.dtype, fast=False)
        to_weight = _multiplied(g8.t().contiguous(), _by_columns(x8), (g_scale, x_scale), ctx.weight_dtype, fast=False)
        return to_x, to_weight


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in 8-bit floats: (..., in) and fp32 (out, in) -> (..., out) in x's dtype.

    in, out and the number of rows of x are multiples of 16.
    """
    rows = x.reshape(-1, x.size(-1)).contiguous()
    return _Product.apply(rows, weight).view(*x.shape[:-1], weight.size(0))


def takes_part(name: str, shape: tuple[int, ...]) -> bool:
    """Does the matrix with this name and shape use 8-bit floats?"""
    sides = all(side >= LEAST and side % MULTIPLE == 0 for side in shape)
    return name.startswith("transformer.h.") and len(shape) == 2 and sides


def check_fp8(config: GPTConfig, device: torch.device, capability: tuple[int, int] | None = None) -> None:
    """Check that fp8 can be used.

    Args: capability: of the CUDA device; None: that of `device`.
    Raises: ConfigError: not a CUDA device, one before Hopper, or a model whose shapes do not fit.
    """
    if device.type != "cuda":
        raise ConfigError(f"fp8 needs a CUDA device (Hopper or later), this is {device.type}", "leave out --fp8")
    found = capability or torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise ConfigError(
            f"fp8 needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]} (Hopper), this device has"
            f" {found[0]}.{found[1]}",
            "leave out --fp8",
        )
    if config.sequence_len % MULTIPLE:
        raise ConfigError(
            f"fp8 needs a sample length that is a multiple of {MULTIPLE} tokens, not {config.sequence_len}",
            "leave out --fp8",
        )
    if not any(takes_part(name, shape) for name, shape in weight_shapes(config).items()):
        raise ConfigError(
            f"fp8 needs matrices with sides of at least {LEAST} that are multiples of {MULTIPLE}; at width"
            f" {config.n_embd} there are none",
            "leave out --fp8, or take a wider model",
        )


def enable(model: nn.Module) -> int:
    """Enable fp8 training for all suitable matrices. Returns: their number."""
    count = 0
    for name, module in model.named_modules():
        if hasattr(module, "fp8") and takes_part(name, tuple(module.weight.shape)):
            module.fp8 = True
            count += 1
    return count
