"""How much text one token stands for, measured side by side with well-known tokenizers.

Decides what is compared: bytes per token on the same texts, the higher the
better. The peers are GPT-2's encoding and cl100k, if tiktoken has their files on
this machine; the network is never asked, and a peer that is not there is named
as missing. Lengths in bytes of UTF-8 and in tokens, without special tokens.
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
    """One text under all tokenizers."""

    name: str
    bytes: int
    tokens: dict[str, int]  # by tokenizer: "own" and the peers

    def bytes_per_token(self, tokenizer: str) -> float:
        """Bytes that one token stands for on average."""
        return self.bytes / self.tokens[tokenizer]

    def gain(self, peer: str) -> float:
        """By how much more text a token of ours holds than one of the peer; 0.05 is 5 percent, negative is less."""
        return self.tokens[peer] / self.tokens[OWN] - 1.0


@dataclass(frozen=True, slots=True)
class TokenizerScore:
    """What `evaluate_tokenizer` found."""

    vocab_sizes: dict[str, int]  # by tokenizer: "own" first, then the peers that are there
    texts: tuple[TextScore, ...]
    missing: tuple[str, ...]  # peers whose files are not on this machine


def evaluate_tokenizer(tokenizer: Tokenizer, texts: Mapping[str, str]) -> TokenizerScore:
    """Bytes per token of `tokenizer` and of the peers on each of `texts`, which are told apart by their names.

    Raises: DataError: a text is empty, or `tokenizer` does not give it back.
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
        raise DataError(f"the tokenizer does not give the text {name} back", "make it again or fetch an intact copy")
    return TextScore(name, len(text.encode()), {known: len(ids) for known, ids in encoded.items()})
