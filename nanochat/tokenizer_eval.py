"""Compares a tokenizer's bytes per token with those of GPT-2's and cl100k's.

Bytes per token on the same texts are compared; higher is better. The peers are GPT-2's
encoding and cl100k, if tiktoken has their files on this machine. The network is never
used; a peer without files is listed as missing. Lengths in UTF-8 bytes and in tokens,
without special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from curtail.errors import DataError
from nanochat.tokenizer import Tokenizer, cached_encoding

PEERS = {"gpt2": "gpt2", "cl100k": "cl100k_base"}
"""Name in the tables -> name of tiktoken's encoding."""

OWN = "own"

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class TextScore:
    """The scores of one text with all tokenizers."""

    name: str
    bytes: int
    tokens: dict[str, int]  # by tokenizer: "own" and the peers

    def bytes_per_token(self, tokenizer: str) -> float:
        """Average bytes per token."""
        return self.bytes / self.tokens[tokenizer]

    def gain(self, peer: str) -> float:
        """Relative gain in bytes per token over the peer; 0.05 means 5 percent more text per token."""
        return self.tokens[peer] / self.tokens[OWN] - 1.0


@dataclass(frozen=True, slots=True)
class TokenizerScore:
    """The result of `evaluate_tokenizer`."""

    vocab_sizes: dict[str, int]  # by tokenizer: "own" first, then the available peers
    texts: tuple[TextScore, ...]
    missing: tuple[str, ...]  # peers whose files are not on this machine


def evaluate_tokenizer(tokenizer: Tokenizer, texts: Mapping[str, str]) -> TokenizerScore:
    """Bytes per token of `tokenizer` and the peers on each of `texts` (name -> text).

    Raises: DataError: a text is empty, or `tokenizer` does not reproduce it.
    """
    peers = {name: cached_encoding(known) for name, known in PEERS.items()}
    encoders: dict[str, Encode] = {OWN: tokenizer.encode}
    sizes = {OWN: tokenizer.vocab_size}
    for name, peer in peers.items():
        if peer is not None:
            encoders[name], sizes[name] = peer.encode_ordinary, peer.n_vocab
    scores = tuple(_score(name, text, encoders, tokenizer) for name, text in texts.items())
    return TokenizerScore(sizes, scores, tuple(name for name, peer in peers.items() if peer is None))


def _score(name: str, text: str, encoders: Mapping[str, Encode], tokenizer: Tokenizer) -> TextScore:
    if not text:
        raise DataError(f"the text {name} is empty", "give a text with at least one character")
    encoded = {known: encode(text) for known, encode in encoders.items()}
    if tokenizer.decode(encoded[OWN]) != text:
        raise DataError(f"the tokenizer does not reproduce the text {name}", "train it again or get an intact copy")
    return TextScore(name, len(text.encode()), {known: len(ids) for known, ids in encoded.items()})
