"""nanochat's GPT in its versions from the launch to 2026-07: embeddings, blocks, logits or loss.

Defines the network and its initial weights. The configuration says which parts a
model has. Parameters are fp32; products run in `compute_dtype` (bf16 on CUDA, fp32 on
CPU) without autocast. Shapes: B inputs of T tokens, V vocabulary; names and shapes of
the weights are in `presets.weight_shapes`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat.attention import Attention, LayerCache, Linear, norm, rotary_tables
from nanochat.attention_kernels import Attend
from nanochat.loss import cross_entropy, softcapped_logits, whole_cross_entropy
from nanochat.presets import SMEAR_CHANNELS, GPTConfig


class MLP(nn.Module):
    """Feed-forward layer: hidden width four times n_embd, squared ReLU, no biases."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class Block(nn.Module):
    """Attention, then MLP, each applied to the normalised residual stream and added to it."""

    def __init__(self, config: GPTConfig, window: int, embeds: bool) -> None:
        super().__init__()
        self.attn = Attention(config, window, embeds)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, embeds: Tensor | None = None, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.attn(norm(x), cos, sin, embeds, cache)
        return x + self.mlp(norm(x))


class Embedding(nn.Module):
    """A table of one row per token id."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width, dtype=torch.float32))

    def forward(self, idx: Tensor) -> Tensor:
        return F.embedding(idx, self.weight)


class Cache:
    """The keys and values of the tokens that a model has read, at most sequence_len of them.

    A forward pass with a cache processes only new tokens. For inference: gradients do not pass through it.
    """

    def __init__(self, config: GPTConfig) -> None:
        self.layers = [LayerCache(config.sequence_len) for _ in range(config.n_layer)]
        self.last: Tensor | None = None  # embedding of the last token before smear; (B, 1, n_embd)

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.layers[0].length


class GPT(nn.Module):
    """The model. Its weights are uninitialised until `init_weights` or a load.

    Build it on the CPU (or on the meta device, to count parameters), and move it afterwards.
    """

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        self.fused_loss = True  # false: compute all logits at once, for comparison
        self.embed_layers = config.value_embed_layers()
        blocks = nn.ModuleList(
            [Block(config, window, layer in self.embed_layers) for layer, window in enumerate(config.windows())]
        )
        self.transformer = nn.ModuleDict({"wte": Embedding(config.padded_vocab_size, config.n_embd), "h": blocks})
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size)
        if config.lambdas:
            self.resid_lambdas = nn.Parameter(torch.empty(config.n_layer, dtype=torch.float32))
            self.x0_lambdas = nn.Parameter(torch.empty(config.n_layer, dtype=torch.float32))
        if config.smear:
            self.smear_gate = Linear(SMEAR_CHANNELS, 1)
            self.smear_lambda = nn.Parameter(torch.empty(1, dtype=torch.float32))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.empty(1, dtype=torch.float32))
        if config.value_embeds:
            kv_width = config.n_kv_head * config.head_dim
            tables = {str(layer): Embedding(config.padded_vocab_size, kv_width) for layer in self.embed_layers}
            self.value_embeds = nn.ModuleDict(tables)
        cos, sin = rotary_tables(config.sequence_len, config.head_dim, config.rope_base, compute_dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initialise all weights from `seed`; computed on the CPU for every device.

        Values are drawn in the order of the modules: wte N(0, 1), lm_head
        N(0, 0.001), query, key, value, c_fc and value embeddings uniform with
        deviation 1/sqrt(width), both c_proj zero, lambdas 1 and 0, gates of value
        embeddings zero, smear off, backout 0.2. The profile 2026-03 has wte
        N(0, 0.8), c_fc 0.4 times as wide, lambdas that fall with depth from 1.15 to
        1.05 and from 0.2 to 0.05, and gates in U(0, 0.02). Two machines with the same
        torch build get equal weights. Training does not rely on it: version 0 is made
        once and sent to the sites.
        Source: nanochat 2026-01-12 and 2026-07-03, `GPT.init_weights`.
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        later = self.config.init_profile == "2026-03"
        bound = (3.0 / self.config.n_embd) ** 0.5
        depth = torch.arange(self.config.n_layer, device="cpu") / max(1, self.config.n_layer - 1)  # 0 to 1
        for name, parameter in self.named_parameters():
            values = torch.zeros(parameter.shape, dtype=torch.float32, device="cpu")
            kind = name.removesuffix(".weight").rpartition(".")[2]
            if kind == "wte":
                values.normal_(0.0, 0.8 if later else 1.0, generator=generator)
            elif kind == "lm_head":
                values.normal_(0.0, 0.001, generator=generator)
            elif kind == "resid_lambdas":
                values.copy_(1.15 - 0.1 * depth if later else torch.ones_like(depth))
            elif kind == "x0_lambdas":
                values.copy_(0.2 - 0.15 * depth if later else torch.zeros_like(depth))
            elif kind == "backout_lambda":
                values.fill_(0.2)
            elif kind == "smear_gate" or (kind == "ve_gate" and later):
                values.uniform_(0.0, 0.02, generator=generator)
            elif kind not in ("c_proj", "smear_lambda", "ve_gate"):
                wide = bound * 0.4 if later and kind == "c_fc" else bound
                values.uniform_(-wide, wide, generator=generator)
            parameter.copy_(values)

    def use_attention(self, attend: Attend) -> None:
        """Use this attention kernel in all layers; passes with a cache keep torch's own choice."""
        for block in self.transformer["h"]:  # type: ignore[attr-defined]
            block.attn.attend = attend

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, reduction: str = "mean", cache: Cache | None = None
    ) -> Tensor:
        """Logits, or the loss if targets are given.

        Args:
            idx: (B, T) int64 with T <= sequence_len.
            targets: (B, T) int64, the next id at each position; negative ones are not counted.
            reduction: see `loss.cross_entropy`; "none" gives (B, T) without a gradient.
            cache: idx continues its tokens and is added to it; together at most sequence_len.
        Returns: without targets fp32 logits (B, T, V), with a cache only those of the last token,
            (B, 1, V); with targets the loss in nats.
        """
        assert cache is None or targets is None, "a cache gives the last logits, not a loss"
        start = cache.length if cache else 0
        stop = start + idx.size(1)
        assert stop <= self.config.sequence_len, f"{stop} tokens exceed {self.config.sequence_len}"
        cos, sin = self.cos[start:stop], self.sin[start:stop]
        # Look up in fp32, then cast, so that the gradient of the table accumulates in fp32.
        x = norm(self.transformer["wte"](idx).to(self.compute_dtype))
        if self.config.smear:
            before = cache.last if cache else None
            if cache:
                cache.last = x[:, -1:].detach()
            x = self._smeared(x, before)
        x0 = x
        middle = None
        for layer, block in enumerate(self.transformer["h"]):  # type: ignore[arg-type]
            if self.config.lambdas:
                x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            embeds = self.value_embeds[str(layer)](idx).to(x.dtype) if layer in self.embed_layers else None
            x = block(x, cos, sin, embeds, cache.layers[layer] if cache else None)
            if self.config.backout and layer == self.config.n_layer // 2:
                middle = x
        if middle is not None:
            x = x - self.backout_lambda.to(x.dtype) * middle
        if cache:
            x = x[:, -1:]
        x = norm(x)
        vocab, softcap = self.config.vocab_size, self.config.softcap
        if targets is None:
            return softcapped_logits(x, self.lm_head.weight, vocab, softcap)
        flat = x.reshape(-1, x.size(-1))
        if not self.fused_loss and reduction == "mean":
            return whole_cross_entropy(flat, self.lm_head.weight, targets.reshape(-1), vocab, softcap)
        loss = cross_entropy(flat, self.lm_head.weight, targets.reshape(-1), vocab, softcap, reduction)
        return loss.view_as(targets) if reduction == "none" else loss

    def _smeared(self, x: Tensor, before: Tensor | None) -> Tensor:
        """x_t + lambda * sigmoid(gate @ x_t[:24]) * x_(t-1), where x_(t-1) is the embedding before smear.

        Args: before: (B, 1, n_embd), the embedding before x; None: there is none, and the first token is unchanged.
        """
        first = x[:, :1] if before is None else x[:, :0]
        now = x[:, first.size(1) :]
        previous = x[:, :-1] if before is None else torch.cat((before, x[:, :-1]), dim=1)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(now[..., :SMEAR_CHANNELS]))
        return torch.cat((first, now + gate * previous), dim=1)
