"""Bounds of message fields, as annotations: `devices: Annotated[int, Whole(1, 4096)]`.

Messages and the run file's sections are plain dataclasses whose annotations carry the bounds. The codec, the run
file's reader and the document at /openapi.json read them there; no other table repeats them. Bounds that several
fields share are named here (`Name`, `Count`, `Seconds`). Every number and text needs a bound; `Integer`, `Number`
and `String` allow every value of their type.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from curtail.errors import WireError

LARGEST = 2**53 - 1
"""The largest integer that every JSON library reads exactly."""

MAX_NOTE = 4096
"""Characters of a free text in a request; `limits.clean` cuts a longer one before it is sent."""

UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""Control characters except tab and line feed, bidirectional controls, and lone surrogates."""

_SURROGATE = re.compile("[\\ud800-\\udfff]")


class Bound(ABC):
    """The constraint of an annotation on a value of the right type."""

    __slots__ = ()

    @abstractmethod
    def fault(self, value: Any) -> str | None:
        """What is wrong with `value`; None if nothing is. The text does not repeat the value."""

    def check(self, value: Any, where: str) -> None:
        """Raises: WireError: `value` is not allowed; the message names the field `where`."""
        if (fault := self.fault(value)) is not None:
            raise WireError(f"{where}: {fault}")


@dataclass(frozen=True, slots=True)
class Whole(Bound):
    """A whole number from `low` to `high`."""

    low: int = -LARGEST
    high: int = LARGEST

    def fault(self, value: int) -> str | None:
        if self.low <= value <= self.high:
            return None
        return f"the number is outside of {self.low} to {self.high}"


@dataclass(frozen=True, slots=True)
class Real(Bound):
    """A finite number from `low` to `high`."""

    low: float = -1e30
    high: float = 1e30

    def fault(self, value: float) -> str | None:
        if self.low <= value <= self.high:
            return None
        return f"the number is outside of {self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Text(Bound):
    """A text of at most `longest` characters.

    The whole text must match the pattern `form`, which `said` describes in words. Without `form` it is free text,
    whose characters must be printable.
    """

    longest: int
    form: str = ""
    said: str = ""

    def fault(self, value: str) -> str | None:
        if len(value) > self.longest:
            return f"the text has {len(value)} characters, at most {self.longest} are allowed"
        if self.form and not re.fullmatch(self.form, value):
            return f"the text must be {self.said}"
        if not self.form and UNPRINTABLE.search(value):
            return "the text holds a control character"
        return None


@dataclass(frozen=True, slots=True)
class Utf8(Bound):
    """Any text that UTF-8 can encode: a lone surrogate cannot be written to the store or a file."""

    def fault(self, value: str) -> str | None:
        return "the text holds half of a character" if _SURROGATE.search(value) else None


_NAME = r"[A-Za-z0-9_.\-]{1,64}"
_NAME_SAID = "1 to 64 letters, digits, dots, dashes and underscores"
HASH = r"[0-9a-f]{64}"
NAMED = Text(64, _NAME, _NAME_SAID)
HASHED = Text(64, HASH, "64 lower-case hex digits, a SHA-256")

Integer = Annotated[int, Whole()]
Number = Annotated[float, Real()]
String = Annotated[str, Utf8()]

Count = Annotated[int, Whole(0)]
Version = Annotated[int, Whole(0, 2**31)]
Seconds = Annotated[float, Real(0.0, 1e9)]
Watts = Annotated[float, Real(0.0, 1e9)]
Joules = Annotated[float, Real(0.0, 1e18)]
Loss = Annotated[float, Real(-1e39, 1e39)]  # any float32; sums of them stay finite
Name = Annotated[str, NAMED]
NameOrEmpty = Annotated[
    str, Text(64, rf"({_NAME})?", "empty, or 1 to 64 letters, digits, dots, dashes and underscores")
]
Sha256 = Annotated[str, HASHED]
Sha256OrEmpty = Annotated[str, Text(64, rf"({HASH})?", "empty, or 64 lower-case hex digits, a SHA-256")]
Word = Annotated[str, Text(32, r"[A-Za-z][A-Za-z0-9_\-]{0,31}", "one word")]
Note = Annotated[str, Text(MAX_NOTE)]
Key = Annotated[str, Text(256)]  # key of an object whose keys are not fixed


@functools.cache
def annotations_of(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass, in order, each with its annotated type."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass, in order, each with its bare type."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def split(hint: Any) -> tuple[Any, Bound | None]:
    """Split an annotated type into the bare type and its bound; None if it has none."""
    if typing.get_origin(hint) is not Annotated:
        return hint, None
    kind, *notes = typing.get_args(hint)
    return kind, next((note for note in notes if isinstance(note, Bound)), None)


def leaves(hint: Any) -> Iterator[tuple[Any, Bound | None]]:
    """All types that a value, or an entry of a list or an object, may have, each with its bound."""
    kind, bound = split(hint)
    inner = typing.get_args(kind)
    if not inner:
        yield kind, bound
    for option in inner[1:] if typing.get_origin(kind) is dict else inner:
        if option is not Ellipsis:
            yield from leaves(option)


def bound_of(kind: Any, name: str) -> Bound | None:
    """The bound of a field of a dataclass, or of the entries that it holds; None: it has none, or several."""
    found = {bound for _, bound in leaves(annotations_of(kind)[name]) if bound is not None}
    return found.pop() if len(found) == 1 else None
