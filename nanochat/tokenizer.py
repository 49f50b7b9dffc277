"""The tokenizer: a byte-pair encoding and nine special tokens; converts text to ids and back.

The mergeable ranks have the lowest ids, then come the special tokens, so BOS is V - 9.
`rustbpe` trains the encoding; tiktoken encodes and decodes, without network access. A
tokenizer is stored as a JSON file, never as a pickle, and a file of any other form is
refused. Ids are stored in 16 bits, so V is at most 65,536. Lengths are in UTF-8 bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rustbpe
from curtail.errors import DataError, NotFound, UsageError
from curtail.system.disk import Disk, SystemDisk, disk_error

if TYPE_CHECKING:
    import tiktoken

FILE_NAME = "tokenizer.json"
FORMAT = "curtail-tokenizer"
FORMAT_VERSION = 1
LARGEST_VOCABULARY = 65_536
"""Larger ids do not fit into the 16 bits of the token files."""
SPECIALS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
SMALLEST_VOCABULARY = 256 + len(SPECIALS)

# The pattern needs one backtracking step per blank; tiktoken panics at a million.
_LONGEST_BLANK = 100_000
_LONG_BLANK = re.compile(rf"\s{{{_LONGEST_BLANK}}}")
_REMAKE = "train it again with `curtail tokenizer train`, or get an intact copy"


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """An immutable tokenizer; equal digests mean equal ids for every text.

    Args:
        ranks: the bytes of each mergeable token, in the order of the ids.
        pattern: the regular expression that splits text; no token crosses its matches.
    Raises: DataError: `ranks` or `pattern` are not a valid byte-pair encoding.
    """

    ranks: tuple[bytes, ...] = field(repr=False)
    pattern: str = rustbpe.SPLIT_PATTERN
    digest: str = field(init=False)  # sha256 (hex) of format, pattern, specials and ranks
    _encoding: tiktoken.Encoding = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_ranks(self.ranks)
        object.__setattr__(self, "digest", hashlib.sha256(_canonical(self._content())).hexdigest())
        object.__setattr__(self, "_encoding", _encoding(self))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train a tokenizer with `vocab_size` ids, nine of them special, on `texts`.

        `texts` is read once and never completely in memory.

        Raises:
            UsageError: `vocab_size` is below 265 or above 65,536.
            DataError: there is too little text for that many tokens.
        """
        if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
            raise UsageError(
                f"a vocabulary of {vocab_size} ids is not possible",
                f"choose a size from {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY} (ids are stored in 16 bits)",
            )
        wanted = vocab_size - len(SPECIALS)
        ranked = rustbpe.train((_well_formed(text) for text in texts), wanted, rustbpe.SPLIT_PATTERN)
        if len(ranked) < wanted:
            most = len(ranked) + len(SPECIALS)
            raise DataError(
                f"there is too little text for a vocabulary of {vocab_size}: only {most} tokens can be formed",
                f"give more text, or a vocabulary of at most {most}",
            )
        return cls(tuple(token for token, _ in ranked))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """The tokenizer stored in the file `path`.

        Raises:
            NotFound: there is no such file.
            DataError: it is truncated, damaged, or not a tokenizer of this format.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"no tokenizer at {path}", "train one with `curtail tokenizer train`") from None
        except OSError as error:
            raise disk_error("read", path, error) from error
        try:
            return cls._from_bytes(data)
        except DataError as error:
            raise DataError(f"{path} cannot be used: {error.message}", error.remedy or _REMAKE) from None

    @classmethod
    def _from_bytes(cls, data: bytes) -> Tokenizer:
        try:
            content = json.loads(data)
        except ValueError:
            raise DataError("it is truncated or not JSON") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError("it is not a tokenizer file")
        if content.get("version") != FORMAT_VERSION:
            raise DataError(
                f"its format version is {content.get('version')!r}, and only {FORMAT_VERSION} is known",
                "use the release of curtail that wrote it, or train it again",
            )
        if content.keys() != {"format", "version", "pattern", "specials", "ranks", "digest"}:
            raise DataError("its fields are not those of a tokenizer file")
        pattern, ranks = content["pattern"], content["ranks"]
        if not isinstance(pattern, str) or not isinstance(ranks, list):
            raise DataError("its pattern or its ranks are of the wrong type")
        if content["specials"] != list(SPECIALS):
            raise DataError("its special tokens are not the nine that are known")
        try:
            tokenizer = cls(tuple(base64.b64decode(rank, validate=True) for rank in ranks), pattern)
        except (TypeError, ValueError, binascii.Error):
            raise DataError("its ranks are not base64 text") from None
        if tokenizer.digest != content["digest"]:
            raise DataError("its content does not match its digest: it was changed or damaged")
        return tokenizer

    def save(self, path: Path, disk: Disk | None = None) -> None:
        """Write the tokenizer to the file `path`; equal tokenizers give equal bytes.

        Raises: DiskError: the folder is full, read-only or missing.
        """
        content = {**self._content(), "digest": self.digest}
        text = json.dumps(content, indent=0, ensure_ascii=True) + "\n"
        (disk or SystemDisk()).replace("TOKENIZER", path, text.encode())

    def _content(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "pattern": self.pattern,
            "specials": list(SPECIALS),
            "ranks": [base64.b64encode(rank).decode() for rank in self.ranks],
        }

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self.ranks) + len(SPECIALS)

    @property
    def bos_id(self) -> int:
        """The id of BOS, the first token of every document: V - 9."""
        return len(self.ranks)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without BOS. Names of special tokens are encoded as plain text.

        Lone surrogates, which have no UTF-8 form, become U+FFFD.
        """
        return [token for piece in _pieces(text) for token in self._encoding.encode_ordinary(piece)]

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[list[int]]:
        """`encode` of each text, on `threads` threads (all cores if not given).

        Raises: UsageError: `threads` is below 1.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"cannot encode on {threads} threads", "give at least 1")
        cut = [_pieces(text) for text in texts]
        flat = [piece for pieces in cut for piece in pieces]
        encoded = iter(self._encoding.encode_ordinary_batch(flat, num_threads=threads or os.cpu_count() or 1))
        # Nearly every text is a single piece, whose ids need no copying.
        return [next(encoded) if len(own) == 1 else [token for _ in own for token in next(encoded)] for own in cut]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens by their names, broken UTF-8 as U+FFFD.

        Raises: DataError: an id is outside the vocabulary.
        """
        ids = list(ids)
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise DataError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return self._encoding.decode(ids)

    def token_bytes(self) -> list[int]:
        """Length in bytes of each id, 0 for special tokens; used for bits per byte."""
        return [len(rank) for rank in self.ranks] + [0] * len(SPECIALS)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _check_ranks(ranks: tuple[bytes, ...]) -> None:
    """Check that the ranks are the 256 single bytes, followed by joins of two earlier tokens. Raises: DataError."""
    if not 256 <= len(ranks) <= LARGEST_VOCABULARY - len(SPECIALS):
        raise DataError(f"a tokenizer of {len(ranks)} ranks is not possible")
    if sorted(ranks[:256]) != [bytes([byte]) for byte in range(256)]:
        raise DataError("the first 256 ranks are not the single bytes")
    known = set(ranks[:256])
    for number, token in enumerate(ranks[256:], start=256):
        if token in known:
            raise DataError(f"rank {number} repeats an earlier one")
        if not any(token[:cut] in known and token[cut:] in known for cut in range(1, len(token))):
            raise DataError(f"rank {number} is not a join of two earlier ones")
        known.add(token)


