"""Causal self-attention with rotary positions, normalised queries and keys, shared key heads.

Decides how tokens look at each other. The kernel is torch's scaled dot-product
attention, which picks a flash kernel where there is one; a layer whose window
is shorter than the input gives it an explicit mask. Shapes: B inputs, T
tokens, H query heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat.presets import GPTConfig


class Linear(nn.Module):
    """A matrix without bias. Weights stay fp32 and are cast to the input's dtype for the product."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def norm(x: Tensor) -> Tensor:
    """RMS normalisation of the last dimension, without parameters."""
    return F.rms_norm(x, (x.size(-1),))


def rotary_tables(length: int, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2i/D), each (length, 1, D/2), computed in fp32 and then cast."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    angles = torch.outer(torch.arange(length, dtype=torch.float32), base**-exponents)
    return angles.cos()[:, None, :].to(dtype), angles.sin()[:, None, :].to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the two halves of the last dimension by minus the position's angle; x is (B, T, H, D).

    nanochat turns by -angle where the usual form turns by +angle; only the
    difference of positions matters, but checkpoints depend on the choice.
    """
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


class Attention(nn.Module):
    """One layer's attention: (B, T, n_embd) -> (B, T, n_embd)."""

    def __init__(self, config: GPTConfig, window: int) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.window = window  # tokens a query looks back, itself not counted
        kv_width = config.n_kv_head * config.head_dim
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, kv_width)
        self.c_v = Linear(config.n_embd, kv_width)
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        q = self.c_q(x).view(batch, length, self.n_head, self.head_dim)
        k = self.c_k(x).view(batch, length, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(batch, length, self.n_kv_head, self.head_dim)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        shared = self.n_head != self.n_kv_head
        if self.window >= length:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)
        else:
            mask = _window_mask(length, self.window, x.device)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, width))


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """True where query t may see key s: 0 <= t - s <= window. (length, length)."""
    position = torch.arange(length, device=device)
    back = position[:, None] - position[None, :]
    return (back >= 0) & (back <= window)
