"""SVG to PNG conversion with resvg, with the same result on every machine.

The library needs no other program. Text uses only the font shipped with this module,
never an installed one. Characters that the font lacks are omitted.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from curtail.errors import CurtailError
from curtail.plotting.theme import FAMILY

FONT = Path(__file__).parent / "fonts" / "DejaVuSans-pictures.ttf"
SCALE = 2.0
"""Pixels of the picture per unit of the SVG."""


def check_png() -> ModuleType:
    """Import the library; call it before a long computation, to fail early.

    Raises: CurtailError: the library or the font is missing.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise CurtailError(
            "PNG output needs the library resvg-py, which is not installed",
            "install it with: pip install resvg-py; or write HTML or SVG, which need no library",
        ) from error
    if not FONT.is_file():  # without it the picture would have no text
        raise CurtailError(f"the font {FONT} is missing", "reinstall curtail")
    module: ModuleType = resvg_py
    return module


def to_png(svg: str, scale: float = SCALE) -> bytes:
    """Render `svg` at `scale` times its size.

    Raises: CurtailError: the library or the font is missing, or `svg` is invalid.
    """
    library = check_png()
    try:
        drawn = library.svg_to_bytes(
            svg_string=svg, zoom=scale, skip_system_fonts=True, font_files=[str(FONT)],
            font_family=FAMILY, sans_serif_family=FAMILY,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise CurtailError(
            f"cannot render a picture as PNG: {error}", "write SVG instead, and report this as a bug"
        ) from error
    return bytes(drawn)
