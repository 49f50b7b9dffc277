"""Text generation: samples token ids one at a time, with a key-value cache.

Decides how the next token is sampled, when to stop, and which tokens are dropped
when the text becomes longer than the model's longest input (`first_seen`). Works
with token ids only; the tokenizer converts text. On one device, one seed always gives
the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from curtail.errors import ConfigError
from nanochat.gpt import GPT, Cache


def first_seen(length: int, sequence_len: int) -> int:
    """The index of the first of `length` tokens that the model sees when it predicts the next one.

    It sees all tokens while they fit. Then the oldest tokens are dropped, a quarter of sequence_len
    at a time. Dropping tokens invalidates the cache, so the rest must be read again, which should be rare.
    """
    step = max(1, sequence_len // 4)
    return -(-max(0, length - sequence_len) // step) * step


class Context:
    """A growing text and the model's cache for it.

    Args: ids: the text so far, at least one id.
    """

    def __init__(self, model: GPT, ids: Sequence[int]) -> None:
        self.model = model
        self.ids = list(ids)
        self._first = 0  # index of the first token in the cache
        self._cache = Cache(model.config)

    @torch.inference_mode()
    def logits(self) -> torch.Tensor:
        """Logits of the next token, (V,) fp32 on the CPU. Call it once for each token.

        They equal those of a pass without cache over `ids[first_seen(len(ids), sequence_len):]`.
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
    """Yield at most `max_tokens` ids that continue the prompt; ends before a BOS, which starts another document.

    Args:
        prompt_ids: at least one id (BOS for an empty prompt); only the last sequence_len are used, and
            later tokens replace earlier ones as `first_seen` says.
        temperature: divides the logits; 0 takes the most likely token, of equals the lowest id.
        top_k: sample only from the k most likely tokens; None: from all.
        bos_id: None: BOS does not end the text.
    Raises: ConfigError: an empty prompt, an id outside the vocabulary, a negative temperature,
        or top_k below 1. It is raised at the call, not at the first id.
    """
    vocab = model.config.vocab_size
    if not prompt_ids:
        raise ConfigError("the prompt is empty", "start it with BOS")
    if wrong := [token for token in prompt_ids if not 0 <= token < vocab]:
        raise ConfigError(
            f"the prompt has the id {wrong[0]}, but the model has ids 0 to {vocab - 1}", "use the model's tokenizer"
        )
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature is {temperature}", "give 0 or more; 1 keeps the model's probabilities")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k is {top_k}", "give at least 1, or none")
    return _ids(model, list(prompt_ids), max_tokens, temperature, top_k, seed, bos_id)


def _ids(
    model: GPT, ids: list[int], max_tokens: int, temperature: float, top_k: int | None, seed: int, bos_id: int | None
) -> Iterator[int]:
    # Sampled on the CPU, so that equal probabilities give the same text on every device.
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
