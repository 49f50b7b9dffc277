"""The manifest of a folder of tokens: its files, and the shards and tokenizer that made them.

Defines the form of `manifest.json` and refuses any other form. The manifest has every
hash on which the token ids depend (text shards, tokenizer, files). So its digest
identifies the data set on all machines: equal digests mean equal samples. Lengths are
in tokens, sizes in bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from curtail.errors import DataError, NotFound, UsageError
from curtail.system.disk import disk_error
from nanochat.tokenizer import LARGEST_VOCABULARY

MANIFEST_NAME = "manifest.json"
FORMAT = "curtail-tokens"
FORMAT_VERSION = 1
STREAM = "stream"
"""One stream of tokens: a sample begins where the previous one ended, anywhere in a document."""
BEST_FIT = "bestfit"
"""Rows of T + 1 tokens, each beginning with BOS, made of whole documents and one cropped one."""
PACKINGS = (STREAM, BEST_FIT)
PARTS = ("train", "validation")
TOKEN_BYTES = 2
_HASH = re.compile("[0-9a-f]{64}")
_FILE_NAME = re.compile(r"(train|validation)_\d{5,}\.bin")
_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class SourceShard:
    """A shard of text that the tokens were made from."""

    name: str
    sha256: str  # hex


@dataclass(frozen=True, slots=True)
class TokenFile:
    """One file of tokens."""

    name: str
    part: str  # train or validation
    tokens: int
    sha256: str  # hex
    size: int  # bytes: twice the tokens


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest."""

    sequence_len: int  # T: a sample has T inputs and T targets
    vocab_size: int
    tokenizer: str  # Tokenizer.digest
    packing: str
    shards: tuple[SourceShard, ...]
    files: tuple[TokenFile, ...]  # in reading order

    def __post_init__(self) -> None:
        if self.sequence_len < 1 or not 1 <= self.vocab_size <= LARGEST_VOCABULARY:
            raise DataError("the manifest's sequence length or vocabulary size is out of range")
        if self.packing not in PACKINGS:
            known = " and ".join(map(repr, PACKINGS))
            raise DataError(f"the manifest has the unknown packing {self.packing!r}; known are {known}")
        hashes = [self.tokenizer, *(shard.sha256 for shard in self.shards), *(file.sha256 for file in self.files)]
        if not all(map(_HASH.fullmatch, hashes)):
            raise DataError("the manifest has a hash that is not a SHA-256")
        names = [file.name for file in self.files]
        if len(set(names)) < len(names) or {file.part for file in self.files} - set(PARTS):
            raise DataError("the manifest lists a file twice or an unknown part")
        for file in self.files:
            if file.tokens < 1 or file.size != TOKEN_BYTES * file.tokens or not _FILE_NAME.fullmatch(file.name):
                raise DataError(f"the manifest's entry for {file.name!r} is inconsistent")
            if self.packing == BEST_FIT and file.tokens % (self.sequence_len + 1):
                raise DataError(f"the manifest's file {file.name!r} does not have whole rows")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON; equal digests mean equal samples."""
        text = json.dumps(self._content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def files_of(self, part: str) -> tuple[TokenFile, ...]:
        """The files of `train` or `validation`, in reading order.

        Raises: UsageError: any other part.
        """
        if part not in PARTS:
            raise UsageError(f"there is no part {part!r}", "use train or validation")
        return tuple(file for file in self.files if file.part == part)

    def tokens(self, part: str) -> int:
        """Length of a part in tokens."""
        return sum(file.tokens for file in self.files_of(part))

    def samples(self, part: str) -> int:
        """Number of samples in one pass over a part: (tokens - 1) // T in a stream, not below 0; else rows."""
        if self.packing == BEST_FIT:
            return self.tokens(part) // (self.sequence_len + 1)
        return max(0, self.tokens(part) - 1) // self.sequence_len

    def check_files(self, folder: Path, parts: Collection[str] = PARTS) -> None:
        """Check that the files of `parts` are in `folder` with the right sizes; hashes are not checked.

        Raises: DataError: a file is missing or has a wrong size.
        """
        for file in self.files:
            path = folder / file.name
            if file.part in parts and (not path.is_file() or path.stat().st_size != file.size):
                raise DataError(
                    f"the token file {path} is missing or has the wrong size",
                    "copy it again, or run `curtail data prepare` again",
                )

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(self._content(), indent=1) + "\n"

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, "version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """The manifest that `to_json` wrote.

        Raises: DataError: truncated, of another format or version, or with an unknown,
            missing, mistyped or inconsistent field.
        """
        remedy = f"create it again with `curtail data prepare`, or copy the whole {MANIFEST_NAME}"
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise DataError("this is not a manifest of tokens", remedy)
            if (version := content.pop("version", None)) != FORMAT_VERSION:
                raise DataError(f"the manifest has format version {version!r}, not {FORMAT_VERSION}", remedy)
            content["shards"] = tuple(_record(SourceShard, entry) for entry in content["shards"])
            content["files"] = tuple(_record(TokenFile, entry) for entry in content["files"])
            return _record(cls, content)
        except (ValueError, KeyError, TypeError):
            raise DataError("the manifest is truncated, or its fields are not those of a manifest", remedy) from None

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest in `folder`.

        Raises:
            NotFound: there is none.
            DataError: as `from_json`.
        """
        path = folder / MANIFEST_NAME
        try:
            return cls.from_json(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"no {MANIFEST_NAME} in {folder}", "create the tokens with `curtail data prepare`") from None
        except OSError as error:
            raise disk_error("read", path, error) from error
        except DataError as error:
            raise DataError(f"{path}: {error.message}", error.remedy) from None


def _record(kind: type[_Record], entry: dict[str, Any]) -> _Record:
    """A dataclass from a dictionary with exactly its fields and types."""
    types = {"int": int, "str": str}
    for name, declared in kind.__annotations__.items():
        wanted = types.get(declared, tuple)
        if type(entry[name]) is not wanted:
            raise TypeError(name)
    return kind(**entry)
