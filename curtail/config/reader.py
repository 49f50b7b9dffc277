"""Reads a section of parsed TOML into its dataclass; checks that keys are known, present, typed and in bounds."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from curtail.config.quantities import EXAMPLES, OneOf, Quantity, WholeOrWord, parse_quantity
from curtail.config.schema import RENAMED, OuterStep
from curtail.errors import ConfigError
from curtail.wire import bounds
from curtail.wire.bounds import LARGEST, Bound, Real, Whole

log = logging.getLogger("curtail.config")

_SECRET = re.compile(r"passw|secret|token|credential|api_?key", re.IGNORECASE)

LARGEST_REAL = 1e15
"""Largest absolute value of a number without a unit and without a bound of its own."""


def section(kind: Any, value: Any, where: str) -> Any:
    """The section of type `kind` that the table `value` holds.

    Raises: ConfigError: names `where` and the key, and what to write instead.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: a section is needed, not {value!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    value = _with_new_names(kind, value, where)
    refuse_unknown(value, list(fields), where, "key")
    out = {}
    for name, hint in bounds.annotations_of(kind).items():
        if name in value:
            out[name] = _value(hint, value[name], f"{where} {name}")
        elif fields[name].default is dataclasses.MISSING:
            bound = bounds.bound_of(kind, name)
            remedy = f'add {name} = "{EXAMPLES[bound.kind]}"' if isinstance(bound, Quantity) else f"add {name} = ..."
            raise ConfigError(f"{where}: key {name} is missing", remedy)
    return kind(**out)


def _with_new_names(kind: Any, value: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The section with each renamed key under its new name, and a warning for each."""
    found = dict(value)
    for old, new in RENAMED.get(kind, {}).items():
        if old not in value:
            continue
        if new in value:
            raise ConfigError(f"{where}: {old} is the old name of {new}, and both are given", f"remove {old}")
        found[new] = found.pop(old)
        log.warning("%s: the key %s is now called %s; release 0.3 will not accept the old name", where, old, new)
    return found


def _value(hint: Any, value: Any, where: str) -> Any:
    """The value of a key, whose field has the annotated type `hint`."""
    kind, bound = bounds.split(_present(hint))
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return section(kind, value, where)
    if inner == (OuterStep, ...):
        return _outer(value, where)
    if origin is tuple:
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            raise ConfigError(f"{where} = {value!r}: a list of texts is needed", 'write for example ["KEY=VALUE"]')
        return tuple(value)
    if origin is Mapping:
        return _options(value, where)
    if kind is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} = {value!r}: true or false is needed")
        return value
    if kind is str and bound is not None:
        return _text(bound, value, where)
    if isinstance(bound, Whole):
        return _whole(bound, value, where)
    if isinstance(bound, Quantity):
        return _within(parse_quantity(bound.kind, value, where), bound, where)
    if isinstance(bound, Real):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where} = {value!r}: a number without a unit is needed")
        return float(_within(value, bound, where))
    raise TypeError(f"{where}: {hint} needs a bound, as curtail.wire.bounds or curtail.config.quantities have them")


def _present(hint: Any) -> Any:
    """The type of a present key: TOML has no null, so None means that the key is absent."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def _text(bound: Bound, value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{where} = {value!r}: a text in quotes is needed")
    if (fault := bound.fault(value)) is not None:
        if isinstance(bound, OneOf):
            raise ConfigError(f"{where} = {value!r} is not known", fault)
        raise ConfigError(f"{where}: {fault}")
    return value


def _whole(bound: Whole, value: Any, where: str) -> int:
    word = bound.word if isinstance(bound, WholeOrWord) else ""
    if isinstance(bound, WholeOrWord) and value == word:
        return bound.stands_for
    if isinstance(value, bool) or not isinstance(value, int):
        words = f', or "{word}",' if word else ""
        raise ConfigError(f"{where} = {value!r}: a whole number without a unit{words} is needed")
    return int(_within(value, bound, where, LARGEST))


def _options(value: Any, where: str) -> Mapping[str, Any]:
    """A plug-in's own table: no secrets, and only values that JSON can represent."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} = {value!r}: a table is needed", 'write for example {zone = "north"}')
    for key, inner in value.items():
        if _SECRET.search(key):
            raise ConfigError(
                f"{where} {key} looks like a secret",
                "run files are kept and shown; let the plug-in read it from the environment or a file",
            )
        if isinstance(inner, Mapping):
            _options(inner, f"{where} {key}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: only texts, finite numbers, true, false, lists and tables can be used") from None
    return dict(value)


def _outer(value: Any, where: str) -> tuple[OuterStep, ...]:
    """The table of outer steps: numbers of sites, from 2 on, each with a rate and a momentum."""
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{where}: a table by number of sites is needed", "write 2 = {lr = 1.0, momentum = 0.0}")
    rows = []
    for sites, row in value.items():
        if not re.fullmatch("[0-9]{1,16}", str(sites)) or int(sites) < 2:
            raise ConfigError(
                f"{where}: {sites!r} is no number of sites",
                "use 2 or more; a sole contributor's weights stay as they are",
            )
        if isinstance(row, Mapping) and "sites" in row:
            raise ConfigError(f"{where} {sites}: unknown key 'sites'", "known here: lr, momentum")
        rows.append(
            section(OuterStep, {"sites": int(sites), **row} if isinstance(row, Mapping) else row, f"{where} {sites}")
        )
    rows.sort(key=lambda row: row.sites)
    if rows[0].sites != 2:
        raise ConfigError(f"{where}: the row for 2 sites is missing", "add 2 = {lr = 1.0, momentum = 0.0}")
    return tuple(rows)


def _within(number: Any, bound: Whole | Real, where: str, largest: float = LARGEST_REAL) -> Any:
    """Check `number` against its bound and against the largest absolute value `largest`."""
    low, high = max(bound.low, -largest), min(bound.high, largest)
    if number != number:
        raise ConfigError(f"{where} is NaN", "write a number")
    if abs(number) > largest:  # not shown: an integer may have thousands of digits
        if number > 0:
            raise ConfigError(f"{where} is too large", f"at most {_said(high)} is allowed")
        raise ConfigError(f"{where} is too small", f"at least {_said(low)} is needed")
    if number < low:
        raise ConfigError(f"{where} = {number:g} is too small", f"at least {low:g} is needed")
    if number > high:
        raise ConfigError(f"{where} = {number:g} is too large", f"at most {high:g} is allowed")
    return number


def _said(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def refuse_unknown(value: Mapping[str, Any], known: list[str], where: str, what: str) -> None:
    """Raises: ConfigError: `value` has a name that is not `known`. Args: what: "key" or "section"."""
    for name in value:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            remedy = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown {what} {name!r}", remedy)
