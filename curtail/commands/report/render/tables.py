"""Tables of the report from the ledger's rows: states, methods, changes of state, hash chain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from curtail.carbon.accounting import PHASES
from curtail.commands.report.collect.figures import Figures
from curtail.commands.report.collect.ledger import Change, StateFigures
from curtail.plotting.html import NOTHING, decimal, hours, kg, percent, table
from curtail.plotting.svg import text

MOST_CHANGES = 200
"""Largest number of rows of the table of changes; the JSON has all rows."""


def moment(at: float) -> str:
    """A time of the controller's clock for display, UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def latest(shown: int, left: int) -> str:
    """The note above a table that does not show all rows."""
    return f'<p class="note">The latest {shown}; {left:,} earlier ones are in the JSON.</p>' if left > 0 else ""


def by_state(figures: Figures) -> str:
    """One row per site and state, and sums over all sites per state."""
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
    """Energy by measurement method with its coverage, and the flagged energy."""
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
    heads = ["method", "kWh", "share", "covered by samples", "machine kWh", "GPU kWh", "host kWh", "time"]
    return "<h3>How the energy was measured</h3>" + table(heads, rows) + _flags(figures)


def _flags(figures: Figures) -> str:
    if not figures.flagged_kwh:
        return "<p>No row has a flag.</p>"
    told = ", ".join(f"{text(name)} {decimal(kwh)} kWh" for name, kwh in figures.flagged_kwh.items())
    return f"<p>Rows with a flag: {told}.</p>"


def changes(figures: Figures) -> str:
    """Every change of a site's state, with its reason and reading."""
    shown = figures.changes[-MOST_CHANGES:]
    if not shown:
        return "<p>No site has changed its state yet.</p>"
    heads = ["UTC", "site", "from", "to", "reason", "source", "flags", "time of reading", "MCI", "threshold"]
    note = latest(len(shown), len(figures.changes) - len(shown))
    return note + table(heads, [_change(one) for one in shown], 8)


def _change(one: Change) -> list[str]:
    read = decimal(one.mci)
    if one.mci_raw is not None and one.mci_raw != one.mci:
        read = f"{read} (source: {decimal(one.mci_raw)})"
    return [
        moment(one.at), one.site, one.before or NOTHING, one.after, one.reason or NOTHING, one.source or NOTHING,
        ", ".join(one.flags) or NOTHING, NOTHING if one.point_time is None else moment(one.point_time), read,
        decimal(one.threshold),
    ]  # fmt: skip


def chain(figures: Figures) -> str:
    """The head of the hash chain, and whether the chain is valid."""
    found = figures.chain
    if found.problem:
        return (
            f'<p class="bad">The hash chain is not valid: {text(found.problem)}.'
            f" The {found.records:,} records before that are valid, up to <code>{text(found.head)}</code>.</p>"
        )
    return (
        f"<p>{found.records:,} records; their hash chain is valid. Its head is <code>{text(found.head)}</code>."
        " Compare it with a head noted elsewhere: a ledger that was rewritten as a whole has another head.</p>"
    )
