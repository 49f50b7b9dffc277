"""Continuing a text: token ids in, sampled token ids out, one at a time.

Decides how the next token is drawn and when to stop. It keeps no cache: every
token runs the whole context through the model, cut to the model's longest
input. It knows ids only; text is the tokenizer's. One seed gives one text on
one device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from curtail.errors import ConfigError
from nanochat.gpt import GPT


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
        prompt_ids: at least one id (give BOS for a fresh start); all but the last sequence_len are forgotten.
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
    device = next(model.parameters()).device
    length = model.config.sequence_len
    for _ in range(max_tokens):
        context = torch.tensor([ids[-length:]], dtype=torch.int64, device=device)
        with torch.inference_mode():
            logits = model(context)[0, -1].float().cpu()
        token = _draw(logits, temperature, top_k, generator)
        if token == bos_id:
            return
        ids.append(token)
        yield token


def _draw(logits: torch.Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.numel():
        kept = logits.topk(top_k)
        choice = torch.multinomial(torch.softmax(kept.values / temperature, dim=0), 1, generator=generator)
        return int(kept.indices[choice])
    return int(torch.multinomial(torch.softmax(logits / temperature, dim=0), 1, generator=generator))
