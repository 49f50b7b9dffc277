"""Self-contained HTML pages: document, style sheet, tables and number formats.

A page has no scripts and no external resources. It is well-formed XML, follows the
light or dark preference, and prints on white. External text, such as names of sites,
is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from curtail.plotting.svg import text
from curtail.plotting.theme import DARK, KEYS, LIGHT, SHAPES, variables, words_style

STYLE = f"""
:root{{color-scheme:light dark;{variables(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}
@media print{{:root{{color-scheme:light;{variables(LIGHT)}}}body{{max-width:none;margin:0}}
svg,table tr{{break-inside:avoid}}}}
*{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
body{{background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:980px;margin:2em auto;
padding:0 1em}}
h1{{font-size:1.6em;margin:0}}h2{{font-size:1.2em;margin:2em 0 .3em}}h3{{font-size:1em;margin:1em 0 0}}
p{{margin:.3em 0}}.faint,.note{{color:var(--faint)}}.note{{font-size:.9em}}.bad{{color:var(--baseline)}}
svg{{display:block;width:100%;height:auto}}{words_style("system-ui,sans-serif")}
.pair{{display:flex;gap:1em}}.pair>div{{flex:1 1 0;min-width:0}}
.wide{{overflow-x:auto;font-size:.9em}}
table{{border-collapse:collapse;margin:.5em 0;font-variant-numeric:tabular-nums;width:100%}}
th,td{{text-align:left;padding:.2em .8em .2em 0;border-bottom:1px solid var(--grid);vertical-align:top}}
th{{color:var(--faint);font-weight:600}}td.n,th.n{{text-align:right}}td.n{{white-space:nowrap}}
td{{overflow-wrap:break-word;min-width:3em}}code{{font-size:.9em;overflow-wrap:anywhere}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(8em,1fr));gap:.6em;margin:1em 0}}
.tile{{border:1px solid var(--grid);border-radius:6px;padding:.5em .8em;font-size:.85em}}
.tile b{{display:block;font-size:1.4em;white-space:nowrap}}.legend{{font-size:.85em}}
.key{{margin-right:1.2em;white-space:nowrap}}
.key i{{display:inline-block;width:.9em;height:.9em;margin-right:.35em;vertical-align:-.1em;border-radius:2px}}
{SHAPES}{KEYS}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(title: str, sections: Iterable[str], version: str) -> str:
    """The whole file; `version` is curtail's version."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'
        '<meta name="viewport" content="width=device-width"/>'
        f"<title>{text(title)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(sections)
        + f'\n<p class="note">Made by curtail {text(version)}.</p></body></html>\n'
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table; its first `words` columns hold text, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ["" if index < words else ' class="n"' for index in range(len(cells))]
        return "<tr>" + "".join(f"<{tag}{k}>{text(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(heads, "th")}</thead><tbody>{body}</tbody></table></div>'


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """Key figures as tiles, each with its name."""
    found = "".join(f'<div class="tile">{text(name)}<b>{text(value)}</b></div>' for name, value in entries)
    return f'<div class="tiles">{found}</div>'


def pair(parts: Sequence[str]) -> str:
    """Parts side by side."""
    return '<div class="pair">' + "".join(f"<div>{part}</div>" for part in parts) + "</div>" if parts else ""


def bullets(items: Iterable[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(f"<li>{text(item)}</li>" for item in items) + "</ul>"


# -- number formats ----------------------------------------------------------

NOTHING = "-"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f} h"


def decimal(value: float | None) -> str:
    """Four significant digits, or all digits of a large number."""
    return NOTHING if value is None else f"{value:,.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"


def kg(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.1f}"


def percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f} %"
