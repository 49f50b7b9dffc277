"""Reads the list in a CORE bundle's `core.yaml` without a YAML library.

Decides which YAML is understood: one section `icl_tasks` that is a list of flat
items, whose values are plain words, whole numbers, true and false, quoted
strings and flat lists. The published files use nothing else. Other sections are
skipped. Everything else is refused with its line, because a wrong guess would change
the prompts. `nanochat.core_tasks` interprets the keys.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from curtail.errors import DataError

Scalar = str | int | bool
Item = dict[str, Scalar | list[Scalar]]

SECTION = "icl_tasks"
_REMEDY = "keep to the form of the published file, or fetch it again"
_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'"""
_PLAIN = r"[\w./+-]+(?: [\w./+-]+)*"
_COMMENT = re.compile(rf"{_QUOTED}|(?:^|(?<=\s))#")
_ELEMENT = re.compile(rf" *({_QUOTED}|{_PLAIN}) *(,|$)")
_HEADING = re.compile(r"[A-Za-z_]\w*:( |$)")


def read_core_yaml(text: str, place: str = "core.yaml") -> list[tuple[int, Item]]:
    """The items under `icl_tasks`, each with the line where it begins, from 1.

    Raises: DataError: no such section, an empty one, or a line of another form.
    """
    items: list[tuple[int, Item]] = []
    dash = column = -1  # where the items' dashes stand, and the keys of the present item
    unfilled: list[Scalar] | None = None  # the list of the last key, if its elements follow line by line
    number = 0
    try:
        for number, indent, body in _section(text):
            if body == "-" or body.startswith("- "):
                rest = body[1:].lstrip(" ")
                if unfilled is not None and indent > dash:
                    unfilled.append(_scalar(rest))
                    continue
                if items and indent != dash:
                    raise ValueError("this dash belongs to no list")
                items.append((number, {}))
                dash, column, unfilled = indent, -1, None
                indent, body = indent + len(body) - len(rest), rest
                if not body:
                    continue
            if not items or indent <= dash or column not in (-1, indent):
                raise ValueError("its indentation is not that of a list of flat items")
            column = indent
            unfilled = _add(body, items[-1][1])
    except ValueError as error:
        raise DataError(f"{place}, line {number or 1}: {error}", _REMEDY) from None
    if not items:
        raise DataError(f"{place} lists nothing under {SECTION}", _REMEDY)
    return items


def _section(text: str) -> Iterator[tuple[int, int, str]]:
    """Line number, indentation and content of each line of the section that is not empty."""
    inside = False
    for number, raw in enumerate(text.split("\n"), 1):
        line = _without_comment(raw).rstrip()
        body = line.lstrip(" ")
        if not body or line == "---":
            continue
        if body != line or body.startswith("-"):
            if inside:
                yield number, len(line) - len(body), body
        elif not _HEADING.match(line):
            yield number, 0, line  # the reader refuses it: nothing of an item begins there
        else:
            inside = line == f"{SECTION}:"


def _without_comment(line: str) -> str:
    for found in _COMMENT.finditer(line):
        if found[0] == "#":
            return line[: found.start()]
    return line


def _add(body: str, item: Item) -> list[Scalar] | None:
    """Put `key: value` into the item; returns the list to fill if the value follows on the next lines."""
    found = re.fullmatch(r"(\w+):(?: +(.*))?", body)
    if not found:
        raise ValueError(f"{body!r} is not of the form `key: value`")
    key, value = found[1], found[2]
    if key in item:
        raise ValueError(f"the key {key!r} is there twice")
    if not value:
        empty: list[Scalar] = []
        item[key] = empty
        return empty
    item[key] = _elements(value[1:-1]) if value[0] == "[" and value[-1] == "]" else _scalar(value)
    return None


def _elements(inner: str) -> list[Scalar]:
    values: list[Scalar] = []
    at = 0
    while at < len(inner):
        found = _ELEMENT.match(inner, at)
        if not found:
            raise ValueError(f"[{inner}] is not a flat list")
        values.append(_scalar(found[1]))
        at = found.end()
    return values


def _scalar(text: str) -> Scalar:
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(_QUOTED, text):
        return _unquoted(text)
    if re.fullmatch(_PLAIN, text):
        return text
    raise ValueError(f"{text!r} is neither a word, nor a whole number, nor a quoted string")


def _unquoted(text: str) -> str:
    if text[0] == "'":
        return text[1:-1].replace("''", "'")
    try:
        return str(json.loads(text))  # has the common escapes of YAML, and refuses the rare ones
    except ValueError:
        raise ValueError(f"{text} has an unknown escape") from None
