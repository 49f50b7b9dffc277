"""The page of `curtail report`: one HTML file that loads nothing and runs nothing.

It is well-formed XML too, follows light and dark, and prints on white. Whatever
comes from outside, such as names of sites, is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from controller.accounts import PHASES
from curtail import reportplots as plots
from curtail.reportenergy import Sums
from curtail.reportfigures import Figures, RoundFigures
from curtail.svg import text

MOST_ROUNDS = 100
"""Rows of the table of rounds; the JSON has all."""
NOTHING = "-"

_LIGHT = """--paper:#fff;--ink:#1c2127;--faint:#5b6570;--grid:#e2e5e9;--rail:#eef0f2;--window:#d3efd9;
--mci:#33404d;--threshold:#c2410c;--train:#15803d;--local:#d29b13;--federated:#15803d;--paused:#b4bcc4;
--loss:#1d4ed8;--kg:#15803d;--reserved:#0e7490;--baseline:#b91c1c;--start:#7c3aed;--sync:#0e7490;--hold:#d29b13;
--drain:#be185d"""
_DARK = """--paper:#14181c;--ink:#e4e8ec;--faint:#9aa5b0;--grid:#2c333a;--rail:#232a30;--window:#1d3d27;
--mci:#c9d3dc;--threshold:#fb923c;--train:#4ade80;--local:#eab308;--federated:#4ade80;--paused:#5b6570;
--loss:#7aa2ff;--kg:#4ade80;--reserved:#22d3ee;--baseline:#f87171;--start:#a78bfa;--sync:#22d3ee;--hold:#eab308;
--drain:#f472b6"""

