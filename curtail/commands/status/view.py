"""Renders a status snapshot as text tables that fit a given width and height.

No I/O: `curtail.commands.status.watch` fetches snapshots and handles the terminal.
Colour never carries meaning alone: every mark is accompanied by a word. Widths and
heights are in characters. Durations and ages are in controller time, which is
simulated while a trace is replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from curtail.wire import RegionStatus, SiteStatus, Status

if TYPE_CHECKING:
    from rich.console import Group, OverflowMethod
    from rich.table import Table
    from rich.text import Text

WIDE = 110
"""Width from which the sites show their region and the histories are longer."""

LEAST_EVENTS = 3
"""Lines reserved for events if the screen is too low for everything."""

FIRST_SITES = 3
"""Sites that take precedence over events on a screen too low for both."""

# Nearly everyone can distinguish blue and yellow, unlike red and green.
REGIME_STYLE = {"PAUSED": "yellow", "LOCAL": "cyan", "FEDERATED": "bold cyan"}
YES, NO, QUIET = "cyan", "yellow", "dim"


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The symbols for one kind of terminal."""

    full: str  # trains, or may train
    half: str  # starting, exchanging, holding or draining
    none: str  # does not train
    blocks: str  # levels of a history, lowest first
    gap: str  # an unknown reading in a history
    bar: str  # the filled part of a bar, then the rest
    arrow: str
    below: str
    above: str
    ellipsis: str


UNICODE = Glyphs("●", "◐", "○", "▁▂▃▄▅▆▇█", "·", "█░", "→", "<", "≥", "…")
ASCII = Glyphs("*", "+", "o", "_.-=+*#@", "?", "#-", "->", "<", ">=", "..")


MOST_MACHINES = 6
"""Most machines of provisioners with a line of their own."""


def render(
    status: Status, width: int, unicode: bool = True, height: int | None = None, notice: str | None = None
) -> Group:
    """Render the whole status.

    Args:
        unicode: false for terminals that show ASCII only.
        height: available lines; events and then sites are cut to fit. None: no limit.
        notice: a line at the top, for example that the controller does not answer.
    """
    from rich.console import Group

    glyphs = UNICODE if unicode else ASCII
    header = _header(status, width, glyphs)
    # a title line, rows and a blank line per table; the round's line and its blank line
    aside = _aside(status, glyphs)
    fixed = len(header) + bool(notice) + 1 + (1 + len(status.regions) + 1) + 2 + 2 + 1 + len(aside)
    sites, events = len(status.sites), len(status.events)
    if height is not None:
        room = max(0, height - fixed)
        sites = min(sites, max(1, room - LEAST_EVENTS, min(room, FIRST_SITES)))
        events = min(events, max(0, room - sites))
    parts: list[Text | Table] = []
    if notice:
        parts.append(_line(notice, "bold yellow", glyphs))
    parts += [*header, _line("", "", glyphs), _regions(status, width, glyphs), _line("", "", glyphs)]
    parts += [_sites(status, width, glyphs, sites), _line("", "", glyphs), _round(status, glyphs), *aside]
    if events:
        parts += [_line("", "", glyphs), *_events(status, events, glyphs)]
    return Group(*parts)


def sparkline(history: Sequence[float | None], threshold: float, length: int, unicode: bool = True) -> str:
    """The latest `length` readings as one character each, scaled to the highest one or twice the threshold."""
    glyphs = UNICODE if unicode else ASCII
    latest = list(history)[-length:] if length > 0 else []
    top = max([2 * threshold, 1.0, *(value for value in latest if value is not None)])
    last = len(glyphs.blocks) - 1
    return "".join(
        glyphs.gap if value is None else glyphs.blocks[round(last * min(1.0, max(0.0, value / top)))]
        for value in latest
    )


