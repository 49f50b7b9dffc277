"""Continuing a text: token ids in, sampled token ids out, one at a time.

Decides how the next token is drawn, when to stop, and what is forgotten when
the text outgrows the model's longest input (`first_seen`). Every token goes
through the model once, keys and values are kept. It knows ids only; text is
the tokenizer's. One seed gives one text on one device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from curtail.errors import ConfigError
from nanochat.gpt import GPT, Cache


def first_seen(length: int, sequence_len: int) -> int:
    """The index of the first of `length` tokens that the model sees when it predicts the one after them.

    All of them while they fit. Then tokens are forgotten a quarter of sequence_len at
    a time: forgetting changes what every later layer knows of the rest, so what
    remains is read anew, and this is to happen rarely.
    """
    step = max(1, sequence_len // 4)
    return -(-max(0, length - sequence_len) // step) * step


class Context:
    """A growing text, and what the model remembers of it.

    Args: ids: the text so far, at least one id.
    """

    def __init__(self, model: GPT, ids: Sequence[int]) -> None:
        self.model = model
        self.ids = list(ids)
        self._first = 0  # index of the first token in the cache
        self._cache = Cache(model.config)

    @torch.inference_mode()
    def logits(self) -> torch.Tensor:
        """Logits of the token that follows, (V,) fp32 on the CPU; to be asked once for each token.

        Those of a pass without cache over `ids[first_seen(len(ids), sequence_len):]`.
        """
        first = first_seen(len(self.ids), self.model.config.sequence_len)
        if first != self._first:
            self._first, self._cache = first, Cache(self.model.config)
        new = self.ids[first + self._cache.length :]
        device = next(self.model.parameters()).device
        idx = torch.tensor([new], dtype=torch.int64, device=device)
        return self.model(idx, cache=self._cache)[0, -1].float().cpu()


def generate(
    model: GPT,
    prompt_ids: Sequence[int],
    max_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    bos_id: int | None = None,
) -> Iterator[int]:
    """Ids that continue the prompt, at most `max_tokens`; ends before a BOS, which starts another document.

    Args:
        prompt_ids: at least one id (give BOS for a fresh start); all but the last sequence_len are forgotten,
            and later tokens push out earlier ones as `first_seen` says.
        temperature: divides the logits; 0 takes the likeliest token, the lowest id among equals.
        top_k: draw among the k likeliest only; None for all.
        bos_id: None if nothing ends the text early.
    Raises: ConfigError: an empty prompt, an id outside the vocabulary, a negative temperature,
        top_k below 1. It is raised at the call, not at the first id.
    """
    vocab = model.config.vocab_size
    if not prompt_ids:
        raise ConfigError("the prompt holds no token", "start it with BOS")
    if wrong := [token for token in prompt_ids if not 0 <= token < vocab]:
        raise ConfigError(f"the prompt holds id {wrong[0]}, the model knows 0 to {vocab - 1}", "use its own tokenizer")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature is {temperature}", "give 0 or more; 1 leaves the model's own probabilities")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k is {top_k}", "give at least 1, or none")
    return _ids(model, list(prompt_ids), max_tokens, temperature, top_k, seed, bos_id)


def _ids(
    model: GPT, ids: list[int], max_tokens: int, temperature: float, top_k: int | None, seed: int, bos_id: int | None
) -> Iterator[int]:
    # drawn on the CPU, so that the same probabilities give the same text on every device
    generator = torch.Generator(device="cpu").manual_seed(seed)
    context = Context(model, ids[-model.config.sequence_len :])
    for _ in range(max_tokens):
        token = _draw(context.logits(), temperature, top_k, generator)
        if token == bos_id:
            return
        context.ids.append(token)
        yield token


def _draw(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.numel():
        kept = logits.topk(top_k)
        choice = torch.multinomial(torch.softmax(kept.values / temperature, dim=0), 1, generator=generator)
        return int(kept.indices[choice])
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=0), 1, generator=generator))
