"""Costs of a site's starts, stops and exchanges, measured from its ledger rows.

A fold over closed rows, so the same rows give the same costs after a restart.
A start is a `start` spell followed by training; a stop is a `drain` spell followed by
`paused`; an exchange is a `sync` spell between two spells of training. Costs are medians
of the last few; with fewer than three, the run file's figure counts as one more
measurement. Power is learned from measured rows only. Units: seconds of the
controller's clock, W.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from curtail.carbon.accounting import LedgerEntry
from curtail.policy.costs import SiteCosts

LAST = 5
"""Number of latest measurements that count, per kind."""

ENOUGH = 3
"""Number of measurements from which on the run file's figure is not used."""

TOUCH_S = 1e-3
"""Rows with a smaller gap are consecutive; seconds."""

ASSUMED = ("modelled", "constant")
"""Methods of rows whose power is the run file's figure."""

Seconds = tuple[float, ...]
NOTHING: Mapping[str, Seconds] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Spell:
    """Consecutive rows of one phase."""

    phase: str
    t0: float
    t1: float
    joules: float  # of the measured part
    measured_s: float
    after: str  # the phase before it; "": unknown


@dataclass(frozen=True, slots=True)
class Learned:
    """What was measured at one site."""

    spell: Spell | None = None  # the latest, not ended yet
    seconds: Mapping[str, Seconds] = field(default_factory=lambda: NOTHING)  # start, stop, sync -> the last few
    watts: Mapping[str, Seconds] = field(default_factory=lambda: NOTHING)  # phase -> means of the last few spells

    @property
    def starts(self) -> int:
        """Number of measured starts, of the last few."""
        return len(self.seconds.get("start", ()))


def note(learned: Learned, entry: LedgerEntry) -> Learned:
    """The measurements after one more row of the same site."""
    spell = learned.spell
    follows = spell is not None and abs(entry.t0 - spell.t1) <= TOUCH_S
    seconds = entry.t1 - entry.t0
    measured = seconds if entry.method not in ASSUMED else 0.0
    if spell is not None and follows and entry.phase == spell.phase:
        grown = replace(
            spell,
            t1=entry.t1,
            joules=spell.joules + entry.watts * measured,
            measured_s=spell.measured_s + measured,
        )
        return replace(learned, spell=grown)
    before = spell.phase if spell is not None and follows else ""
    following = Spell(entry.phase, entry.t0, entry.t1, entry.watts * measured, measured, before)
    if spell is None:
        return replace(learned, spell=following)
    return replace(_ended(learned, spell, entry.phase if follows else ""), spell=following)


def _ended(learned: Learned, spell: Spell, then: str) -> Learned:
    """A spell has ended, and phase `then` follows ("": unknown)."""
    kind = {
        ("start", "train"): "start",
        ("drain", "paused"): "stop",
        ("sync", "train"): "sync" if spell.after == "train" else "",
    }.get((spell.phase, then), "")
    found = learned
    if kind:
        found = replace(found, seconds=_with(found.seconds, kind, spell.t1 - spell.t0))
    if spell.measured_s > 0:
        found = replace(found, watts=_with(found.watts, spell.phase, spell.joules / spell.measured_s))
    return found


def _with(known: Mapping[str, Seconds], kind: str, value: float) -> Mapping[str, Seconds]:
    return {**known, kind: (*known.get(kind, ()), value)[-LAST:]}


def learn(entries: Iterable[LedgerEntry], known: Mapping[str, Learned] | None = None) -> dict[str, Learned]:
    """The measurements of each site, from rows in the order in which they were written."""
    found = dict(known or {})
    for entry in entries:
        found[entry.site] = note(found.get(entry.site, Learned()), entry)
    return found


def costs(learned: Learned, assumed: SiteCosts) -> SiteCosts:
    """The costs of a site: measured values where there are any, else `assumed`."""

    def seconds(kind: str, prior: float) -> float:
        values = learned.seconds.get(kind, ())
        return statistics.median((*values, prior) if len(values) < ENOUGH else values)

    def watts(phases: tuple[str, ...], prior: float) -> float:
        values = [value for phase in phases for value in learned.watts.get(phase, ())]
        return statistics.median(values) if values else prior

    return SiteCosts(
        start_s=seconds("start", assumed.start_s),
        stop_s=seconds("stop", assumed.stop_s),
        sync_s=seconds("sync", assumed.sync_s),
        train_w=watts(("train",), assumed.train_w),
        idle_w=watts(("hold", "sync", "drain"), assumed.idle_w),
        paused_w=watts(("paused",), assumed.paused_w),
    )