def bar(done: float, width: int, unicode: bool = True) -> str:
    """A progress bar of `width` characters; `done` from 0 to 1."""
    glyphs = UNICODE if unicode else ASCII
    filled = round(width * min(1.0, max(0.0, done)))
    return glyphs.bar[0] * filled + glyphs.bar[1] * (width - filled)


def duration(seconds: float | None) -> str:
    """A duration in at most two units, such as `45 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`; `-` for None."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def count(number: float) -> str:
    """A number in short form, such as `950`, `12.3k`, `4.56M`, `11.2B`."""
    for power, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= power:
            value = number / power
            return (
                f"{value:.2f}{letter}"
                if value < 10
                else f"{value:.1f}{letter}"
                if value < 100
                else f"{value:.0f}{letter}"
            )
    return f"{number:.0f}"


def saved(kg: float, always_on: float | None) -> str:
    """The always-on counterfactual and how `kg` compares with it, as text."""
    if always_on is None or always_on <= 0:
        return "always on: nothing trained yet"
    return f"always on {always_on:.3g} kg ({100 * (kg / always_on - 1):+.0f} %)"


def _header(status: Status, width: int, glyphs: Glyphs) -> list[Text]:
    from rich.text import Text

    moment = datetime.fromtimestamp(status.now, UTC).strftime("%Y-%m-%d %H:%M UTC")
    speed = f", {status.speed:g}x" if status.speed != 1 else ""
    share = status.tokens / status.token_budget if status.token_budget else 0.0
    energy = status.energy
    title = Text.assemble(("curtail ", "bold"), (status.name, "bold"), f"  {status.state}  {moment}{speed}")
    since = duration(status.now - status.regime_since)
    rows: list[tuple[str, Text]] = [
        (
            "regime",
            Text.assemble(
                (status.regime, REGIME_STYLE.get(status.regime, "")),
                f" for {since}: {status.reason or 'no reason given'}",
            ),
        ),
        (
            "tokens",
            Text.assemble(
                (bar(share, max(10, min(30, width - 60)), glyphs is UNICODE), YES),
                f" {count(status.tokens)} of {count(status.token_budget)} ({100 * share:.0f} %)",
                f"  version {status.version}  rounds {status.rounds}",
            ),
        ),
        ("loss", Text(_losses(status, glyphs))),
        (
            "energy",
            Text(
                f"{energy.attributed_kwh:.3g} kWh, {energy.curtailed_pct:.1f} % of it curtailed;"
                f" standing by {energy.standing_kwh:.3g} kWh" + _unknown(energy.unknown_kwh)
            ),
        ),
        (
            "CO2",
            Text(f"{energy.kg_attributed:.3g} kg; {saved(energy.kg_attributed, energy.kg_always_on)}" + _head(status)),
        ),
    ]
    own = _own(status)
    if own:
        rows.append(("own", Text(own)))
    if (plan := _plan(status)) is not None:
        rows.insert(1, ("price", Text(plan)))
    lines = [title, *(Text.assemble((f"{name:<8}", QUIET), text) for name, text in rows)]
    return [_fit(line, glyphs) for line in lines]


def _head(status: Status) -> str:
    """The first characters of the ledger's head; the JSON has all of it."""
    return f"; ledger head {status.energy.ledger_head[:12]}" if status.energy.ledger_head else ""


def _own(status: Status) -> str:
    """Power of the solar panels and batteries by region; empty if there are none."""
    parts = []
    for region in status.regions:
        words = []
        if region.solar_w is not None:
            words.append(f"panels {watts(region.solar_w)}")
        if region.battery_soc is not None:
            flow = region.battery_w or 0.0
            verb = f" {'takes' if flow > 0 else 'gives'} {watts(abs(flow))}" if abs(flow) >= 0.5 else ""
            words.append(f"battery {100 * region.battery_soc:.0f} %{verb}")
        if words:
            parts.append(f"{region.region} {', '.join(words)}, grid {watts(region.grid_w or 0.0)}")
    return f"{status.energy.own_kwh:.3g} kWh; {'; '.join(parts)}" if parts else ""


