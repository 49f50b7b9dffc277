"""The pictures of `curtail report`: figures to SVG, nothing computed but places."""

from __future__ import annotations

from controller.accounts import PHASES
from curtail.reportfigures import Figures, RegionFigures, SiteFigures
from curtail.svg import (
    WIDTH,
    Frame,
    Point,
    axes,
    bands,
    box,
    curve,
    dots,
    figure,
    label,
    lane,
    level,
    text,
    thin,
    ticks,
    time_ticks,
)

LANE = 15.0
"""Height of one site's line below a plot."""
MOST_DOTS = 120
"""Points of a curve up to which each is marked."""
LONGEST = 12
"""Characters of a name beside a plot; the whole name is shown when it is pointed at."""


def legend(entries: list[tuple[str, str]]) -> str:
    """Class and words of each colour."""
    keys = "".join(f'<span class="key"><i class="{name}"></i>{text(words)}</span>' for name, words in entries)
    return f'<p class="legend">{keys}</p>'


def region_plot(figures: Figures, region: RegionFigures) -> str:
    """MCI with windows and threshold, and below it when each site of the region trained."""
    sites = [site for site in figures.sites if site.region == region.region]
    foot = LANE * len(sites) + 8.0 if sites else 0.0
    low, high = min(0.0, region.lowest or 0.0), max(region.highest or 0.0, (region.threshold or 0.0) * 1.2)
    up = ticks(low, high, 4)
    frame = Frame(figures.started, figures.now, up[0], up[-1], height=110.0)
    parts = [bands(frame, region.windows, "window")]
    parts.append(axes(frame, time_ticks(frame.x0, frame.x1), up, "gCO2/kWh", foot))
    if region.thinned:
        parts.append(curve(frame, region.curve, "mci dense"))
    else:
        parts.append(curve(frame, region.curve, "mci", until=figures.now))
    if region.threshold is not None:
        parts.append(level(frame, region.threshold, "threshold", f"threshold {region.threshold:g}"))
    if not region.curve:
        parts.append(label(WIDTH / 2, frame.top + 50, "no reading arrived", "small", "middle"))
    for index, site in enumerate(sites):
        parts.append(_site_lane(frame, site, frame.bottom + 8 + index * LANE))
    return figure(f"MCI of region {region.region}", frame.bottom + foot + 24, parts)


def _site_lane(frame: Frame, site: SiteFigures, y: float) -> str:
    spans = [(start, stop, "train", f"{site.site} trained") for start, stop in site.training]
    name = label(frame.left - 6, y + LANE - 4, _short(site.site), "small", "end", site.site)
    return (
        name
        + box(frame.left, y + 2, frame.width - frame.left - frame.right, LANE - 4, "rail")
        + lane(frame, y + 2, LANE - 4, spans)
    )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def regime_plot(figures: Figures) -> str:
    """Which regime held when."""
    frame = Frame(figures.started, figures.now, 0.0, 1.0, height=26.0)
    spans = [(start, stop, f"regime-{name.lower()}", name) for start, stop, name in figures.regimes]
    parts = [lane(frame, frame.top, frame.height, spans), axes(frame, time_ticks(frame.x0, frame.x1), [], "")]
    return figure("regime over time", frame.bottom + 24, parts)


def loss_plot(figures: Figures) -> str:
    """Mean loss of each merged version over time; empty where no version has a moment and a loss."""
    points: list[Point] = [(v.at, v.loss) for v in figures.versions if v.at is not None and v.loss is not None]
    values = [value for _, value in points if value is not None]
    if not values:
        return ""
    up = ticks(min(values), max(values))
    frame = Frame(figures.started, figures.now, up[0], up[-1], height=150.0)
    shown = thin(points)
    parts = [axes(frame, time_ticks(frame.x0, frame.x1), up, "loss"), curve(frame, shown, "loss")]
    if len(shown) <= MOST_DOTS:
        parts.append(dots(frame, shown, "loss-dot"))
    return figure("loss over time", frame.bottom + 24, parts)


