"""The sticker pictures: bitmaps of the Noto Color Emoji font (OFL-1.1), one PNG file per object."""

from functools import cache
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent


@cache
def sticker(name: str) -> Image.Image:
    """The RGBA bitmap of one object, cropped to what is visible.

    Raises FileNotFoundError for an object that has no sticker.
    """
    return Image.open(FOLDER / f"{name}.png").convert("RGBA")