def watts(power: float) -> str:
    """A power in short form, such as `85 W`, `1.24 kW`, `2.1 MW`."""
    for size, unit in ((1e6, "MW"), (1e3, "kW")):
        if power >= size:
            return f"{power / size:.3g} {unit}"
    return f"{power:.0f} W"


def _plan(status: Status) -> str | None:
    """The price in force and what is left of the deadline or budget; None if the run has neither."""
    plan = status.plan
    if plan is None or (plan.deadline is None and plan.budget_kg is None):
        return None
    parts = [plan.reason if plan.price is None else f"{plan.price:.0f} g/kWh: {plan.reason}"]
    if plan.work_s is not None:
        parts.append(f"{duration(plan.work_s)} of training by one site left")
    if plan.deadline_left_s is not None:
        parts.append(f"{duration(plan.deadline_left_s)} until the deadline")
    if plan.budget_kg is not None and plan.budget_left_kg is not None:
        parts.append(f"{plan.budget_left_kg:.3g} of {plan.budget_kg:.3g} kg left")
    return "; ".join(parts)


def _unknown(kwh: float) -> str:
    return f"; MCI unknown for {kwh:.3g} kWh" if kwh > 0 else ""


def _losses(status: Status, glyphs: Glyphs) -> str:
    if status.loss_first is None or status.loss_last is None:
        return "nothing trained yet"
    return f"{status.loss_first:.3f} {glyphs.arrow} {status.loss_last:.3f}"


def _regions(status: Status, width: int, glyphs: Glyphs) -> Table:
    from rich.text import Text

    table, cut = _table(width), _overflow(glyphs)
    table.add_column("REGION", no_wrap=True, overflow=cut, max_width=24 if width >= WIDE else 14)
    table.add_column("MCI g/kWh", no_wrap=True)
    table.add_column("HISTORY", no_wrap=True)
    table.add_column("AGE", no_wrap=True, justify="right")
    table.add_column("WHY", no_wrap=True, overflow=cut, ratio=1)
    length = 30 if width >= WIDE else 12
    for region in status.regions:
        style = YES if region.granted else NO
        history = sparkline(region.history, region.threshold, length, glyphs is UNICODE)
        table.add_row(
            Text(f"{glyphs.full if region.granted else glyphs.none} {region.region}", style=style),
            Text(_against_threshold(region, glyphs), style=style),
            Text(history, style=style),
            duration(region.age_s),
            Text(
                f"{'may train' if region.granted else 'waits'}: {region.reason}", style="" if region.granted else QUIET
            ),
        )
    return table


def _against_threshold(region: RegionStatus, glyphs: Glyphs) -> str:
    if region.mci is None:
        return f"unknown ({glyphs.below} {region.threshold:.0f})"
    sign = glyphs.below if region.mci < region.threshold else glyphs.above
    return f"{region.mci:>4.0f} {sign} {region.threshold:.0f}"


def _sites(status: Status, width: int, glyphs: Glyphs, limit: int) -> Table:
    from rich.text import Text

    wide = width >= WIDE
    table, cut = _table(width), _overflow(glyphs)
    table.add_column("SITE", no_wrap=True, overflow=cut, max_width=24 if wide else 14)
    if wide:
        table.add_column("REGION", no_wrap=True, overflow=cut, max_width=20)
    table.add_column("STATE", no_wrap=True)
    for name in ("ROUND/STEP", "LOSS", "TOK/S", "TOKENS", "SEEN", *(("START",) if wide else ())):
        table.add_column(name if wide else name.replace("ROUND/STEP", "RND/STEP"), no_wrap=True, justify="right")
    table.add_column("WHY", no_wrap=True, overflow=cut, ratio=1)
    for site in status.sites[:limit]:
        mark, style = _mark(site, glyphs)
        cells: list[Text | str] = [Text(f"{mark} {site.site}", style=style)]
        if wide:
            cells.append(site.region)
        cells += [
            Text(site.state.lower(), style=style),
            f"{site.round}/{site.step}" if site.round is not None else "-",
            f"{site.loss:.3f}" if site.loss is not None else "-",
            count(site.tokens_per_s) if site.tokens_per_s else "-",
            count(site.tokens),
            duration(site.seen_s) if site.seen_s is not None else "never",
            *((duration(site.costs.start_s) if site.costs is not None else "-",) if wide else ()),
            Text(site.reason, style=QUIET),
        ]
        table.add_row(*cells)
    if limit < len(status.sites):
        table.add_row(Text(f"{glyphs.ellipsis} {len(status.sites) - limit} more", style=QUIET))
    elif not status.sites:
        table.add_row(Text("no site has joined", style=QUIET))
    return table


