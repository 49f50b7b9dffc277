"""Trains byte-pair encodings, in Rust: texts in, mergeable ranks out.

Decides which pairs of bytes become tokens. Does not encode or decode (tiktoken
does) and knows no special tokens (`nanochat.tokenizer` does). The functions
live in the compiled module `rustbpe._rustbpe`.
"""

from rustbpe._rustbpe import SPLIT_PATTERN, split, train

__all__ = ["SPLIT_PATTERN", "split", "train"]
