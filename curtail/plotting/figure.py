"""Pictures with title and legend, inline in an HTML page or as standalone SVG files.

Both have the same shapes. A standalone file is always black on white, names the
shipped font, can hold several pictures, and can be converted to PNG.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from curtail.plotting.svg import WIDTH, label, text
from curtail.plotting.theme import FAMILY, SHAPES, plain, words_style

MARGIN = 14.0
LINE = 16.0
"""Height of a line of a legend."""
LETTER = 5.8
"""Approximate width of a letter of a legend (of the widest usual letters)."""
SWATCH = 18.0
NAME_SPACE = "http://www.w3.org/2000/svg"
_ODD = re.compile(r"[^A-Za-z0-9._-]+")

Key = tuple[str, str]
"""(class of a colour, legend text); the class has the prefix `line:` if it belongs to a line."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture; its parts use coordinates of `width` x `height` units."""

    name: str  # for a file
    title: str
    height: float
    parts: tuple[str, ...]
    keys: tuple[Key, ...] = ()
    width: float = WIDTH

    def inline(self) -> str:
        """Legend and shapes, for a page that includes the style sheet."""
        return legend(self.keys) + self._svg("")

    def _svg(self, place: str) -> str:
        return (
            f'<svg{place} viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{text(self.title)}">'
            f"<title>{text(self.title)}</title>{''.join(self.parts)}</svg>"
        )

    def placed(self, at: float, top: float) -> tuple[str, float]:
        """Title, legend and shapes at a position in a standalone file, and the y coordinate of the end."""
        parts, top, left = [label(at, top + 13, self.title, "head")], top + 22, 0.0
        for name, words in self.keys:
            wide = SWATCH + 4 + LETTER * len(words)
            if left and left + wide > self.width:
                left, top = 0.0, top + LINE
            parts.append(_swatch(name, at + left, top))
            parts.append(label(at + left + SWATCH + 4, top + 11, words, "small"))
            left += wide + 14
        top += LINE + 2 if self.keys else 0
        place = f' x="{at:g}" y="{top:g}" width="{self.width:g}" height="{self.height:g}"'
        return "".join(parts) + self._svg(place), top + self.height


def legend(keys: Sequence[Key]) -> str:
    """The legend as one HTML paragraph."""
    if not keys:
        return ""
    found = "".join(f'<span class="key"><i class="{_class(name)}"></i>{text(words)}</span>' for name, words in keys)
    return f'<p class="legend">{found}</p>'


def _class(name: str) -> str:
    return name.removeprefix("line:")


def _swatch(name: str, x: float, y: float) -> str:
    if name.startswith("line:"):
        return (
            f'<line x1="{x:g}" x2="{x + SWATCH:g}" y1="{y + 7:g}" y2="{y + 7:g}" class="{_class(name)}"'
            ' stroke-width="2"/>'
        )
    return f'<rect x="{x:g}" y="{y + 2:g}" width="{SWATCH:g}" height="10" class="{name}"/>'


def alone(pictures: Sequence[Picture], title: str = "") -> str:
    """A standalone SVG file: the pictures in rows on white, under `title`."""
    top, parts = MARGIN, []
    if title:
        parts, top = [label(0, top + 16, title, "title")], top + 34
    width = max(picture.width for picture in pictures) if len(pictures) == 1 else WIDTH
    for row in _rows(legends_once(pictures), width):
        left, ends = 0.0, []
        for picture in row:
            shapes, end = picture.placed(left, top)
            parts.append(shapes)
            ends.append(end)
            left += picture.width
        top = max(ends) + MARGIN
    width, height = width + 2 * MARGIN, top
    style = plain(words_style(f"'{FAMILY}',sans-serif") + SHAPES)
    return (
        f'<svg xmlns="{NAME_SPACE}" viewBox="{-MARGIN:g} 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
        f"<style>{style}</style>"
        f'<rect x="{-MARGIN:g}" y="0" width="{width:g}" height="{height:g}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def legends_once(pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures, without the legend of each one that follows a picture with the same legend."""
    before = [(), *(picture.keys for picture in pictures)]
    return [
        replace(picture, keys=()) if picture.keys == last else picture
        for picture, last in zip(pictures, before, strict=False)
    ]


def _rows(pictures: Sequence[Picture], width: float) -> list[list[Picture]]:
    """The pictures in rows that are at most `width` wide."""
    rows: list[list[Picture]] = []
    for picture in pictures:
        if rows and sum(one.width for one in rows[-1]) + picture.width <= width:
            rows[-1].append(picture)
        else:
            rows.append([picture])
    return rows


def file_names(pictures: Iterable[Picture], ending: str) -> list[str]:
    """One safe file name for each picture; names are unique even if case is ignored."""
    taken: set[str] = set()
    found = []
    for picture in pictures:
        stem = name = _ODD.sub("_", picture.name).strip("._")[:80] or "picture"
        number = 2
        while name.lower() in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.lower())
        found.append(f"{name}.{ending}")
    return found
