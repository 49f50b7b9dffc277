"""Reading, writing and verifying exported ledger files (CSV or JSON) with their hash chain.

A file holds the records with their hashes and ends with the head of the chain. The same
ledger always gives the same bytes. So a file is verified by reading it, following its
chain and writing it again: a line-by-line comparison finds changes that the chain does
not cover (ISO dates, spaces, the last line). Pure functions of text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any

from curtail.carbon.hash_chain import FORMAT, Finding, Link, follow
from curtail.carbon.ledger_columns import COLUMNS, EDITIONS, Value, header
from curtail.errors import DataError

FORMS = ("csv", "json")
_START = f"# {FORMAT} run "


@dataclass(frozen=True, slots=True)
class Export:
    """The contents of an exported ledger file."""

    run: str
    links: tuple[Link, ...]
    form: str
    kinds: tuple[str, ...] = EDITIONS[0]  # kinds whose columns the file has


def moment(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC; empty if they are out of range."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError, OSError):
        return ""


def write(run: str, links: Iterable[Link], head: str, form: str, kinds: tuple[str, ...] = EDITIONS[0]) -> Iterator[str]:
    """The lines of the file, each with its line feed. `links` must have records, all of these kinds."""
    return _csv(run, links, head, kinds) if form == "csv" else _json(run, links, head)


def _row(link: Link) -> dict[str, Value]:
    """A record with its sequence number, ISO dates and hash, as in both formats."""
    out: dict[str, Value] = {"seq": link.seq, "record": link.kind}
    for column in COLUMNS[link.kind]:
        value = None if link.record is None else link.record.get(column.name)
        if value is None:
            continue
        if column.moment:
            out[column.moment] = moment(float(value))
        out[column.name] = value
    return {**out, "hash": link.hash}


def _csv(run: str, links: Iterable[Link], head: str, kinds: tuple[str, ...]) -> Iterator[str]:
    names, count = header(kinds), 0
    yield _line(names)
    for link in links:
        count += 1
        row = _row(link)
        yield _line([_cell(row.get(name, "")) for name in names])
    yield f"{_START}{run} records {count} head {head}\n"


def _line(cells: Iterable[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _cell(value: Value) -> str:
    return repr(value) if isinstance(value, float) else str(value)


def _json(run: str, links: Iterable[Link], head: str) -> Iterator[str]:
    yield f'{{"format": {json.dumps(FORMAT)}, "run": {json.dumps(run)}, "records": [\n'
    count = 0
    for link in links:
        yield ("" if count == 0 else ",\n") + json.dumps(_row(link), allow_nan=False)
        count += 1
    yield f'\n], "count": {count}, "head": {json.dumps(head)}}}\n'


def read(data: bytes, name: str) -> Export:
    """Parse the export in `data`. Raises: DataError: not an export, or a value of the wrong type."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is damaged: byte {error.start} is not valid UTF-8") from None
    return _read_json(text, name) if text.startswith("{") else _read_csv(text, name)


def _read_csv(text: str, name: str) -> Export:
    body, _, last = text.rstrip("\n").rpartition("\n")
    words = last.removeprefix(_START).split(" ")
    if not last.startswith(_START) or len(words) != 5:
        raise DataError(
            f"{name} does not end with the head of a ledger", "it is damaged, truncated or not a ledger export"
        )
    try:
        rows = list(csv.reader(io.StringIO(body, newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{name} is damaged: {error}") from None
    names = rows[0] if rows else []
    kinds = next((edition for edition in EDITIONS if names == header(edition)), None)
    if kinds is None:
        raise DataError(
            f"line 1 of {name} does not name the columns of a ledger", "it is damaged or not a ledger export"
        )
    links = []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise DataError(f"{name} is damaged: line {number} has {len(row)} columns instead of {len(names)}")
        links.append(_link(dict(zip(names, row, strict=True)), f"line {number} of {name}"))
    return Export(words[0], tuple(links), "csv", kinds)


def _read_json(text: str, name: str) -> Export:
    try:
        found = json.loads(text)
        run, rows = found["run"], found["records"]
        if not isinstance(run, str) or not isinstance(rows, list):
            raise DataError(f"{name} is damaged: it lacks `run` or `records`")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"{name} is damaged: it is not a ledger in JSON") from None
    links = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"record {number} of {name} is not a JSON object")
        links.append(_link({key: _text(value) for key, value in row.items()}, f"record {number} of {name}"))
    return Export(run, tuple(links), "json")


def _text(value: Any) -> str:
    return _cell(value) if isinstance(value, (str, int, float)) else ""


def _link(row: dict[str, str], where: str) -> Link:
    kind = row.get("record", "")
    if kind not in COLUMNS:
        raise DataError(f"{where}: unknown kind of record {kind[:40]!r}")
    try:
        cells = {column.name: (column.kind, row.get(column.name, "")) for column in COLUMNS[kind]}
        record: dict[str, Value] = {name: of(text) for name, (of, text) in cells.items() if text != ""}
        number = record.get(COLUMNS[kind][0].name, 0)
        return Link(int(row.get("seq", "")), kind, int(number), record, row.get("hash", ""))
    except ValueError as error:
        raise DataError(f"{where} is damaged: {error}") from None


def check(data: bytes, name: str, head: str | None = None) -> Finding:
    """Verify the chain of an export, and everything in the file that the chain does not cover.

    Raises: DataError: it cannot be parsed as an export; says where.
    """
    export = read(data, name)
    finding = follow(export.run, export.links, head)
    if finding.problem:
        return finding
    lines = "".join(write(export.run, export.links, finding.head, export.form, export.kinds)).splitlines(keepends=True)
    for number, (written, found) in enumerate(
        zip_longest(lines, data.decode("utf-8").splitlines(keepends=True)), start=1
    ):
        if written != found:
            problem = f"line {number} of {name} does not match its record"
            return Finding(finding.records, finding.head, problem, finding.passed)
    return finding
