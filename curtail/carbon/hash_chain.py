"""The hash chain of the ledger: whoever changes a record changes every hash after it.

A record's hash is SHA-256 over the hash before it, a line feed, and the record as
canonical JSON with its number and kind. The first one builds on the run's id. What
a chain cannot show is that its end was cut off, or that all of it was made anew:
for that the head must be noted elsewhere, and compared. Pure functions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from curtail.carbon.ledger_columns import Value

FORMAT = "curtail-ledger-1"


@dataclass(frozen=True, slots=True)
class Link:
    """One record with its place in the chain."""

    seq: int  # 1, 2, 3, ...
    kind: str  # of `curtail.carbon.ledger_columns.COLUMNS`
    row: int  # its id among its kind
    record: Mapping[str, Value] | None  # None: the chain names a row that is not there
    hash: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a chain."""

    records: int
    head: str  # the hash of the last record, or what a first one would build on
    problem: str  # the first thing that is wrong; empty: nothing is
    passed: str  # "yes" or "no": was the head that was asked for met on the way; empty: none was asked for


def genesis(run: str) -> str:
    """What the first record builds on."""
    return hashlib.sha256(f"{FORMAT} {run}".encode()).hexdigest()


def canonical(seq: int, kind: str, record: Mapping[str, Value]) -> str:
    """A record as the one text that is hashed: keys sorted, no spaces, floats in their shortest exact form."""
    whole = {**record, "seq": seq, "record": kind}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def following(before: str, seq: int, kind: str, record: Mapping[str, Value]) -> str:
    """The hash of record number `seq` after the hash `before`."""
    return hashlib.sha256(f"{before}\n{canonical(seq, kind, record)}".encode()).hexdigest()


def follow(run: str, links: Iterable[Link], head: str | None = None) -> Finding:
    """Compute the chain anew; stops at the first record that does not fit.

    Args:
        links: in the order in which they are kept.
        head: a hash noted earlier, to be met on the way or at the end.
    """
    before, number = genesis(run), 0
    last: dict[str, int] = {}
    met = head == before
    for link in links:
        number += 1
        problem = _fits(link, number, last.get(link.kind, 0), before)
        if problem:
            return Finding(number - 1, before, problem, _passed(head, met))
        before, last[link.kind] = link.hash, link.row
        met = met or before == head
    return Finding(number, before, "", _passed(head, met))


def _fits(link: Link, number: int, last: int, before: str) -> str:
    what = f"record {number} ({link.kind} {link.row})"
    if link.seq != number:
        return f"record {number} is missing: after record {number - 1} comes {link.seq}"
    if link.record is None:
        return f"{what} is missing"
    if link.row <= last:
        return f"{what} is not in order: it comes after {link.kind} {last}"
    try:
        expected = following(before, number, link.kind, link.record)
    except ValueError:
        return f"{what} holds a number that is not finite"
    if link.hash != expected:
        return f"{what} does not fit its hash{_of(link.record)}"
    return ""


def _of(record: Mapping[str, Value]) -> str:
    words = [f"{name} {record[name]}" for name in ("site", "region", "start_s", "point_s", "entry") if name in record]
    return f" ({', '.join(words)})" if words else ""


def _passed(head: str | None, met: bool) -> str:
    return "" if head is None else "yes" if met else "no"
