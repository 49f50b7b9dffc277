"""SVG to PNG, by resvg: bytes in, bytes out, the same on every machine.

The library draws by itself and needs no other program; text is in the font that
is shipped beside this module, never in one that happens to be installed. A
character that the font lacks is left out.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from curtail.errors import CurtailError
from curtail.plotting.theme import FAMILY

FONT = Path(__file__).parent / "fonts" / "DejaVuSans-pictures.ttf"
SCALE = 2.0
"""Points of the picture for each unit of the SVG."""


def check_png() -> ModuleType:
    """The library, or the error that it is missing, before anything long is computed.

    Raises: CurtailError: the library or the font is missing.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise CurtailError(
            "pictures as PNG need the library resvg-py, which is not installed",
            "install it with: pip install resvg-py; or leave PNG out, HTML and SVG need no library",
        ) from error
    if not FONT.is_file():  # without it the picture would have no text
        raise CurtailError(f"the font {FONT} is missing", "install curtail anew")
    module: ModuleType = resvg_py
    return module


def to_png(svg: str, scale: float = SCALE) -> bytes:
    """The picture that `svg` describes, `scale` times its size.

    Raises: CurtailError: the library or the font is missing, or the SVG is none.
    """
    library = check_png()
    try:
        drawn = library.svg_to_bytes(
            svg_string=svg, zoom=scale, skip_system_fonts=True, font_files=[str(FONT)],
            font_family=FAMILY, sans_serif_family=FAMILY,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise CurtailError(f"a picture cannot be drawn as PNG: {error}", "report this as a bug; SVG works") from error
    return bytes(drawn)
