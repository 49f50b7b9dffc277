"""Messages as JSON, strict in both directions.

An unknown, missing or mistyped field, a number that is not finite, or a value that
`curtail.wire.limits` does not allow is a `WireError` that names the field.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Collection
from typing import Any, TypeVar

from curtail.errors import WireError
from curtail.wire import limits

KEY = limits.Text(256)
"""A key of an object whose keys the contract does not name."""

Message = TypeVar("Message")


def encode(message: Any) -> bytes:
    """`message` (a dataclass of this module) as JSON.

    Raises: WireError: a number is NaN or infinite.
    """
    try:
        return json.dumps(dataclasses.asdict(message), allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise WireError(f"{type(message).__name__} holds a number that is not finite") from error


def decode(kind: type[Message], body: bytes | str) -> Message:
    """The `kind` that `body` holds.

    Raises: WireError: no JSON object, a field is unknown, missing, given twice, mistyped, or not what
        `curtail.wire.limits` allows.
    """
    try:
        # As text: JSON in bytes might also be UTF-16 or UTF-32.
        text = body if isinstance(body, str) else bytes(body).decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{kind.__name__}: the body is no valid JSON") from error
    return typing.cast(Message, _build(kind, value, kind.__name__, None))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _build(kind: Any, value: Any, where: str, rule: limits.Rule | None) -> Any:
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    if origin in (types.UnionType, typing.Union):
        return _build_union(kind, value, where, rule)
    if origin is tuple:
        if not isinstance(value, list):
            raise WireError(f"{where}: a list is needed, not {_name(value)}")
        _check_count(value, where)
        item = typing.get_args(kind)[0]
        return tuple(_build(item, entry, f"{where}[{i}]", rule) for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise WireError(f"{where}: an object is needed, not {_name(value)}")
        _check_count(value, where)
        item = typing.get_args(kind)[1]
        for key in value:
            limits.check(KEY, key, f"{where}: a key")
        return {key: _build(item, entry, f"{where}.{key}", rule) for key, entry in value.items()}
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise WireError(f"{where}: the number is not finite")
        limits.check(rule, number, where)
        return number
    if kind in (int, str, bool) and type(value) is kind:
        limits.check(rule, value, where)
        return value
    raise WireError(f"{where}: {getattr(kind, '__name__', kind)} is needed, not {_name(value)}")


def _check_count(value: Collection[Any], where: str) -> None:
    if len(value) > limits.MOST_ENTRIES:
        raise WireError(f"{where}: {len(value)} entries are too many, at most {limits.MOST_ENTRIES} are allowed")


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise WireError(f"{where}: an object is needed, not {_name(value)}")
    hints = hints_of(kind)
    strange = sorted(set(value) - set(hints))
    if strange:
        raise WireError(f"{where}: unknown field {limits.clean(strange[0], 64)!r}")
    missing = [name for name in hints if name not in value]
    if missing:
        raise WireError(f"{where}: field {missing[0]!r} is missing")
    return kind(
        **{
            name: _build(hint, value[name], f"{where}.{name}", limits.rule_of(kind.__name__, name))
            for name, hint in hints.items()
        }
    )


@functools.cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The fields of a message, in order, each with its type."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _build_union(kind: Any, value: Any, where: str, rule: limits.Rule | None) -> Any:
    options = typing.get_args(kind)
    if value is None and type(None) in options:
        return None
    concrete = [option for option in options if option is not type(None)]
    # An exact type match first: JSON 1 must stay an int in int | float.
    for option in concrete:
        if isinstance(option, type) and type(value) is option:
            return _build(option, value, where, rule)
    if len(concrete) == 1:
        return _build(concrete[0], value, where, rule)
    names = " or ".join(getattr(option, "__name__", str(option)) for option in concrete)
    raise WireError(f"{where}: {names} is needed, not {_name(value)}")


def _name(value: Any) -> str:
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(value), type(value).__name__)
