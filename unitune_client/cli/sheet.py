"""Contact sheets: each picture beside its edits, what they changed and their masks, with captions under them.

`contact_sheet` is of edits, `comparison_sheet` of methods, `sheet_file` the file of either.
"""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from unitune.picture_file import rgb
from unitune.png_text import with_texts
from unitune_client.cli.fonts import font_for, shown_in_part
from unitune_client.cli.record import SHEET_KEYWORD, VERSION

PANEL = 256  # pixels; smaller pictures are enlarged by a whole factor until they are about as large
LARGEST_PANEL = 1024  # pixels; larger pictures are reduced to it
MARGIN = 12
FONT_SIZE = 15
EDITS_IN_A_LINE = 2
DIFFERENCE_GAIN = 2
BACKGROUND, INK = (250, 250, 248), (40, 40, 40)

SheetEdit = tuple[str, bytes] | tuple[str, bytes, bytes]  # caption, picture file, file of its mask or none


def contact_sheet(rows: Iterable[tuple[bytes, Sequence[SheetEdit]]]) -> Image.Image:
    """One row per picture: the picture | an edit | its difference | its mask | an edit | its difference | its mask ...

    A row is a picture's file and its edits; more than two edits go on below. The difference is |edit - picture|,
    twice as bright. The masks have columns if any edit of the sheet has one. Raises InvalidArgument for a file
    that is no picture.
    """
    wanted = list(rows)
    has_masks = any(any(mask) for _, edits in wanted for _, _, *mask in edits)
    return _sheet([line for picture, edits in wanted for line in _lines(_opened(picture), edits, has_masks)])


def comparison_sheet(picture: bytes, columns: Sequence[tuple[str, Sequence[SheetEdit]]]) -> Image.Image:
    """The picture and one column per method, with its edits below each other, and each edit's mask below the edit.

    A column is the caption of a method without pictures, such as its error, and its edits in the order of the seeds.
    Raises InvalidArgument for a file that is no picture.
    """
    original = _panel(_opened(picture), "original")
    blank = Image.new("RGB", _opened(picture).size, BACKGROUND)
    lines = []
    for row in range(max([1, *(len(edits) for _, edits in columns)])):
        edited, masks = [original if row == 0 else _nothing(original)], [_nothing(original)]
        for note, edits in columns:
            caption, file, *mask = edits[row] if row < len(edits) else (note if row == 0 else "", b"")
            edited.append(_panel(_opened(file) if file else blank, caption))
            masks.append(_panel(_opened(mask[0]), "mask") if any(mask) else _nothing(edited[-1]))
        lines.append(edited)
        if any(panel.height > 1 for panel in masks):
            lines.append(masks)
    return _sheet(lines)


def sheet_file(sheet: Image.Image, pictures: Iterable[Path], *, omit_metadata: bool) -> bytes:
    """A sheet as a PNG file. Its metadata, unless it is to be left out, says that it is a sheet, and names its
    pictures.
    """
    file = io.BytesIO()
    sheet.save(file, "PNG")
    if omit_metadata:
        return file.getvalue()
    facts = {"version": VERSION, "what": "sheet", "pictures": [path.name for path in pictures]}
    return with_texts(file.getvalue(), {SHEET_KEYWORD: json.dumps(facts, sort_keys=True)})


def _sheet(lines: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Panels in lines and columns."""
    widths = [max(line[column].width for line in lines if len(line) > column) for column in range(max(map(len, lines)))]
    heights = [max(panel.height for panel in line) for line in lines]
    width = sum(widths) + MARGIN * (len(widths) + 1)
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN * (len(heights) + 1)), BACKGROUND)
    top = MARGIN
    for line, height in zip(lines, heights, strict=True):
        left = MARGIN
        for panel, panel_width in zip(line, widths, strict=False):
            sheet.paste(panel, (left, top))
            left += panel_width + MARGIN
        top += height + MARGIN
    return sheet


def _lines(picture: Image.Image, edits: Sequence[SheetEdit], has_masks: bool) -> list[list[Image.Image]]:
    """The panels of a row, in as many lines as they need."""
    first = _panel(picture, "original")
    lines = []
    for start in range(0, len(edits), EDITS_IN_A_LINE):
        line = [first if start == 0 else _nothing(first)]
        for caption, file, *mask in edits[start : start + EDITS_IN_A_LINE]:
            edited = _opened(file)
            line += [_panel(edited, caption), _panel(_difference(picture, edited), f"difference x {DIFFERENCE_GAIN}")]
            if has_masks:
                line.append(_panel(_opened(mask[0]), "mask") if any(mask) else _nothing(line[-1]))
        lines.append(line)
    return lines or [[first]]


def _nothing(beside: Image.Image) -> Image.Image:
    """An empty panel, as wide as its neighbour."""
    return Image.new("RGB", (beside.width, 1), BACKGROUND)


def _opened(file: bytes) -> Image.Image:
    return rgb(file, max_bytes=None)  # results may be larger than uploads


def _difference(picture: Image.Image, edited: Image.Image) -> Image.Image:
    difference = ImageChops.difference(picture.resize(edited.size), edited)
    return difference.point([min(255, DIFFERENCE_GAIN * value) for value in range(256)] * 3)


def _panel(picture: Image.Image, caption: str) -> Image.Image:
    """A picture at its size on the sheet, with its caption under it."""
    longest = max(picture.size)
    if longest < PANEL:
        factor = PANEL // longest
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    elif longest > LARGEST_PANEL:
        picture = ImageOps.contain(picture, (LARGEST_PANEL, LARGEST_PANEL))
    font = font_for(caption, FONT_SIZE)
    if font is None:
        caption = shown_in_part(caption, FONT_SIZE)
        font = ImageFont.load_default(FONT_SIZE)
    lines = wrapped(caption, font, picture.width)
    line_height = FONT_SIZE + 5
    panel = Image.new("RGB", (picture.width, picture.height + 4 + line_height * len(lines)), BACKGROUND)
    panel.paste(picture, (0, 0))
    draw = ImageDraw.Draw(panel)
    for index, line in enumerate(lines):
        draw.text((0, picture.height + 4 + index * line_height), line, fill=INK, font=font)
    return panel


def can_show(text: str) -> bool:
    """Whether some font has all of its letters."""
    return font_for(text, FONT_SIZE) is not None


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words, and within a word that is longer."""
    lines, line = [], ""
    for word in text.split():
        candidate = f"{line} {word}" if line else word
        if font.getlength(candidate) <= width:
            line = candidate
            continue
        if line:
            lines.append(line)
        line = word
        while font.getlength(line) > width and len(line) > 1:
            fits = next(
                size for size in range(len(line) - 1, 0, -1) if size == 1 or font.getlength(line[:size]) <= width
            )
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line]
