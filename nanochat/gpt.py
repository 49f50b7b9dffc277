"""The GPT of nanochat (2026-01-12): embeddings, blocks, logits or loss.

Decides the network and its initial weights. Parameters are fp32; products run
in `compute_dtype` (bf16 on CUDA, fp32 on CPU), without autocast. It knows
nothing of optimizers, devices or files. Shapes: B inputs of T tokens, V
vocabulary; the weights' names and shapes are those of `presets.weight_shapes`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat.attention import Attention, Linear, norm, rotary_tables
from nanochat.loss import cross_entropy, softcapped_logits
from nanochat.presets import GPTConfig


class MLP(nn.Module):
    """Four times wider inside, squared ReLU, no biases."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy and added to the stream."""

    def __init__(self, config: GPTConfig, window: int) -> None:
        super().__init__()
        self.attn = Attention(config, window)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(norm(x), cos, sin)
        return x + self.mlp(norm(x))


class Embedding(nn.Module):
    """A table of one row per token id."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, dtype=torch.float32))

    def forward(self, idx: Tensor) -> Tensor:
        return F.embedding(idx, self.weight)


class GPT(nn.Module):
    """The model. Its weights are undefined memory until `init_weights` or a load.

    Build on the CPU, or on the meta device to count; move afterwards.
    """

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        blocks = nn.ModuleList([Block(config, window) for window in config.windows()])
        self.transformer = nn.ModuleDict({"wte": Embedding(config.padded_vocab_size, config.n_embd), "h": blocks})
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size)
        if config.lambdas:
            self.resid_lambdas = nn.Parameter(torch.empty(config.n_layer, dtype=torch.float32))
            self.x0_lambdas = nn.Parameter(torch.empty(config.n_layer, dtype=torch.float32))
        cos, sin = rotary_tables(config.sequence_len, config.head_dim, config.rope_base, compute_dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill all weights from `seed`, on the CPU whatever the model's device.

        Values are drawn in the order of the modules: wte N(0, 1), lm_head
        N(0, 0.001), query, key, value and c_fc uniform with deviation
        1/sqrt(width), both c_proj zero, lambdas 1 and 0. Two machines with one
        torch build agree; training never relies on it, since the first version
        is made once and sent to the sites.
        Source: nanochat 2026-01-12, `GPT.init_weights`.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        bound = (3.0 / self.config.n_embd) ** 0.5
        for name, parameter in self.named_parameters():
            values = torch.zeros(parameter.shape, dtype=torch.float32, device="cpu")
            if name == "transformer.wte.weight":
                values.normal_(0.0, 1.0, generator=generator)
            elif name == "lm_head.weight":
                values.normal_(0.0, 0.001, generator=generator)
            elif name == "resid_lambdas":
                values.fill_(1.0)
            elif name != "x0_lambdas" and not name.endswith("c_proj.weight"):
                values.uniform_(-bound, bound, generator=generator)
            parameter.copy_(values)

    def forward(self, idx: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Logits, or the loss when targets are given.

        Args:
            idx: (B, T) int64 with T <= sequence_len.
            targets: (B, T) int64, the id that follows each; below 0 is not counted.
            reduction: see `loss.cross_entropy`; "none" gives (B, T) without a gradient.
        Returns: fp32 logits (B, T, V) without targets; else nats.
        """
        length = idx.size(1)
        assert length <= self.config.sequence_len, f"{length} tokens exceed {self.config.sequence_len}"
        cos, sin = self.cos[:length], self.sin[:length]
        # look up in fp32, then cast: the gradient of the table then adds up in fp32
        x = norm(self.transformer["wte"](idx).to(self.compute_dtype))
        x0 = x
        for layer, block in enumerate(self.transformer["h"]):  # type: ignore[arg-type]
            if self.config.lambdas:
                x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            x = block(x, cos, sin)
        x = norm(x)
        vocab, softcap = self.config.vocab_size, self.config.softcap
        if targets is None:
            return softcapped_logits(x, self.lm_head.weight, vocab, softcap)
        flat = x.reshape(-1, x.size(-1))
        loss = cross_entropy(flat, self.lm_head.weight, targets.reshape(-1), vocab, softcap, reduction)
        return loss.view_as(targets) if reduction == "none" else loss