STYLE = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
@media print{{:root{{color-scheme:light;{_LIGHT}}}body{{max-width:none;margin:0}}svg,table tr{{break-inside:avoid}}}}
*{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
body{{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2em auto;
padding:0 1em}}
h1{{font-size:1.6em;margin:0}}h2{{font-size:1.2em;margin:2em 0 .3em}}h3{{font-size:1em;margin:1em 0 0}}
p{{margin:.3em 0}}.faint,.small{{color:var(--faint);fill:var(--faint)}}.note{{color:var(--faint);font-size:.9em}}
svg{{display:block;width:100%;height:auto}}svg text{{font:11px system-ui,sans-serif;fill:var(--ink)}}
svg .small{{font-size:10.5px;fill:var(--faint);paint-order:stroke;stroke:var(--paper);stroke-width:3px}}
.pair{{display:flex;gap:1em}}.pair svg{{flex:1 1 0;min-width:0}}
.wide{{overflow-x:auto}}table{{border-collapse:collapse;margin:.5em 0;font-variant-numeric:tabular-nums;width:100%}}
th,td{{text-align:left;padding:.2em .8em .2em 0;border-bottom:1px solid var(--grid);vertical-align:top}}
th{{color:var(--faint);font-weight:600}}td.n,th.n{{text-align:right}}td.n{{white-space:nowrap}}td{{overflow-wrap:anywhere;min-width:3em}}
.wide{{font-size:.9em}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(8em,1fr));gap:.6em;margin:1em 0}}
.tile{{border:1px solid var(--grid);border-radius:6px;padding:.5em .8em;font-size:.85em}}
.tile b{{display:block;font-size:1.4em;white-space:nowrap}}.legend{{font-size:.85em}}
.key{{margin-right:1.2em;white-space:nowrap}}
.key i{{display:inline-block;width:.9em;height:.9em;margin-right:.35em;vertical-align:-.1em;border-radius:2px}}
.grid{{stroke:var(--grid);stroke-width:1}}.curve{{fill:none;stroke-width:1.6;stroke-linejoin:round}}
.mci{{stroke:var(--mci);stroke-width:1.2}}.dense{{stroke-width:.6}}.loss{{stroke:var(--loss)}}.loss-dot{{fill:var(--loss)}}
.kg{{stroke:var(--kg);background:var(--kg)}}.reserved{{stroke:var(--reserved);background:var(--reserved)}}
.baseline{{stroke:var(--baseline);background:var(--baseline)}}.rounds{{stroke:var(--loss)}}.round{{fill:var(--loss)}}
.threshold{{stroke:var(--threshold);background:var(--threshold);stroke-dasharray:5 4}}
.window{{fill:var(--window);background:var(--window)}}.rail{{fill:var(--rail)}}
.train,.phase-train{{fill:var(--train);background:var(--train)}}
.regime-paused,.phase-paused{{fill:var(--paused);background:var(--paused)}}
.regime-local{{fill:var(--local);background:var(--local)}}
.regime-federated{{fill:var(--federated);background:var(--federated)}}
.phase-start{{fill:var(--start);background:var(--start)}}.phase-sync{{fill:var(--sync);background:var(--sync)}}
.phase-hold{{fill:var(--hold);background:var(--hold)}}.phase-drain{{fill:var(--drain);background:var(--drain)}}
"""


def page(figures: Figures, version: str) -> str:
    """The whole file; `version` is that of this program."""
    sections = [
        _head(figures), _carbon(figures), _signal(figures), _training(figures), _energy(figures), _rounds(figures),
        _decisions(figures), _meaning(figures),
    ]  # fmt: skip
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"/>'
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>{text(figures.name)}: report</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + f'\n<p class="note">Made by curtail {text(version)}.</p></body></html>\n'
    )


# -- sections ----------------------------------------------------------------


def _head(figures: Figures) -> str:
    sums = figures.sums
    part = 100 * figures.tokens / figures.token_budget if figures.token_budget else 100.0
    tiles = [
        ("kg attributed", _kg(sums.kg_attributed)),
        ("kg always on", _kg(figures.kg_always_on)),
        ("kWh attributed", _number(sums.attributed_kwh)),
        ("of it curtailed", _percent(sums.curtailed_pct)),
        ("tokens", f"{figures.tokens:,}"),
        ("versions", f"{figures.version:,}"),
    ]
    return (
        f"<h1>{text(figures.name)}</h1>"
        f'<p class="faint">Run {text(figures.run)}, {text(figures.state)}. {_moment(figures.started)} to'
        f" {_moment(figures.now)} UTC ({_hours(figures.now - figures.started)}), the clock of its signal."
        f" {figures.tokens:,} of {figures.token_budget:,} tokens ({part:.1f} %), {figures.version:,} versions"
        f" from {figures.rounds_merged:,} rounds.</p>"
        '<div class="tiles">'
        + "".join(f'<div class="tile">{text(name)}<b>{text(value)}</b></div>' for name, value in tiles)
        + "</div>"
    )


def _carbon(figures: Figures) -> str:
    sums = figures.sums
    plot = plots.carbon_plot(figures)
    if not plot:
        return "<h2>Carbon</h2><p>Nothing has been booked yet: no site has joined, or none has drawn power.</p>"
    names = [("kg", "attributed"), ("reserved", "reserved: attributed and standing")]
    names += [("baseline", "always on")] if figures.kg_baseline else []
    rows = [
        ["attributed", _number(sums.attributed_kwh), _kg(sums.kg_attributed), _percent(sums.curtailed_pct)],
        ["standing", _number(sums.standing_kwh), _kg(sums.kg_standing), NOTHING],
        ["reserved: both", _number(sums.attributed_kwh + sums.standing_kwh), _kg(sums.kg_reserved),
         _percent(figures.curtailed_pct_with_standing)],
        ["always on, for comparison", NOTHING, _kg(figures.kg_always_on), NOTHING],
    ]  # fmt: skip
    return (
        "<h2>Carbon</h2>" + plots.legend(names) + plot + _table(["boundary", "kWh", "kgCO2", "curtailed"], rows)
        + f"<p>{_unknown(sums)}</p><p>{_method(figures)}</p>"
    )  # fmt: skip


def _unknown(sums: Sums) -> str:
    if sums.unknown_kwh == 0:
        return "The MCI was known for all energy."
    return f"{_number(sums.unknown_kwh)} kWh were drawn while the MCI was unknown; they are in no kg above."


def _method(figures: Figures) -> str:
    whole = sum(figures.kwh_by_method.values())
    if whole == 0:
        return "No energy was drawn."
    shares = [
        f"{text(name)} {100 * kwh / whole:.1f} % ({_number(kwh)} kWh)" for name, kwh in figures.kwh_by_method.items()
    ]
    return f"Where the power comes from: {', '.join(shares)}. {figures.rows:,} rows of the ledger."


def _signal(figures: Figures) -> str:
    keys = [("window", "curtailed"), ("threshold", "threshold"), ("train", "a site trains")]
    parts = ["<h2>Signal and training</h2>", plots.legend(keys)]
    for region in figures.regions:
        parts.append(f"<h3>{text(region.region)}</h3>{plots.region_plot(figures, region)}")
    rows = [
        [
            region.region, _number(region.threshold), f"{region.readings:,}", f"{region.unknown_readings:,}",
            _number(region.lowest), _number(region.highest), _hours(region.curtailed_s),
            _number(region.sums.attributed_kwh), _kg(region.sums.kg_attributed), _kg(region.sums.kg_reserved),
            _percent(region.sums.curtailed_pct),
        ]
        for region in figures.regions
    ]  # fmt: skip
    heads = [
        "region", "threshold", "readings", "unknown", "lowest", "highest", "curtailed for", "kWh attributed",
        "kg attributed", "kg reserved", "curtailed",
    ]  # fmt: skip
    return "".join(parts) + _table(heads, rows)


def _training(figures: Figures) -> str:
    regimes = [(f"regime-{name.lower()}", f"{name} {_hours(s)}") for name, s in figures.regime_seconds.items()]
    none = (
        "No merged version has a loss and a moment in the log."
        if figures.versions
        else "No version has been merged yet."
    )
    loss = plots.loss_plot(figures) or f"<p>{none}</p>"
    return (
        "<h2>Regime</h2>" + plots.legend(regimes) + plots.regime_plot(figures)
        + "<h2>Loss</h2><p class='note'>Mean training loss of each merged version, its members weighted by tokens.</p>"
        + loss
    )  # fmt: skip


def _energy(figures: Figures) -> str:
    plot = plots.energy_plot(figures)
    if not figures.sites:
        return "<h2>Energy</h2><p>No site has joined yet.</p>"
    phases = plots.legend([(f"phase-{phase}", phase) for phase in PHASES]) if plot else ""
    rows = [
        [
            site.site, site.region, f"{site.tokens:,}", _hours(site.sums.train_s),
            *(_number(site.kwh_by_phase.get(phase, 0.0)) for phase in PHASES),
            _kg(site.sums.kg_attributed), _kg(site.sums.kg_reserved), _percent(site.sums.curtailed_pct),
        ]
        for site in figures.sites
    ]  # fmt: skip
    heads = ["site", "region", "tokens", "trained", *(f"{phase} kWh" for phase in PHASES),
             "kg attributed", "kg reserved", "curtailed"]  # fmt: skip
    return "<h2>Energy</h2>" + phases + (plot or "<p>No energy has been booked yet.</p>") + _table(heads, rows, 2)


def _rounds(figures: Figures) -> str:
    if not figures.rounds:
        return "<h2>Rounds</h2><p>No round has been opened yet.</p>"
    shown = figures.rounds[-MOST_ROUNDS:]
    left = len(figures.rounds) - len(shown)
    note = f'<p class="note">The latest {len(shown)}; {left:,} earlier ones are in the JSON.</p>' if left else ""
    heads = ["round", "kind", "state", "members", "tokens", "duration", "version"]
    return "<h2>Rounds</h2>" + plots.rounds_plot(figures) + note + _table(heads, [_round(row) for row in shown], 4)


def _round(row: RoundFigures) -> list[str]:
    missing = f" (nothing from {', '.join(row.missing)})" if row.missing else ""
    return [
        str(row.round), row.kind, row.state, (", ".join(row.members) or NOTHING) + missing, f"{row.tokens:,}",
        NOTHING if row.duration_s is None else f"{row.duration_s:,.1f} s",
        NOTHING if row.version is None else str(row.version),
    ]  # fmt: skip


def _decisions(figures: Figures) -> str:
    rows = [[_moment(at), kind, words] for at, kind, words in figures.decisions]
    note = f'<p class="note">The latest {len(rows)}, each with its reason.</p>'
    return "<h2>Decisions</h2>" + note + _table(["UTC", "kind", "what"], rows, 3)


def _meaning(figures: Figures) -> str:
    items = [
        "Carbon figures are marginal and consequential: what the grid emitted more because of this run."
        " They are not a Scope 2 figure, neither location-based nor market-based, and must not be added to one.",
        "The MCI is held from one reading to the next and never interpolated."
        " It is the value that was known when it was decided, not one that was settled later.",
        "Attributed is what training causes (start, train, sync, hold, drain); standing is drawn while paused;"
        " reserved is both. Figures of the machine are multiplied by the region's PUE.",
        "Always on is the same training time done at once on all sites, at modelled power, whatever the grids emitted.",
        "Windows are drawn by the thresholds of the run file as it is now; the curtailed share is that of the ledger.",
        "Missing: embodied carbon, the network and the controller's own power (a full boundary), other comparisons"
        " than always on, settled MCI, error bars, and which devices a measured figure covers.",
        "Where a curve has more points than a picture, stretches are drawn by their first, last, lowest and highest.",
    ]
    return "<h2>What this is and is not</h2><ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


# -- words -------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table; its first `words` columns hold words, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ["" if index < words else ' class="n"' for index in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{k}>{text(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(heads, "th")}</thead><tbody>{body}</tbody></table></div>'


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _kg(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f} %"