def carbon_plot(figures: Figures) -> str:
    """Cumulative kg, with standing power and of the always-on comparison; empty without a ledger row."""
    if not figures.kg_attributed:
        return ""
    courses = [(figures.kg_baseline, "baseline"), (figures.kg_reserved, "reserved"), (figures.kg_attributed, "kg")]
    highest = max((value or 0.0 for points, _ in courses for _, value in points), default=0.0)
    up = ticks(0.0, highest)
    frame = Frame(figures.started, figures.now, up[0], up[-1], height=150.0)
    parts = [axes(frame, time_ticks(frame.x0, frame.x1), up, "kgCO2")]
    parts += [curve(frame, points, name) for points, name in courses]
    return figure("cumulative kgCO2", frame.bottom + 24, parts)


def energy_plot(figures: Figures) -> str:
    """Energy of each site by phase, as one bar; empty when nothing was drawn."""
    sites = [site for site in figures.sites if sum(site.kwh_by_phase.values()) > 0]
    if not sites:
        return ""
    across = ticks(0.0, max(sum(site.kwh_by_phase.values()) for site in sites))
    frame = Frame(across[0], across[-1], 0.0, 1.0, height=24.0 * len(sites), right=24.0)
    parts = [axes(frame, [(value, f"{value:,.4g}") for value in across], [], "")]
    for index, site in enumerate(sites):
        y, at = frame.top + 24.0 * index + 3, 0.0
        parts.append(label(frame.left - 6, y + 13, _short(site.site), "small", "end", site.site))
        for phase in PHASES:
            kwh = site.kwh_by_phase.get(phase, 0.0)
            if kwh > 0:
                width = frame.x(at + kwh) - frame.x(at)
                parts.append(box(frame.x(at), y, width, 18.0, f"phase-{phase}", f"{site.site} {phase}: {kwh:.4g} kWh"))
            at += kwh
    parts.append(label(WIDTH / 2, frame.bottom + 32, "kWh", "small", "middle"))
    return figure("energy by site and phase", frame.bottom + 38, parts)


def rounds_plot(figures: Figures) -> str:
    """Tokens and duration of each merged round, side by side; empty before the first."""
    merged = [row for row in figures.rounds if row.version is not None]
    if not merged:
        return ""
    tokens: list[Point] = [(float(row.round), float(row.tokens)) for row in merged]
    seconds: list[Point] = [(float(row.round), row.duration_s) for row in merged]
    return (
        '<div class="pair">'
        + _by_round(tokens, "tokens", "tokens of each merged round")
        + _by_round(seconds, "s", "duration of each merged round")
        + "</div>"
    )


def _by_round(points: list[Point], unit: str, title: str) -> str:
    values = [value for _, value in points if value is not None]
    up = ticks(0.0, max(values, default=0.0), 4)
    first, last = points[0][0], points[-1][0]
    frame = Frame(first - 0.5, last + 0.5, up[0], up[-1], height=110.0, width=WIDTH / 2)
    across = [(at, f"{at:,.0f}") for at in ticks(first, last, 6) if first <= at <= last and at == int(at)]
    parts = [axes(frame, across, up, unit)]
    if len(points) <= MOST_DOTS:
        width = (frame.x(last + 0.5) - frame.left) / (last - first + 1)
        for at, value in points:
            if value is not None:
                y = frame.y(value)
                hint = f"round {at:.0f}: {value:,.6g} {unit}"
                parts.append(box(frame.x(at) - 0.4 * width, y, 0.8 * width, frame.bottom - y, "round", hint))
    else:
        parts.append(curve(frame, thin(points), "rounds"))
    parts.append(label(frame.left + (frame.width - frame.left) / 2, frame.bottom + 30, "round", "small", "middle"))
    return figure(title, frame.bottom + 36, parts, WIDTH / 2)
