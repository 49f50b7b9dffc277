"""Hash chain of the ledger: changing a record changes the hash of every record after it.

A record's hash is the SHA-256 of the previous hash, a line feed, and the record as
canonical JSON with its number and kind. The first record follows a hash of the run's
id. A chain alone cannot show that its end was cut off or that it was rewritten from
the start: for that, note the head elsewhere and compare. Pure functions.
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
    """One record with its position in the chain."""

    seq: int  # 1, 2, 3, ...
    kind: str  # of `curtail.carbon.ledger_columns.COLUMNS`
    row: int  # its id within its kind
    record: Mapping[str, Value] | None  # None: the chain names a row that is missing
    hash: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of verifying a chain."""

    records: int
    head: str  # the hash of the last record, or the genesis hash if there is none
    problem: str  # the first error; empty: none
    passed: str  # "yes" or "no": whether the expected head was found in the chain; empty: none was given


def genesis(run: str) -> str:
    """The hash that the first record follows."""
    return hashlib.sha256(f"{FORMAT} {run}".encode()).hexdigest()


def canonical(seq: int, kind: str, record: Mapping[str, Value]) -> str:
    """A record as canonical JSON for hashing: sorted keys, no spaces, floats in their shortest exact form."""
    whole = {**record, "seq": seq, "record": kind}
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def following(before: str, seq: int, kind: str, record: Mapping[str, Value]) -> str:
    """The hash of record number `seq`, which follows the hash `before`."""
    return hashlib.sha256(f"{before}\n{canonical(seq, kind, record)}".encode()).hexdigest()


def follow(run: str, links: Iterable[Link], head: str | None = None) -> Finding:
    """Recompute the chain; stop at the first record that does not match.

    Args:
        links: in stored order.
        head: a hash noted earlier, which must occur in the chain.
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
        return f"record {number} is missing: record {number - 1} is followed by record {link.seq}"
    if link.record is None:
        return f"{what} is missing"
    if link.row <= last:
        return f"{what} is out of order: it follows {link.kind} {last}"
    try:
        expected = following(before, number, link.kind, link.record)
    except ValueError:
        return f"{what} has a number that is not finite"
    if link.hash != expected:
        return f"{what} does not match its hash{_of(link.record)}"
    return ""


def _of(record: Mapping[str, Value]) -> str:
    words = [f"{name} {record[name]}" for name in ("site", "region", "start_s", "point_s", "entry") if name in record]
    return f" ({', '.join(words)})" if words else ""


def _passed(head: str | None, met: bool) -> str:
    return "" if head is None else "yes" if met else "no"
