"""The contact sheet: how many panels, which pixels, what text."""

import io

import pytest
from PIL import Image, ImageChops, ImageFont

from tests.unitune_client.scripted_server import png
from unitune_client import events
from unitune_client.cli import sheet
from unitune_client.cli.edit import sampled_at

RED, GREEN, BLUE = (200, 40, 40), (0, 200, 0), (0, 0, 200)


def patterned(size: tuple[int, int]) -> Image.Image:
    """A picture in which every pixel differs from its neighbours."""
    picture = Image.new("RGB", size)
    picture.putdata([(37 * n % 256, 91 * n % 256, 11 * n % 256) for n in range(size[0] * size[1])])
    return picture


def file_of(picture: Image.Image, **options: object) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


def columns_of(made: Image.Image) -> list[tuple[int, int]]:
    """Where the first line's panels begin and end, found by their pixels in a row through them."""
    ink = [made.getpixel((x, sheet.MARGIN + 1)) != sheet.BACKGROUND for x in range(made.width)]
    starts = [x for x in range(1, made.width) if ink[x] and not ink[x - 1]]
    return [(start, next(x for x in range(start, made.width) if not ink[x])) for start in starts]


@pytest.mark.parametrize("edits", [0, 1, 2, 3])
def test_a_row_has_the_picture_and_two_panels_per_edit(edits: int) -> None:
    """One panel for the picture and two for each edit; after two edits a new line begins."""
    made = sheet.contact_sheet([(png(RED), [("an edit", png(GREEN))] * edits)])

    panels = 1 + 2 * min(edits, sheet.EDITS_IN_A_LINE)
    assert panels == len(columns_of(made))
    counts = {colour: count for count, colour in made.getcolors(1 << 20)}
    assert edits * 256 * 192 == counts.get(GREEN, 0)
    assert 256 * 192 == counts[RED]


def test_small_pictures_are_enlarged_by_a_whole_factor_without_blur() -> None:
    """Every pixel of the picture and of the edit becomes a square of 4 x 4."""
    picture, edited = patterned((64, 48)), ImageChops.invert(patterned((64, 48)))

    made = sheet.contact_sheet([(file_of(picture), [("inverted", file_of(edited))])])

    for (left, right), wanted in zip(columns_of(made)[:2], (picture, edited), strict=True):
        assert 256 == right - left
        found = made.crop((left, sheet.MARGIN, right, sheet.MARGIN + 192))
        assert wanted.resize((256, 192), Image.Resampling.NEAREST).tobytes() == found.tobytes()


def test_the_difference_is_twice_as_bright() -> None:
    """The third panel is |edit - picture| times two, cut at white."""
    made = sheet.contact_sheet([(png((10, 20, 30)), [("brighter", png((20, 10, 200)))])])

    left, _ = columns_of(made)[2]
    assert (20, 20, 255) == made.getpixel((left + 5, sheet.MARGIN + 5))


def test_masks_have_a_column_of_their_own_after_the_difference() -> None:
    """Where any edit has one, every edit has the place for it; what is white was edited."""
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))

    made = sheet.contact_sheet([(png(RED), [("masked", png(GREEN), file_of(mask)), ("plain", png(BLUE), b"")])])

    columns = columns_of(made)
    assert len(columns) == 6  # the picture, edit, difference, mask, edit, difference
    left, right = columns[3]
    shown = made.crop((left, sheet.MARGIN, right, sheet.MARGIN + 192))
    assert shown.tobytes() == mask.convert("RGB").resize((256, 192), Image.Resampling.NEAREST).tobytes()
    assert made.width == 7 * 256 + 8 * sheet.MARGIN


def test_a_sheet_without_masks_has_no_column_for_them() -> None:
    """An edit that says it has none is as one that says nothing."""
    one = sheet.contact_sheet([(png(RED), [("an edit", png(GREEN), b"")])])
    other = sheet.contact_sheet([(png(RED), [("an edit", png(GREEN))])])

    assert one.tobytes() == other.tobytes()


