"""Colours and CSS rules of all pictures, for light and dark pages and for standalone files."""

from __future__ import annotations

import re

LIGHT = {
    "paper": "#fff", "ink": "#1c2127", "faint": "#5b6570", "grid": "#e2e5e9", "rail": "#eef0f2", "window": "#d3efd9",
    "mci": "#33404d", "threshold": "#c2410c", "train": "#15803d", "local": "#d29b13", "federated": "#15803d",
    "paused": "#b4bcc4", "loss": "#1d4ed8", "kg": "#15803d", "reserved": "#0e7490", "baseline": "#b91c1c",
    "off": "#46505a", "oracle": "#7c3aed", "start": "#7c3aed", "sync": "#0e7490", "hold": "#d29b13", "drain": "#be185d",
}  # fmt: skip
DARK = {
    "paper": "#14181c", "ink": "#e4e8ec", "faint": "#9aa5b0", "grid": "#2c333a", "rail": "#232a30",
    "window": "#1d3d27", "mci": "#c9d3dc", "threshold": "#fb923c", "train": "#4ade80", "local": "#eab308",
    "federated": "#4ade80", "paused": "#5b6570", "loss": "#7aa2ff", "kg": "#4ade80", "reserved": "#22d3ee",
    "baseline": "#f87171", "off": "#8b97a3", "oracle": "#a78bfa", "start": "#a78bfa", "sync": "#22d3ee",
    "hold": "#eab308", "drain": "#f472b6",
}  # fmt: skip

FAMILY = "DejaVu Sans"
"""Font family of text in standalone pictures: the font shipped in `fonts`."""

_FILLED = (
    "window", "rail", "train", "phase-train", "regime-paused", "phase-paused", "regime-local", "regime-federated",
    "phase-start", "phase-sync", "phase-hold", "phase-drain", "phase-off", "round",
)  # fmt: skip
_DRAWN = ("mci", "loss", "kg", "reserved", "baseline", "oracle", "threshold", "rounds")
_COLOUR = {"round": "loss", "rounds": "loss"}
"""Classes whose colour is not named like their last word."""


def _rule(name: str, what: str) -> str:
    colour = _COLOUR.get(name, name.rpartition("-")[2])
    return f".{name}{{{what}:var(--{colour})}}"


SHAPES = (
    "".join(_rule(name, "fill") for name in _FILLED)
    + "".join(_rule(name, "stroke") for name in _DRAWN)
    + """
.curve{fill:none;stroke-width:1.6;stroke-linejoin:round}.mci{stroke-width:1.2}.dense{stroke-width:.6}
.oracle,.limit{stroke-dasharray:2 3}.threshold{stroke-dasharray:5 4}.limit{stroke:var(--faint)}
.grid{stroke:var(--grid);stroke-width:1}.loss-dot{fill:var(--loss)}.kg-dot{fill:var(--kg)}
.reserved-dot{fill:var(--reserved)}.kg-bar{fill:var(--kg)}.oracle-bar{fill:var(--oracle)}
.other-bar{fill:var(--paused)}.baseline-bar{fill:var(--baseline)}.oracle-dot{fill:var(--oracle)}.open-dot{fill:var(--paper);stroke:var(--ink)}
"""
)
"""CSS rules of the shapes' classes."""

KEYS = "".join(".key " + _rule(name, "background") for name in (*_FILLED, *_DRAWN))
"""CSS rules with the same colours for the legends of a page."""


def variables(colours: dict[str, str]) -> str:
    """The colours as CSS variable declarations."""
    return ";".join(f"--{name}:{value}" for name, value in colours.items())


def words_style(family: str, size: float = 11.0) -> str:
    """CSS rules for text in pictures; the halo keeps it readable on lines."""
    return (
        f"svg text{{font-family:{family};font-size:{size:g}px;fill:var(--ink)}}"
        f"svg .small{{font-size:{size - 0.5:g}px;fill:var(--faint);paint-order:stroke;stroke:var(--paper);"
        "stroke-width:3px}"
        f"svg .head{{font-size:{size + 2:g}px}}svg .title{{font-size:{size + 5:g}px}}"
    )


def plain(style: str) -> str:
    """`style` with the light colours inserted, for programs that do not support CSS variables."""
    return re.sub(r"var\(--([a-z]+)\)", lambda found: LIGHT[found[1]], style)
