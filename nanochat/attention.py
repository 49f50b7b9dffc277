"""Causal self-attention with rotary positions, normalised queries and keys, shared key heads.

The kernel is one of `nanochat.attention_kernels`: torch's own choice until another is
set, and always if a cache is used. The cache of keys and values is here, too. Shapes:
B inputs, T tokens, H query heads, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat import attention_kernels, fp8
from nanochat.presets import GPTConfig


class Linear(nn.Module):
    """A matrix without bias. Weights stay fp32 and are cast to the input's dtype for the product.

    With `fp8` set (`nanochat.fp8.enable`), training multiplies in 8-bit floats.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fp8 = False
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        if self.fp8 and self.training:
            return fp8.linear(x, self.weight)
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


class LayerCache:
    """The keys and values of at most `capacity` tokens that one layer has read.

    Memory is allocated at the first use. Gradients do not pass through it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values of new tokens, (B, kv heads, T, D). Returns: those of all tokens so far."""
        start, self.length = self.length, self.length + k.size(2)
        assert self.length <= self.capacity, f"{self.length} tokens exceed {self.capacity}"
        if self._kept is None:
            room = (k.size(0), k.size(1), self.capacity, k.size(3))
            self._kept = k.new_empty(room), v.new_empty(room)
        for kept, new in zip(self._kept, (k, v), strict=True):
            kept[:, :, start : self.length] = new.detach()
        return self._kept[0][:, :, : self.length], self._kept[1][:, :, : self.length]


class Attention(nn.Module):
    """One layer's attention: (B, T, n_embd) -> (B, T, n_embd).

    Args:
        window: how many earlier tokens a query attends to.
        embeds: the layer adds a gated value embedding to its values.
    """

    def __init__(self, config: GPTConfig, window: int, embeds: bool = False) -> None:
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.window = window
        self.attend: attention_kernels.Attend = attention_kernels.plain
        # Scaling queries and keys equals scaling their products; None means 1/sqrt(D).
        self.scale = None if config.qk_scale == 1.0 else config.qk_scale**2 / self.head_dim**0.5
        kv_width = config.n_kv_head * config.head_dim
        self.c_q = Linear(config.n_embd, config.n_embd)
        self.c_k = Linear(config.n_embd, kv_width)
        self.c_v = Linear(config.n_embd, kv_width)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.gate_scale = config.ve_gate_scale
        if embeds:
            self.ve_gate = Linear(config.ve_gate_channels, config.n_kv_head)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, embeds: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        """Attend; `embeds` is (B, T, kv width), `cos` and `sin` are those of x's positions.

        With a cache, x continues the tokens in it and is added to it.
        """
        batch, length, width = x.shape
        q = self.c_q(x).view(batch, length, self.n_head, self.head_dim)
        k = self.c_k(x).view(batch, length, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(batch, length, self.n_kv_head, self.head_dim)
        if embeds is not None:
            gate = self.gate_scale * torch.sigmoid(self.ve_gate(x[..., : self.ve_gate.weight.size(1)]))
            v = v + gate[..., None] * embeds.view_as(v)
        q, k = norm(rotate(q, cos, sin)), norm(rotate(k, cos, sin))
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        attend = self.attend
        if cache is not None:
            k, v = cache.extend(k, v)
            attend = attention_kernels.plain
        y = attend(q, k, v, self.window, self.scale)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, width))