def test_a_comparison_has_one_column_per_method() -> None:
    """The picture once, each method's edits under each other, a mask below the edit that has one, words for none."""
    white = png((255, 255, 255))
    columns = [
        ("unitune", [("unitune", png(GREEN), white), ("unitune (seed 1)", png(GREEN), b"")]),
        ("sdedit: failed: the sampler does not answer now", []),
        ("imagic", [("imagic", png(BLUE), b""), ("imagic (seed 1)", png(BLUE), b"")]),
    ]

    made = sheet.comparison_sheet(png(RED), columns)

    panel = 256 * 192
    counts = {colour: count for count, colour in made.getcolors(1 << 20)}
    assert (panel, 2 * panel, 2 * panel) == (counts[RED], counts[GREEN], counts[BLUE])
    assert panel == counts[(255, 255, 255)]
    assert made.width == 4 * 256 + 5 * sheet.MARGIN
    middle = [
        made.getpixel((sheet.MARGIN + 128 + column * (256 + sheet.MARGIN), sheet.MARGIN + 96)) for column in range(4)
    ]
    assert [RED, GREEN, sheet.BACKGROUND, BLUE] == middle
    failed = made.crop((2 * (256 + sheet.MARGIN), sheet.MARGIN + 192, 3 * (256 + sheet.MARGIN), sheet.MARGIN + 250))
    assert len(failed.getcolors(1 << 20)) > 1  # its words


def test_a_comparison_without_masks_has_no_line_for_them() -> None:
    """It is as high as a sheet of one edit, also when every method failed."""
    plain = sheet.comparison_sheet(png(RED), [("sdedit", [("sdedit", png(GREEN), b"")])])
    failed = sheet.comparison_sheet(png(RED), [("sdedit: failed", [])])

    assert plain.size == failed.size
    assert plain.height == sheet.contact_sheet([(png(RED), [("sdedit", png(GREEN))])]).height


def test_large_pictures_are_reduced() -> None:
    """A photo of 3000 pixels does not make a sheet of 9000."""
    made = sheet.contact_sheet([(png(RED, (3000, 1500)), [("an edit", png(GREEN, (3000, 1500)))])])

    assert [sheet.LARGEST_PANEL] * 3 == [right - left for left, right in columns_of(made)]


def test_a_photo_is_shown_upright() -> None:
    """The orientation that a camera wrote is obeyed, as the server does."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    file = file_of(Image.new("RGB", (64, 32), RED), exif=exif)

    made = sheet.contact_sheet([(file, [("an edit", png(GREEN, (32, 64)))])])

    left, right = columns_of(made)[0]
    assert 128 == right - left


def test_several_pictures_make_several_rows() -> None:
    """Each picture has a row of its own with its edits."""
    one = sheet.contact_sheet([(png(RED), [("a", png(GREEN))])])
    two = sheet.contact_sheet([(png(RED), [("a", png(GREEN))]), (png(BLUE), [("b", png(GREEN))])])

    assert (one.width, 2 * one.height - sheet.MARGIN) == (two.width, two.height)


def test_long_prompts_are_wrapped_within_the_panel() -> None:
    """No line is wider than its panel, no word is lost, a word that is too long is broken."""
    font = ImageFont.load_default(sheet.FONT_SIZE)
    prompt = "a very long description of a picture with a " + "w" * 90 + " in it"

    lines = sheet.wrapped(prompt, font, 256)

    assert all(font.getlength(line) <= 256 for line in lines)
    assert prompt.replace(" ", "") == "".join(lines).replace(" ", "")
    made = [sheet.contact_sheet([(png(RED), [(text, png(GREEN))])]) for text in ("short", prompt)]
    assert made[1].height > made[0].height and made[1].width == made[0].width


@pytest.mark.parametrize(
    ("size", "words"),
    [((64, 64), ""), ((0, 0), ""), ((72, 56), ", sampled at 72x56"), ((128, 128), ", sampled at 128x128")],
)
def test_a_caption_tells_only_a_size_that_is_not_the_models_own(size: tuple[int, int], words: str) -> None:
    """A square picture's caption stays plain; so does one of a server that does not tell the size."""
    model = events.BaseModel(name="tiny", digest="", width=64, height=64, vocabulary=())
    image = events.EditedImage(index=0, seed=0, png=b"", working_width=size[0], working_height=size[1])

    assert sampled_at(image, model) == words
