"""Rounds, versions and regimes of a report, from the store's rows and its event log."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from controller.aggregation.loss import mean_loss, smoothed
from controller.rounds.lifecycle import Member
from controller.store import Transaction
from controller.store.rows import EventRow, MemberRow, RoundRow
from curtail.policy.rules import Regime

_VERSION = re.compile(r"version (\d+) from round ")


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round; members and tokens are those merged, the duration is in wall seconds until the version."""

    round: int
    kind: str
    state: str
    members: tuple[str, ...]
    missing: tuple[str, ...]  # members whose contribution was not merged
    tokens: int
    duration_s: float | None
    version: int | None


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """One merged version."""

    version: int
    at: float | None
    tokens: int  # of all versions up to it
    loss: float | None  # the members' mean loss, weighted by their tokens
    loss_smoothed: float | None  # as the status shows it for the newest version


def regimes(events: Sequence[EventRow], start: float, end: float) -> list[tuple[float, float, str]]:
    """Time spans of the regimes; a restarted controller is PAUSED until it decides.

    If the oldest lines of the log were deleted, the spans begin with the first remaining line.
    """
    pruned = bool(events) and events[0].id > 1
    changes = [] if pruned else [(start, Regime.PAUSED.value)]
    for event in events:
        word = event.text.partition(":")[0]
        if event.kind == "controller":
            changes.append((event.at, Regime.PAUSED.value))
        elif event.kind == "regime" and word in list(Regime):
            changes.append((event.at, word))
    stops = [*(at for at, _ in changes[1:]), *([end] if changes else [])]
    out: list[tuple[float, float, str]] = []
    for (at, regime), stop in zip(changes, stops, strict=True):
        if out and out[-1][2] == regime:
            out[-1] = (out[-1][0], max(stop, out[-1][1]), regime)
        elif stop > at:
            out.append((at, stop, regime))
    return out


def round_figures(tx: Transaction, row: RoundRow, members: list[MemberRow]) -> RoundFigures:
    """One round with the rows of its members."""
    merged = [m for m in members if m.state == Member.MERGED.value]
    made = None if row.version is None else tx.version(row.version)
    return RoundFigures(
        round=row.round,
        kind=row.kind,
        state=row.state,
        members=tuple(m.site for m in merged),
        missing=tuple(m.site for m in members if m not in merged),
        tokens=sum(m.tokens for m in merged),
        duration_s=None if made is None else max(0.0, made.created_wall - row.opened_wall),
        version=row.version,
    )


def version_figures(members: Iterable[MemberRow], events: Sequence[EventRow], span: float) -> list[VersionFigures]:
    """The merged versions, from the members of all rounds; their times are in the log.

    Args: span: of the smoothed loss, in tokens.
    """
    groups: dict[int, list[MemberRow]] = {}
    for member in members:
        if member.state == Member.MERGED.value and member.version is not None:
            groups.setdefault(member.version, []).append(member)
    # the rows of versions and rounds have wall time only; the log has the controller's time, too
    moments = {int(found[1]): e.at for e in events if e.kind == "version" and (found := _VERSION.match(e.text))}
    out: list[VersionFigures] = []
    tokens, last = 0, None
    for number in sorted(groups):
        group = groups[number]
        own, loss = sum(m.tokens for m in group), mean_loss((m.tokens, m.loss_mean) for m in group)
        last = smoothed(last, tokens, loss, own, span)
        tokens += own
        out.append(VersionFigures(number, moments.get(number), tokens, loss, last))
    return out
