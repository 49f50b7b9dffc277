"""Where the pictures of a plan go: an HTML page, an SVG or a PNG, by the ending of the file's name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from curtail import __version__
from curtail.disk import Disk, SystemDisk
from curtail.document import document, pair
from curtail.errors import UsageError
from curtail.picture import Picture, alone, legends_once
from curtail.png import check_png, to_png
from curtail.svg import WIDTH, text

ENDINGS = (".html", ".svg", ".png")


def check_plot(path: Path) -> None:
    """Refuse what could not be written, before anything is computed.

    Raises: UsageError: the name tells no form. CurtailError: no PNG can be made here.
    """
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"a plot cannot be written as {path.name!r}", f"end its name with {', '.join(ENDINGS)}")
    if path.suffix.lower() == ".png":
        check_png()


def write_plot(path: Path, title: str, told: str, pictures: Sequence[Picture], disk: Disk | None = None) -> None:
    """Write the pictures to `path`.

    Args: title: in one line; told: the plan in words, for a page.
    Raises: UsageError: no such form. CurtailError: no PNG can be made, or the file not written.
    """
    check_plot(path)
    ending = path.suffix.lower()
    if ending == ".html":
        data = page(title, told, pictures).encode()
    elif ending == ".svg":
        data = alone(pictures, title).encode()
    else:
        data = to_png(alone(pictures, title))
    (disk or SystemDisk()).replace("PLOT", path, data)


def page(title: str, told: str, pictures: Sequence[Picture]) -> str:
    """The page; two half pictures that follow each other stand side by side."""
    parts = [f"<h1>{text(title)}</h1>", f"<pre>{text(told)}</pre>"]
    waiting: list[Picture] = []
    for picture in legends_once(pictures):
        if picture.width < WIDTH:
            waiting.append(picture)
            if len(waiting) == 2:
                parts.append(pair([_section(one) for one in waiting]))
                waiting = []
        else:
            parts.append(_section(picture))
    parts += [_section(picture) for picture in waiting]
    return document(title, parts, __version__)


def _section(picture: Picture) -> str:
    return f"<h3>{text(picture.title)}</h3>{picture.inline()}"
