"""The tables of `curtail report` that come from the ledger's rows: states, methods, changes of state, the chain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from curtail.carbon.accounting import PHASES
from curtail.commands.report.collect.figures import Figures
from curtail.commands.report.collect.ledger import Change, StateFigures
from curtail.plotting.html import NOTHING, decimal, hours, kg, percent, table
from curtail.plotting.svg import text

MOST_CHANGES = 200
"""Rows of the table of changes; the JSON has all."""


def moment(at: float) -> str:
    """A time of the controller's clock, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def latest(shown: int, left: int) -> str:
    """A note about a table that does not show everything."""
    return f'<p class="note">The latest {shown}; {left:,} earlier ones are in the JSON.</p>' if left > 0 else ""


def by_state(figures: Figures) -> str:
    """Every site in every state, and all sites in it."""
    if not figures.states:
        return ""
    rows = [_state(one, one.site, one.region) for one in figures.states]
    for state in PHASES:
        parts = [one for one in figures.states if one.state == state]
        if len(parts) > 1:
            rows.append(_state(_whole(parts), "all", NOTHING))
    heads = ["site", "region", "state", "time", "kWh", "kg", "inside windows", "MCI unknown"]
    return "<h3>By state</h3>" + table(heads, rows, 3)


def _whole(parts: Sequence[StateFigures]) -> StateFigures:
    names = ("seconds", "kwh", "kg", "in_window_kwh", "unknown_kwh")
    return StateFigures("", "", parts[0].state, *(sum(getattr(one, name) for one in parts) for name in names))


def _state(one: StateFigures, site: str, region: str) -> list[str]:
    inside = percent(100.0 * one.in_window_kwh / one.kwh if one.kwh else None)
    unknown = NOTHING if one.unknown_kwh == 0 else f"{decimal(one.unknown_kwh)} kWh"
    return [site, region, one.state, hours(one.seconds), decimal(one.kwh), kg(one.kg), inside, unknown]


def by_method(figures: Figures) -> str:
    """How the energy was found out, for how much of the time, and what was flagged."""
    if not figures.methods:
        return "<p>No energy was drawn.</p>"
    whole = sum(one.kwh for one in figures.methods)
    rows = [
        [
            one.method, decimal(one.kwh), percent(100.0 * one.kwh / whole if whole else None),
            percent(one.coverage_pct), decimal(one.machine_kwh), decimal(one.gpu_kwh), decimal(one.host_kwh),
            hours(one.seconds),
        ]
        for one in figures.methods
    ]  # fmt: skip
    heads = ["method", "kWh", "of all", "covered by samples", "at the machine", "of it GPUs", "of it host", "time"]
    return "<h3>Where the energy comes from</h3>" + table(heads, rows) + _flags(figures)


def _flags(figures: Figures) -> str:
    if not figures.flagged_kwh:
        return "<p>No row carries a flag.</p>"
    told = ", ".join(f"{text(name)} {decimal(kwh)} kWh" for name, kwh in figures.flagged_kwh.items())
    return f"<p>Rows with a flag: {told}.</p>"


def changes(figures: Figures) -> str:
    """Every change of a site's state, with the reason and the reading behind it."""
    shown = figures.changes[-MOST_CHANGES:]
    if not shown:
        return "<p>No site has changed its state yet.</p>"
    heads = ["UTC", "site", "from", "to", "why", "source", "flags", "reading of", "MCI", "threshold"]
    note = latest(len(shown), len(figures.changes) - len(shown))
    return note + table(heads, [_change(one) for one in shown], 8)


def _change(one: Change) -> list[str]:
    read = decimal(one.mci)
    if one.mci_raw is not None and one.mci_raw != one.mci:
        read = f"{read} (said {decimal(one.mci_raw)})"
    return [
        moment(one.at), one.site, one.before or NOTHING, one.after, one.reason or NOTHING, one.source or NOTHING,
        ", ".join(one.flags) or NOTHING, NOTHING if one.point_time is None else moment(one.point_time), read,
        decimal(one.threshold),
    ]  # fmt: skip


def chain(figures: Figures) -> str:
    """The head of the hash chain, and whether it holds."""
    found = figures.chain
    if found.problem:
        return (
            f'<p class="bad">The hash chain does not hold: {text(found.problem)}.'
            f" The {found.records:,} records before that do, up to <code>{text(found.head)}</code>.</p>"
        )
    return (
        f"<p>{found.records:,} records; their hash chain holds. Its head is <code>{text(found.head)}</code>."
        " Compare it with one that was noted elsewhere: a ledger that was made anew as a whole has another.</p>"
    )
