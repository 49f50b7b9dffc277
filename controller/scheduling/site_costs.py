"""What a site's starts, stops and exchanges have cost so far, learned from the rows of its ledger.

A fold over closed rows, so that the same rows give the same costs after a restart.
A start is a `start` spell that ends in training, a stop a `drain` spell that ends in
standing by, an exchange a `sync` spell between two spells of training. Medians of
the last few; while there are fewer than three, what the run file assumes counts as
one more. Power is learned from rows that were measured. Units: seconds of the
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
"""Measurements of a kind that count."""

ENOUGH = 3
"""Measurements from which on nothing is assumed any more."""

TOUCH_S = 1e-3
"""Rows closer than this follow upon each other."""

ASSUMED = ("modelled", "constant")
"""Methods of rows whose watts are the run file's."""

Seconds = tuple[float, ...]
NOTHING: Mapping[str, Seconds] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Spell:
    """Rows of one phase on end."""

    phase: str
    t0: float
    t1: float
    joules: float  # of the measured part
    measured_s: float
    after: str  # the phase before it, "" if that is not known


@dataclass(frozen=True, slots=True)
class Learned:
    """What is known of one site."""

    spell: Spell | None = None  # that still grows
    seconds: Mapping[str, Seconds] = field(default_factory=lambda: NOTHING)  # start, stop, sync -> the last few
    watts: Mapping[str, Seconds] = field(default_factory=lambda: NOTHING)  # phase -> means of the last few spells

    @property
    def starts(self) -> int:
        """How many starts were measured, of the last few."""
        return len(self.seconds.get("start", ()))


def note(learned: Learned, entry: LedgerEntry) -> Learned:
    """What is known after one more row of the same site."""
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
    """A spell is over, and `then` follows ("": nobody knows what)."""
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
    """What is known of each site, from rows in the order in which they were written."""
    found = dict(known or {})
    for entry in entries:
        found[entry.site] = note(found.get(entry.site, Learned()), entry)
    return found


def costs(learned: Learned, assumed: SiteCosts) -> SiteCosts:
    """The costs of a site: measured where they were, else `assumed`."""

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