def _mark(site: SiteStatus, glyphs: Glyphs) -> tuple[str, str]:
    if site.phase == "train":
        return glyphs.full, YES
    if site.phase in ("start", "sync", "hold", "drain"):
        return glyphs.half, ""
    return glyphs.none, NO


def _round(status: Status, glyphs: Glyphs) -> Text:
    opened = status.round
    if opened is None:
        return _line("no round is open", QUIET, glyphs)
    waiting = [name for name in opened.members if name not in opened.committed]
    done = f"committed {len(opened.committed)} of {len(opened.members)}"
    rest = f", waiting for {', '.join(waiting)}" if waiting else ""
    text = (
        f"round {opened.round} {opened.state.lower()} on version {opened.base_version}: {done}{rest}"
        f"; {duration(opened.left_s)} left"
    )
    return _line(text, "", glyphs)


def _aside(status: Status, glyphs: Glyphs) -> list[Text]:
    """Lines outside the open round: late sites, samples reserved by jobs, machines of provisioners."""
    lines = []
    if status.late:
        words = {"LATE": "may still contribute", "COMMITTED": "waits for the next merge"}
        parts = [f"{late.site} (round {late.round}, {words.get(late.state, late.state)})" for late in status.late]
        lines.append(_line(f"late: {', '.join(parts)}", NO, glyphs))
    if status.kept:
        parts = [f"{kept.site} {count(kept.samples)}" for kept in status.kept]
        lines.append(_line(f"samples kept to train ahead: {', '.join(parts)}", QUIET, glyphs))
    existing = [machine for machine in status.machines if machine.state != "ABSENT"]
    for machine in existing[:MOST_MACHINES]:
        text = f"machine {machine.site}/{machine.machine} {machine.state} {duration(machine.since_s)}: {machine.reason}"
        lines.append(_line(text, QUIET if machine.state == "JOINED" else NO, glyphs))
    if len(existing) > MOST_MACHINES:
        lines.append(_line(f"{len(existing) - MOST_MACHINES} more machines: curtail site list", QUIET, glyphs))
    return lines


def _events(status: Status, limit: int, glyphs: Glyphs) -> list[Text]:
    lines = []
    for event in sorted(status.events, key=lambda event: event.id)[-limit:]:
        stamp = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S")
        lines.append(_line(f"{stamp} {event.text}", QUIET, glyphs))
    return lines


def _table(width: int) -> Table:
    from rich.table import Table

    return Table(
        box=None, padding=(0, 2 if width >= WIDE else 1, 0, 0), width=width, header_style="bold", pad_edge=False
    )


def _line(text: str, style: str, glyphs: Glyphs) -> Text:
    from rich.text import Text

    return _fit(Text(text, style=style), glyphs)


def _fit(text: Text, glyphs: Glyphs) -> Text:
    """Cut the line at the end of the screen."""
    text.no_wrap = True
    text.overflow = _overflow(glyphs)
    return text


def _overflow(glyphs: Glyphs) -> OverflowMethod:
    # rich's ellipsis is not an ASCII character
    return "ellipsis" if glyphs is UNICODE else "crop"
