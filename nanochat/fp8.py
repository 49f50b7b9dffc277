"""Products of matrices in 8-bit floats, for the layers where they pay.

Decides what is rounded to 8 bits and how: activations and weights to e4m3 (three
bits of fraction), gradients to e5m2 (more range, two bits), each tensor with one
scale from its own largest value at that moment. Sums are made in higher precision
by the device, weights stay fp32. Only blocks' matrices take part, unembedding and
gates do not, and nothing does outside of training. Source: the method of nanochat
since 2026-02 and of torchao's tensorwise recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curtail.errors import ConfigError
from nanochat.presets import GPTConfig, weight_shapes

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # the device's products take dimensions that are multiples of it
LEAST = 128  # a smaller matrix gains less than its rounding costs
CAPABILITY = (9, 0)  # compute capability from which on CUDA devices have such products: Hopper


def quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x as 8-bit floats that use the whole range of `dtype`, and the fp32 scale that brings them back.

    A value that is not finite makes everything NaN, so that it is noticed.
    """
    largest = x.abs().amax().float()
    most = torch.finfo(dtype).max
    scale = most / largest.clamp(min=torch.finfo(torch.float32).tiny * most)
    # rounding could carry the largest value beyond the range, which is NaN in e4m3
    return (x.float() * scale).clamp(-most, most).to(dtype), scale.reciprocal()


def _by_columns(x: Tensor) -> Tensor:
    """The same matrix, its columns contiguous: the form of a second factor."""
    return x.t().contiguous().t()


def _multiplied(a: Tensor, b: Tensor, scale: tuple[Tensor, Tensor], dtype: torch.dtype, fast: bool) -> Tensor:
    """a @ b for 8-bit a (rows contiguous) and b (columns contiguous); `fast` adds up less exactly."""
    return torch._scaled_mm(a, b, scale_a=scale[0], scale_b=scale[1], out_dtype=dtype, use_fast_accum=fast)


class _Product(torch.autograd.Function):
    """x @ weight.T and its gradients, all three as products of 8-bit floats."""

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
    """Whether the matrix of this name and shape is multiplied in 8-bit floats."""
    sides = all(side >= LEAST and side % MULTIPLE == 0 for side in shape)
    return name.startswith("transformer.h.") and len(shape) == 2 and sides


def check_fp8(config: GPTConfig, device: torch.device, capability: tuple[int, int] | None = None) -> None:
    """Refuse fp8 where it cannot be.

    Args: capability: of the CUDA device; by default asked.
    Raises: ConfigError: not a CUDA device, one before Hopper, or a model whose shapes do not fit.
    """
    if device.type != "cuda":
        raise ConfigError(f"fp8 needs a CUDA device from Hopper on, this is {device.type}", "leave out --fp8")
    found = capability or torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        raise ConfigError(
            f"fp8 needs compute capability {CAPABILITY[0]}.{CAPABILITY[1]} (Hopper), this device has"
            f" {found[0]}.{found[1]}",
            "leave out --fp8",
        )
    if config.sequence_len % MULTIPLE:
        raise ConfigError(
            f"fp8 needs samples of a multiple of {MULTIPLE} tokens, these have {config.sequence_len}", "leave out --fp8"
        )
    if not any(takes_part(name, shape) for name, shape in weight_shapes(config).items()):
        raise ConfigError(
            f"fp8 needs matrices with sides of at least {LEAST} that are multiples of {MULTIPLE}; at width"
            f" {config.n_embd} there are none",
            "leave out --fp8, or take a wider model",
        )


def enable(model: nn.Module) -> int:
    """Let the matrices that take part be multiplied in 8-bit floats in training; returns how many."""
    count = 0
    for name, module in model.named_modules():
        if hasattr(module, "fp8") and takes_part(name, tuple(module.weight.shape)):
            module.fp8 = True
            count += 1
    return count
