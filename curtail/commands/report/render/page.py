"""HTML page of the report: its sections and their order."""

from __future__ import annotations

from curtail.commands.report.collect.figures import Figures
from curtail.commands.report.collect.rounds import RoundFigures
from curtail.commands.report.render import plots, tables
from curtail.commands.report.render.carbon import carbon
from curtail.commands.report.render.tables import latest, moment
from curtail.plotting.figure import legend
from curtail.plotting.html import NOTHING, bullets, decimal, document, hours, kg, pair, percent, table, tiles
from curtail.plotting.svg import text

MOST_DECISIONS = 200
MOST_ROUNDS = 100
"""Largest numbers of rows of these tables; the JSON has all rows."""


def page(figures: Figures, version: str) -> str:
    """The whole file; `version` is curtail's version."""
    sections = [
        _head(figures), carbon(figures), _signal(figures), _regime(figures), _energy(figures), _rounds(figures),
        _ledger(figures), _decisions(figures), _meaning(figures),
    ]  # fmt: skip
    return document(f"{figures.name}: report", sections, version)


def _head(figures: Figures) -> str:
    sums = figures.sums
    part = 100 * figures.tokens / figures.token_budget if figures.token_budget else 100.0
    shown = [
        ("kg attributed", kg(sums.kg_attributed)),
        ("kg always on", kg(figures.kg_always_on)),
        ("kWh attributed", decimal(sums.attributed_kwh)),
        ("inside windows", percent(sums.curtailed_pct)),
        ("tokens", f"{figures.tokens:,}"),
        ("versions", f"{figures.version:,}"),
    ]
    return (
        f"<h1>{text(figures.name)}</h1>"
        f'<p class="faint">Run {text(figures.run)}, {text(figures.state)}. {moment(figures.started)} to'
        f" {moment(figures.now)} UTC ({hours(figures.now - figures.started)}), in the time of its signal."
        f" {figures.tokens:,} of {figures.token_budget:,} tokens ({part:.1f} %), {figures.version:,} versions"
        f" from {figures.rounds_merged:,} rounds.</p>" + tiles(shown)
    )


def _signal(figures: Figures) -> str:
    parts = ["<h2>Signal and training</h2>", legend(plots.SIGNAL_KEYS)]
    for region in figures.regions:
        parts.append(f"<h3>{text(region.region)}</h3>{plots.signal(figures, region).inline()}")
    rows = [
        [
            region.region, decimal(region.threshold), f"{region.readings:,}", f"{region.unknown_readings:,}",
            decimal(region.lowest), decimal(region.highest), hours(region.curtailed_s),
            decimal(region.sums.attributed_kwh), kg(region.sums.kg_attributed), kg(region.sums.kg_reserved),
            percent(region.sums.curtailed_pct), percent(region.curtailed_pct_with_standing),
        ]
        for region in figures.regions
    ]  # fmt: skip
    heads = [
        "region", "threshold", "readings", "unknown", "lowest", "highest", "curtailed for", "kWh attributed",
        "kg attributed", "kg reserved", "inside windows", "with standing",
    ]  # fmt: skip
    return "".join(parts) + _loss(figures) + table(heads, rows)


def _loss(figures: Figures) -> str:
    none = (
        "No merged version has both a loss and a time in the log."
        if figures.versions
        else "No version has been merged yet."
    )
    plot, last = plots.loss(figures), figures.versions[-1].loss_smoothed if figures.versions else None
    smooth = f" Smoothed over the last steps, as in curtail status: {last:.3f}." if last is not None else ""
    return (
        "<h3>Loss</h3><p class='note'>Mean training loss of each merged version, with members weighted by tokens."
        f"{smooth}</p>" + (f"<p>{none}</p>" if plot is None else plot.inline())
    )


def _regime(figures: Figures) -> str:
    return "<h2>Regime</h2>" + plots.regime(figures).inline()


def _energy(figures: Figures) -> str:
    if not figures.sites:
        return "<h2>Energy</h2><p>No site has joined yet.</p>"
    plot = plots.energy(figures)
    rows = [
        [
            site.site, site.region, f"{site.tokens:,}", hours(site.sums.train_s), decimal(site.sums.attributed_kwh),
            decimal(site.sums.standing_kwh), kg(site.sums.kg_attributed), kg(site.sums.kg_reserved),
            percent(site.sums.curtailed_pct), percent(site.curtailed_pct_with_standing),
        ]
        for site in figures.sites
    ]  # fmt: skip
    heads = ["site", "region", "tokens", "trained", "kWh attributed", "kWh standing", "kg attributed", "kg reserved",
             "inside windows", "with standing"]  # fmt: skip
    return (
        "<h2>Energy</h2>" + (plot.inline() if plot else "<p>No energy has been booked yet.</p>")
        + table(heads, rows, 2) + tables.by_state(figures)
    )  # fmt: skip


def _rounds(figures: Figures) -> str:
    if not figures.rounds:
        return "<h2>Rounds</h2><p>No round has been opened yet.</p>"
    shown = figures.rounds[-MOST_ROUNDS:]
    note = latest(len(shown), len(figures.rounds) - len(shown))
    heads = ["round", "kind", "state", "members", "tokens", "duration", "version"]
    drawn = pair([f"<h3>{text(plot.title)}</h3>{plot.inline()}" for plot in plots.rounds(figures)])
    return "<h2>Rounds</h2>" + drawn + note + table(heads, [_round(row) for row in shown], 4)


def _round(row: RoundFigures) -> list[str]:
    missing = f" (no contribution from {', '.join(row.missing)})" if row.missing else ""
    return [
        str(row.round), row.kind, row.state, (", ".join(row.members) or NOTHING) + missing, f"{row.tokens:,}",
        NOTHING if row.duration_s is None else f"{row.duration_s:,.1f} s",
        NOTHING if row.version is None else str(row.version),
    ]  # fmt: skip


def _ledger(figures: Figures) -> str:
    return (
        "<h2>Ledger</h2>" + tables.by_method(figures)
        + f"<h3>Hash chain</h3><p>{figures.rows:,} energy rows.</p>" + tables.chain(figures)
    )  # fmt: skip


def _decisions(figures: Figures) -> str:
    shown = figures.decisions[-MOST_DECISIONS:]
    rows = [[moment(at), kind, words] for at, kind, words in shown]
    note = latest(len(shown), len(figures.decisions) - len(shown))
    return (
        "<h2>Decisions</h2><h3>Changes of state with their readings</h3>" + tables.changes(figures)
        + "<h3>Log</h3>" + note + table(["UTC", "kind", "event"], rows, 3)
    )  # fmt: skip


def _meaning(figures: Figures) -> str:
    items = [
        "Carbon figures are marginal and consequential: the additional emissions of the grid because of this run."
        " They are not Scope 2 figures, neither location-based nor market-based, and must not be added to them.",
        "The MCI is held from one reading to the next and never interpolated."
        " It is the value known at the decision, except where a figure says settled.",
        "Attributed energy is caused by training (start, train, sync, hold, drain); standing energy is drawn while"
        " paused or switched off; reserved is the sum of both. Except for the three boundaries, energy and carbon are"
        " those of the ledger, with each region's PUE, as in curtail status.",
        "Always on is the same training time on all sites without waiting, at modelled power.",
        "Windows are drawn with the present thresholds of the run file; the shares inside windows are the ledger's.",
        "If a curve has more points than a picture can show, each time span is drawn by its first, last, lowest and"
        " highest point.",
    ]
    return "<h2>How to read these figures</h2>" + bullets(items)
