"""Trains byte-pair encodings in Rust: texts in, mergeable ranks out.

tiktoken encodes and decodes; `nanochat.tokenizer` adds the special tokens. The
functions are in the compiled module `rustbpe._rustbpe`.
"""

from rustbpe._rustbpe import SPLIT_PATTERN, split, train

__all__ = ["SPLIT_PATTERN", "split", "train"]