def _encoding(tokenizer: Tokenizer) -> tiktoken.Encoding:
    import tiktoken

    # Built from its parts, because `tiktoken.get_encoding` would use the network.
    try:
        return tiktoken.Encoding(
            name=f"curtail-{tokenizer.digest[:12]}",
            pat_str=tokenizer.pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(tokenizer.ranks)},
            special_tokens={name: len(tokenizer.ranks) + index for index, name in enumerate(SPECIALS)},
            explicit_n_vocab=tokenizer.vocab_size,
        )
    except ValueError as error:
        raise DataError(f"its pattern is not a valid regular expression ({error})") from None


def cached_encoding(name: str) -> tiktoken.Encoding | None:
    """tiktoken's encoding `name`, if its files are in tiktoken's cache, else None. Never uses the network."""
    import tiktoken
    import tiktoken.load

    def refuse(blobpath: str) -> bytes:
        raise FileNotFoundError(blobpath)

    # tiktoken downloads missing files without a timeout; this is the function that does it.
    fetch = tiktoken.load.read_file
    tiktoken.load.read_file = refuse
    try:
        return tiktoken.get_encoding(name)
    except OSError:
        return None
    finally:
        tiktoken.load.read_file = fetch


def _well_formed(text: str) -> str:
    """`text` as tiktoken reads it: characters without a UTF-8 form become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _pieces(text: str) -> list[str]:
    """`text`, split inside runs of white space that are too long for tiktoken's pattern engine."""
    if len(text) < _LONGEST_BLANK:
        return [text]
    ends = [found.end() for found in _LONG_BLANK.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
