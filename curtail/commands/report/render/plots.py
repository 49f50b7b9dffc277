"""Charts of the report, drawn from its figures."""

from __future__ import annotations

from curtail.commands.report.collect.figures import Figures, RegionFigures
from curtail.plotting.charts import (
    Line,
    Signal,
    band_chart,
    bar_chart,
    energy_chart,
    name_chart,
    signal_chart,
    time_chart,
)
from curtail.plotting.figure import Picture
from curtail.plotting.svg import Point

SIGNAL_KEYS = (("window", "curtailed"), ("line:threshold", "threshold"), ("train", "a site trains"))


def pictures(figures: Figures) -> list[Picture]:
    """All pictures of the page in its order, without those that would be empty."""
    found = [
        carbon(figures),
        comparison(figures),
        *(signal(figures, region, with_keys=True) for region in figures.regions),
        loss(figures),
        regime(figures),
        energy(figures),
        *rounds(figures),
    ]
    return [picture for picture in found if picture is not None]


def signal(figures: Figures, region: RegionFigures, with_keys: bool = False) -> Picture:
    """MCI with windows and threshold, and below it the training times of each site of the region."""
    lanes = [
        (site.site, [(start, stop, "train", f"{site.site} trained") for start, stop in site.training])
        for site in figures.sites
        if site.region == region.region
    ]
    known = Signal(
        region.region, region.curve, region.thinned, region.windows, region.threshold, region.lowest, region.highest
    )
    return signal_chart(known, figures.started, figures.now, lanes, SIGNAL_KEYS if with_keys else ())


def regime(figures: Figures) -> Picture:
    """The regime over time."""
    spans = [(start, stop, f"regime-{name.lower()}", name) for start, stop, name in figures.regimes]
    keys = tuple((f"regime-{name.lower()}", f"{name} {s / 3600:,.2f} h") for name, s in figures.regime_seconds.items())
    return band_chart("regime", "regime over time", spans, (figures.started, figures.now), keys)


def loss(figures: Figures) -> Picture | None:
    """Mean loss of each merged version over time; None if no version has both a time and a loss."""
    points: list[Point] = [(v.at, v.loss) for v in figures.versions if v.at is not None and v.loss is not None]
    courses = [Line("loss", "", points)]
    return time_chart("loss", "loss over time", "loss", courses, (figures.started, figures.now), from_zero=False)


def carbon(figures: Figures) -> Picture | None:
    """Cumulative kg: attributed, reserved and the always-on counterfactual; None without a ledger row."""
    if not figures.kg_attributed:
        return None
    courses = [
        Line("baseline", "always on", figures.kg_baseline),
        Line("reserved", "reserved: attributed and standing", figures.kg_reserved),
        Line("kg", "attributed", figures.kg_attributed),
    ]
    return time_chart("carbon", "cumulative kgCO2", "kgCO2", courses, (figures.started, figures.now))


def comparison(figures: Figures) -> Picture | None:
    """kg of the run and of the counterfactuals; None before any training."""
    found = figures.carbon.counterfactuals
    if not found.alone:
        return None
    bars: list[tuple[str, str, float | None]] = [
        ("this run", "kg-bar", figures.sums.kg_attributed),
        ("lower bound", "oracle-bar", found.oracle_kg),
        *((f"{one.site} alone", "other-bar", one.kg) for one in found.alone),
        ("all at once", "baseline-bar", found.unconstrained_kg),
    ]
    return name_chart("comparison", "kgCO2 of this run and of counterfactuals", "kgCO2, attributed", bars)


def energy(figures: Figures) -> Picture | None:
    """Energy of each site by phase; None if no energy was drawn."""
    return energy_chart([(site.site, site.kwh_by_phase) for site in figures.sites])


def rounds(figures: Figures) -> list[Picture]:
    """Tokens and duration of each merged round; empty before the first."""
    merged = [row for row in figures.rounds if row.version is not None]
    if not merged:
        return []
    tokens: list[Point] = [(float(row.round), float(row.tokens)) for row in merged]
    seconds: list[Point] = [(float(row.round), row.duration_s) for row in merged]
    return [
        bar_chart("rounds-tokens", "tokens of each merged round", "tokens", "round", tokens),
        bar_chart("rounds-duration", "duration of each merged round", "s", "round", seconds),
    ]
