"""A table of the attention kernels that torch can call.

Decides how each is called and which of them support windows.
`nanochat.attention_backend` tests which of them work on the machine. Nothing is
activated on import. A kernel takes q (B, query heads, T, D), k and v (B, key heads, S,
D), the window in tokens, and a scale (None: 1/sqrt(D)), and returns (B, query heads,
T, D); queries are at the last T of the S positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import attention
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[[Tensor, Tensor, Tensor, int, float | None], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None) -> Tensor:
    """Torch's scaled dot-product attention, which chooses its kernel itself; a short window needs a mask.

    The only one here that accepts fewer queries than keys, which a cache needs.
    """
    length = q.size(2)
    if length == 1:  # one query needs no mask: only the keys of its window are read
        k, v = k[:, :, -window - 1 :], v[:, :, -window - 1 :]
    seen = k.size(2)
    mask = None
    if length > 1 and (window < seen or seen > length):
        mask = window_mask(length, seen, window, q.device)
    causal = length > 1 and mask is None
    shared = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=shared)


def window_mask(queries: int, keys: int, window: int, device: torch.device) -> Tensor:
    """(queries, keys): true where a query may attend to a key, at its own position or up to `window` before it.

    The queries are at the last positions of the keys.
    """
    position = torch.arange(keys, device=device)
    back = position[keys - queries :, None] - position[None, :]
    return (back >= 0) & (back <= window)


def math(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None) -> Tensor:
    """Plain products and softmax: runs everywhere, but keeps all T * S scores in memory."""
    with sdpa_kernel(SDPBackend.MATH):
        return plain(q, k, v, window, scale)


def efficient(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None) -> Tensor:
    """Torch's memory-efficient kernel, which accepts masks."""
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        return plain(q, k, v, window, scale)


def cudnn(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None) -> Tensor:
    """cuDNN's kernel for layers without a window; it does not support windows, so other layers use `plain`."""
    if window < q.size(2):
        return plain(q, k, v, window, scale)
    # Calls the operator directly, because torch's graph cache refuses graphs that contain `sdpa_kernel`.
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True, False, scale=scale)
    return found[0]


def flash(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None) -> Tensor:
    """The active flash kernel, which supports windows: torch's FA2, or FA3 or FA4 if activated.

    `scaled_dot_product_attention` has no argument for a window, so the operator below it is called.
    """
    length = q.size(2)
    short = window < length
    left, right = (window, 0) if short else (-1, -1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, D), the layout of the kernel
    found = torch.ops.aten._flash_attention_forward(
        q, k, v, None, None, length, length, 0.0, not short, False,
        scale=scale if scale is not None else q.size(3) ** -0.5, window_size_left=left, window_size_right=right,
    )  # fmt: skip
    return found[0].transpose(1, 2)


def activate(implementation: str | None) -> None:
    """Activate the flash kernel of an installed package in this process, "FA3" or "FA4"; None: torch's own.

    Raises: what importing or registering the package raises, such as ImportError.
    """
    if implementation is None:
        if hasattr(attention, "current_flash_attention_impl") and attention.current_flash_attention_impl():
            attention.restore_flash_attention_impl()
        return
    if not hasattr(attention, "activate_flash_attention_impl"):
        raise RuntimeError(f"torch {torch.__version__} has no way to activate it")
    if attention.current_flash_attention_impl() != implementation:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that its own kernel is replaced, which is intended
            attention.activate_flash_attention_impl(implementation)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Backend:
    """An attention backend: a kernel and how to activate it."""

    name: str
    attend: Attend
    windows: bool = False  # supports windows; otherwise a layer with a short window needs a mask
    implementation: str | None = None  # the package whose flash kernel must be active

    def enter(self) -> None:
        """Activate it in this process, in place of another backend."""
        activate(self.implementation)


SDPA = Backend("sdpa", plain)
MATH = Backend("math", math)

BACKENDS: dict[str, tuple[Backend, ...]] = {
    "cuda": (
        Backend("fa4", flash, windows=True, implementation="FA4"),
        Backend("fa3", flash, windows=True, implementation="FA3"),
        Backend("cudnn", cudnn),
        Backend("flash", flash, windows=True),
        Backend("efficient", efficient),
        MATH,
    ),
    # on a CPU torch's own choice is its flash kernel for CPUs
    "cpu": (SDPA, MATH),
}
"""By device type, the fastest first."""

NAMES = tuple(dict.fromkeys(backend.name for table in BACKENDS.values() for backend in table))
