"""Cut the stickers out of the Noto Color Emoji font. Needed only to add objects to the world.

python -m stickerbook.extract_stickers /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""

import sys

from PIL import Image, ImageDraw, ImageFont

from stickerbook.stickers import FOLDER

GLYPHS = {
    "apple": "🍎", "balloon": "🎈", "banana": "🍌", "bear": "🐻", "bicycle": "🚲", "bus": "🚌",
    "butterfly": "🦋", "cactus": "🌵", "cake": "🎂", "car": "🚗", "castle": "🏰", "cat": "🐈",
    "cow": "🐄", "dog": "🐕", "duck": "🦆", "elephant": "🐘", "fox": "🦊", "frog": "🐸",
    "ghost": "👻", "guitar": "🎸", "house": "🏠", "lion": "🦁", "mushroom": "🍄", "owl": "🦉",
    "panda": "🐼", "penguin": "🐧", "pig": "🐖", "pizza": "🍕", "rabbit": "🐇", "robot": "🤖",
    "rocket": "🚀", "sailboat": "⛵", "snowman": "⛄", "sunflower": "🌻", "tent": "⛺",
    "tiger": "🐅", "train": "🚂", "tree": "🌳", "turtle": "🐢", "umbrella": "⛱",
}  # fmt: skip
GLYPH_SIZE_PX = 109  # the only bitmap size in the font


def extract(font_path: str) -> None:
    """Write one cropped PNG per object beside this package."""
    font = ImageFont.truetype(font_path, GLYPH_SIZE_PX)
    for name, glyph in GLYPHS.items():
        canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
        ImageDraw.Draw(canvas).text((8, 8), glyph, font=font, embedded_color=True)
        canvas.crop(canvas.getbbox()).save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    extract(sys.argv[1])
