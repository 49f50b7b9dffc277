"""Carbon section of the report: boundaries, counterfactuals, settlements, sensitivity."""

from __future__ import annotations

from curtail.commands.report.collect.carbon import SettledFigures
from curtail.commands.report.collect.figures import Figures
from curtail.commands.report.render import plots
from curtail.plotting.html import NOTHING, decimal, kg, percent, table

BOUNDARIES = ("attributed", "reserved", "full")


def carbon(figures: Figures) -> str:
    """The whole section."""
    plot = plots.carbon(figures)
    if plot is None:
        return "<h2>Carbon</h2><p>Nothing has been booked yet: no site has joined, or none has drawn power.</p>"
    return (
        "<h2>Carbon</h2>" + plot.inline() + boundaries(figures) + comparisons(figures)
        + settled(figures) + sensitivity(figures)
    )  # fmt: skip


def boundaries(figures: Figures) -> str:
    """The three boundaries side by side, and what the wider ones add."""
    carbon = figures.carbon
    found, sci = carbon.boundaries, carbon.kg_per_1e9_tokens
    rows = [
        ["kWh", decimal(found.attributed_kwh), decimal(found.reserved_kwh), decimal(carbon.full_kwh)],
        ["kgCO2", kg(found.attributed_kg), kg(found.reserved_kg), kg(carbon.full_kg)],
        *([["kgCO2, settled", *(kg(carbon.settled_kg[name]) for name in BOUNDARIES)]] if carbon.settled else []),
        ["kgCO2 per 1e9 tokens", *(kg(sci[name]) for name in BOUNDARIES)],
        ["energy inside windows", percent(figures.sums.curtailed_pct), percent(figures.curtailed_pct_with_standing),
         NOTHING],
    ]  # fmt: skip
    added = [
        ["standing energy (paused or switched off)", decimal(found.reserved_kwh - found.attributed_kwh),
         kg(found.reserved_kg - found.attributed_kg)],
        ["PUE", decimal(found.pue_kwh), kg(found.pue_kg)],
        ["network", decimal(found.network_kwh), kg(found.network_kg)],
        ["controller", decimal(found.controller_kwh), kg(found.controller_kg)],
        [f"embodied carbon, {found.site_hours:,.2f} site-hours", NOTHING, kg(found.embodied_kg)],
    ]  # fmt: skip
    return (
        "<h3>Three boundaries</h3>" + table(["", "attributed", "reserved", "full"], rows)
        + '<p class="note">Attributed: energy that the machines drew for the job (start, train, sync, hold, drain).'
        " Reserved: plus energy drawn while paused or switched off. Full: plus the following rows. Its kgCO2 per 1e9"
        " tokens is the SCI of ISO/IEC 21031. All tables below count energy as the ledger does, with PUE.</p>"
        + table(["the wider boundaries add", "kWh", "kgCO2"], added) + f"<p>{_unknown(figures)}</p>"
    )  # fmt: skip


def _unknown(figures: Figures) -> str:
    if figures.sums.unknown_kwh == 0:
        return "The MCI was known for all energy."
    return f"{decimal(figures.sums.unknown_kwh)} kWh were drawn while the MCI was unknown; no kg above includes them."


def comparisons(figures: Figures) -> str:
    """The counterfactuals: carbon of the same training under other schedules."""
    found, run = figures.carbon.counterfactuals, figures.sums.kg_attributed
    if not found.alone:
        return "<h3>Counterfactuals</h3><p>Nothing was trained yet, or a site's region has no reading.</p>"
    rows = [["this run, attributed", kg(run), NOTHING, NOTHING, ""]]
    for one in found.alone:
        best = " (the best single site)" if found.best == one and len(found.alone) > 1 else ""
        known = (
            ""
            if one.known_share >= 1
            else f"readings for {100 * one.known_share:.0f} % of the time, then the last one holds"
        )
        name = f"{one.site} alone, without waiting{best}"
        rows.append([name, kg(one.kg), f"{one.hours:,.2f}", _part(run, one.kg), known])
    rows += [
        ["all sites together, without waiting", kg(found.unconstrained_kg),
         f"{found.unconstrained_h or 0.0:,.2f}", _part(run, found.unconstrained_kg), ""],
        ["always on: equal shares per site, with the power of the run file", kg(figures.kg_always_on), NOTHING,
         _part(run, figures.kg_always_on), ""],
        ["lower bound: the best possible schedule in the run's own time", kg(found.oracle_kg), NOTHING,
         _part(run, found.oracle_kg), ""],
    ]  # fmt: skip
    plot = plots.comparison(figures)
    told = NOTHING if found.efficiency_pct is None else f"{found.efficiency_pct:.1f} %"
    return (
        "<h3>Counterfactuals: the same training under other schedules</h3>" + ("" if plot is None else plot.inline())
        + table(["", "kgCO2", "hours", "this run is", "note"], rows)
        + f"<p>Efficiency: the lower bound is {told} of the run's emissions.</p>"
        '<p class="note">Every site trains at its power and speed in the run. Starts, exchanges and standing energy are'
        " not counted, so these are low estimates. With PUE.</p>"
    )  # fmt: skip


def _part(run: float, other: float | None) -> str:
    return NOTHING if not other else f"{100 * run / other:.0f} % of it"


def settled(figures: Figures) -> str:
    """Carbon with the MCI at the decision, and with the settled MCI."""
    if not figures.carbon.settled:
        none = "No row has been settled yet: all carbon figures use the MCI that was known at the decision."
        return f"<h3>Settled</h3><p>{none}</p>"
    rows = [_settled(one) for one in figures.carbon.settled]
    heads = ["basis", "source", "rows", "revised", "kWh", "kWh left", "attributed: decided", "settled",
             "reserved: decided", "settled", "curtailed"]  # fmt: skip
    note = (
        f"{decimal(figures.carbon.unsettled_kwh)} kWh are not settled by a marginal source. Decided and settled figures"
        " cover the same rows, those that are settled. Averages are location-based and not used for decisions."
    )
    return f'<h3>Settled</h3><p class="note">{note}</p>' + table(heads, rows, 2)


def _settled(one: SettledFigures) -> list[str]:
    models = f" ({', '.join(one.models)})" if one.models else ""
    decided = [kg(one.kg_attributed_decided), kg(one.kg_reserved_decided)]
    if one.basis != "marginal":
        decided = [NOTHING, NOTHING]
    return [
        one.basis, ", ".join(one.sources) + models, f"{one.rows:,}", f"{one.revised:,}", decimal(one.kwh),
        decimal(one.left_kwh), decided[0], kg(one.kg_attributed), decided[1], kg(one.kg_reserved),
        percent(one.curtailed_pct),
    ]  # fmt: skip


def sensitivity(figures: Figures) -> str:
    """The carbon under other assumptions about the MCI."""
    found = figures.carbon.sensitivity
    step = found.step_kg

    def row(words: str, value: float) -> list[str]:
        change = NOTHING if step == 0 or value == step else f"{100 * (value - step) / step:+.1f} %"
        return [words, kg(value), change]

    rows = [
        row("as booked: a reading holds until the next", step),
        row("linear interpolation between readings", found.linear_kg),
        row("MCI 20 % higher", found.plus_20_kg),
        row("MCI 20 % lower", found.minus_20_kg),
        row("readings of exactly 0 taken as 50 g/kWh", found.zeros_at_50_kg),
    ]
    return (
        "<h3>Sensitivity</h3>" + table(["assumption", "kgCO2 reserved", "change"], rows)
        + '<p class="note">With PUE; only energy whose MCI was known.</p>'
    )  # fmt: skip
