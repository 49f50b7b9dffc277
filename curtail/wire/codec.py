"""Messages as JSON, strict in both directions.

An unknown, missing or mistyped field, a number that is not finite, or a value outside of its field's bound is a
`WireError` that names the field. A reader function is built for each type once (`_reader`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from curtail.errors import WireError
from curtail.wire import bounds, limits

Message = TypeVar("Message")

Reader = Callable[[Any], Any]
"""Converts a JSON value to the value of a field. Raises: _Refused."""


def encode(message: Any) -> bytes:
    """`message` (a dataclass of this package) as JSON.

    Raises: WireError: a number is NaN or infinite.
    """
    try:
        return _ENCODER.encode(_plain(message)).encode()
    except ValueError as error:
        raise WireError(f"{type(message).__name__} holds a number that is not finite") from error


def decode(kind: type[Message], body: bytes | str) -> Message:
    """Decode `body` as a message of type `kind`.

    Raises: WireError: no JSON object; a field is unknown, missing, duplicate, mistyped, or out of bounds.
    """
    try:
        # Decode first: json.loads would also accept UTF-16 and UTF-32 bytes.
        text = body if isinstance(body, str) else bytes(body).decode("utf-8")
        value = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{kind.__name__}: the body is no valid JSON") from error
    try:
        return typing.cast(Message, _read_message(kind, value))
    except _Refused as refused:
        raise WireError(f"{kind.__name__}{refused.path}: {refused.fault}") from None


def _plain(message: Any) -> dict[str, Any]:
    kind: Any = type(message)
    return {name: getattr(message, name) for name in bounds.annotations_of(kind)}


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain)
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)


class _Refused(Exception):
    """A value was refused; each outer reader prepends its field to `path`."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault
        self.path = ""


def _read_message(kind: Any, value: Any) -> Any:
    if type(value) is not dict:
        raise _Refused(f"an object is needed, not {_name(value)}")
    readers = _readers(kind)
    if value.keys() != readers.keys():
        strange = sorted(value.keys() - readers.keys())
        if strange:
            raise _Refused(f"unknown field {limits.clean(strange[0], 64)!r}")
        missing = next(name for name in readers if name not in value)
        raise _Refused(f"field {missing!r} is missing")
    found = []
    name = ""
    try:
        for name, read in readers.items():
            found.append(read(value[name]))
    except _Refused as refused:
        refused.path = f".{name}{refused.path}"
        raise
    return kind(*found)


@functools.cache
def _readers(kind: Any) -> dict[str, Reader]:
    return {name: _reader(hint, f"{kind.__name__}.{name}") for name, hint in bounds.annotations_of(kind).items()}


def _reader(hint: Any, where: str) -> Reader:
    """The reader function for the annotated type of the field `where`.

    Raises: TypeError: a number or text has no bound, or JSON cannot represent the type.
    """
    kind, bound = bounds.split(hint)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return functools.partial(_read_message, kind)
    if origin in (types.UnionType, typing.Union):
        return _union_reader({bounds.split(option)[0]: _reader(option, where) for option in inner})
    if origin is tuple:
        return _list_reader(_reader(inner[0], where))
    if origin is dict:
        return _object_reader(_reader(inner[0], where), _reader(inner[1], where))
    if kind in (bool, type(None)):
        return _scalar_reader(kind, lambda value: None)
    if kind not in (int, float, str) or bound is None:
        raise TypeError(f"{where}: {hint} needs a bound, as curtail.wire.bounds has them")
    return _float_reader(bound) if kind is float else _scalar_reader(kind, bound.fault)


def _scalar_reader(kind: type, fault_of: Callable[[Any], str | None]) -> Reader:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise _Refused(f"{kind.__name__} is needed, not {_name(value)}")
        if (fault := fault_of(value)) is not None:
            raise _Refused(fault)
        return value

    return read


def _float_reader(bound: bounds.Bound) -> Reader:
    """Read a float; JSON has one number type, so an integer is accepted."""

    def read(value: Any) -> float:
        if type(value) is not float and type(value) is not int:
            raise _Refused(f"float is needed, not {_name(value)}")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise _Refused("the number is not finite")
        if (fault := bound.fault(number)) is not None:
            raise _Refused(fault)
        return number

    return read


def _union_reader(readers: dict[Any, Reader]) -> Reader:
    """Read a union: null if allowed; else the only option, or the option of the value's type.

    Args: readers: the reader of each option, by its bare type.
    """
    concrete = [kind for kind in readers if kind is not type(None)]
    only = readers[concrete[0]] if len(concrete) == 1 else None
    names = " or ".join(kind.__name__ for kind in concrete)

    def read(value: Any) -> Any:
        reader = readers.get(type(value), only)  # JSON 1 stays an int in int | float
        if reader is None:
            raise _Refused(f"{names} is needed, not {_name(value)}")
        return reader(value)

    return read


def _list_reader(item: Reader) -> Reader:
    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _Refused(f"a list is needed, not {_name(value)}")
        _check_count(value)
        found: list[Any] = []
        try:
            for entry in value:
                found.append(item(entry))
        except _Refused as refused:
            refused.path = f"[{len(found)}]{refused.path}"
            raise
        return tuple(found)

    return read


def _object_reader(key: Reader, item: Reader) -> Reader:
    def read(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise _Refused(f"an object is needed, not {_name(value)}")
        _check_count(value)
        try:
            for name in value:
                key(name)
        except _Refused as refused:
            raise _Refused(f"a key: {refused.fault}") from None
        found = {}
        name = ""
        try:
            for name, entry in value.items():
                found[name] = item(entry)
        except _Refused as refused:
            refused.path = f".{name}{refused.path}"
            raise
        return found

    return read


def _check_count(value: Collection[Any]) -> None:
    if len(value) > limits.MOST_ENTRIES:
        raise _Refused(f"{len(value)} entries are too many, at most {limits.MOST_ENTRIES} are allowed")


def _name(value: Any) -> str:
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(value), type(value).__name__)
