"""Pictures: what is taken, what is refused, and that pixels survive."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unitune import images, picture_file, picture_header
from unitune.errors import InvalidArgument


def picture(height: int = 12, width: int = 20) -> np.ndarray:
    """Random pixels, the same every time."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_file(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and whose pixels are missing."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize(("kind", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp")])
def test_inspect_reads_kind_and_size_from_the_bytes(kind: str, media_type: str) -> None:
    """PNG, JPEG and WebP are told apart by their bytes."""
    assert picture_file.check(as_file(picture(), kind)) == picture_file.PictureInfo(20, 12, media_type)


def test_decode_gives_the_pixels_of_a_png() -> None:
    """A PNG is lossless."""
    np.testing.assert_array_equal(images.decode(as_file(picture())), picture())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_size_and_pixels(orientation: int) -> None:
    """Sizes told and pixels decoded agree, for each of EXIF's eight orientations."""
    exif = Image.Exif()
    exif[picture_file.EXIF_ORIENTATION] = orientation
    data = as_file(picture(), exif=exif.tobytes())

    info, pixels = picture_file.check(data), images.decode(data)

    assert (info.height, info.width) == pixels.shape[:2] == ((12, 20) if orientation <= 4 else (20, 12))
    upright = {1: lambda p: p, 3: lambda p: np.rot90(p, 2), 6: lambda p: np.rot90(p, -1), 8: lambda p: np.rot90(p)}
    if orientation in upright:
        np.testing.assert_array_equal(pixels, upright[orientation](picture()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_file_cut_short_is_undecodable(kind: str, share: float) -> None:
    """Truncation is found whatever the format, not only at the header."""
    data = as_file(picture(64, 64), kind)

    with pytest.raises(InvalidArgument) as refusal:
        picture_file.check(data[: int(len(data) * share)])

    assert refusal.value.reason == "IMAGE_UNDECODABLE"
    assert refusal.value.field == "image"
    assert refusal.value.metadata["remedy"]


@pytest.mark.parametrize("data", [b"", b"no picture", as_file(picture(), "GIF"), as_file(picture(), "BMP")])
def test_other_bytes_are_undecodable(data: bytes) -> None:
    """Formats beyond the three are refused, though Pillow could read them."""
    with pytest.raises(InvalidArgument) as refusal:
        images.decode(data)

    assert refusal.value.reason == "IMAGE_UNDECODABLE"


def test_damaged_pixels_never_raise_anything_else() -> None:
    """Bytes flipped anywhere end in pixels or in IMAGE_UNDECODABLE or IMAGE_TOO_LARGE."""
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = np.frombuffer(as_file(picture(), kind), dtype=np.uint8)
        for _ in range(200):
            damaged = whole.copy()
            damaged[rng.integers(0, len(damaged), 4)] ^= rng.integers(1, 256, 4, dtype=np.uint8)
            try:
                images.decode(damaged.tobytes())
            except InvalidArgument as refusal:
                assert refusal.reason in {"IMAGE_UNDECODABLE", "IMAGE_TOO_LARGE"}


@pytest.mark.parametrize("side", [(8001, 8000), (10000, 10000), (16384, 16384)])
def test_too_many_pixels_are_refused_from_the_header(side: tuple[int, int]) -> None:
    """A file of a few bytes that announces too many pixels is refused for that, not for its missing data."""
    with pytest.raises(InvalidArgument) as refusal:
        picture_file.check(png_header(*side))

    assert refusal.value.reason == "IMAGE_TOO_LARGE"
    assert refusal.value.metadata["value"] in {f"{side[0]}x{side[1]} pixels", f"{side[0] * side[1]} pixels"}
    assert "64 megapixels" in refusal.value.metadata["remedy"]


def test_too_many_bytes_are_refused() -> None:
    """A file above 16 MiB is refused by its length alone."""
    with pytest.raises(InvalidArgument) as refusal:
        picture_file.check(as_file(picture()) + bytes(picture_header.MAX_BYTES))

    assert refusal.value.reason == "UPLOAD_TOO_LARGE"


def test_transparent_pixels_become_white() -> None:
    """Alpha is put over white, not over whatever colour lies under it."""
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))

    np.testing.assert_array_equal(images.decode(as_file(image)), [[[255, 255, 255], [10, 20, 30]]])


def test_a_palette_with_a_transparent_colour_becomes_white() -> None:
    """A palette's transparent entry counts as alpha."""
    image = Image.new("P", (2, 1), 0)
    image.putpalette([9, 9, 9, 50, 60, 70])
    image.putpixel((1, 0), 1)

    pixels = images.decode(as_file(image, transparency=0))

    np.testing.assert_array_equal(pixels, [[[255, 255, 255], [50, 60, 70]]])


def test_sixteen_bit_greyscale_keeps_its_levels() -> None:
    """16-bit greyscale is scaled, not clipped to white."""
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)

    np.testing.assert_array_equal(images.decode(as_file(Image.fromarray(levels)))[0, :, 0], [0, 1, 128, 255])


def test_every_level_survives_the_way_to_the_model_and_back() -> None:
    """All 256 levels come back exactly when no resize is needed, and lie in [-1, 1]."""
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)

    image = images.to_model(pixels, (16, 16))

    assert image.shape == (1, 3, 16, 16) and image.dtype == np.float32
    assert image.min() == -1 and image.max() == 1
    np.testing.assert_array_equal(images.from_model(image, (16, 16)), pixels)


def test_to_model_takes_height_before_width() -> None:
    """Sides are (height, width), and a picture of another aspect is squeezed into them."""
    image = images.to_model(picture(12, 20), (32, 48))

    assert image.shape == (1, 3, 32, 48)
    assert images.from_model(image, (12, 20)).shape == (12, 20, 3)


def test_from_model_clips_what_the_decoder_overshoots() -> None:
    """Values beyond [-1, 1] saturate and do not wrap around."""
    image = np.array([-1.5, 1.5], dtype=np.float32).reshape(1, 1, 1, 2).repeat(3, axis=1)

    np.testing.assert_array_equal(images.from_model(image, (1, 2))[0, :, 0], [0, 255])


def test_png_bytes_are_the_same_twice() -> None:
    """The same pixels give the same file, and the file gives the pixels."""
    assert images.encode_png(picture()) == images.encode_png(picture())
    np.testing.assert_array_equal(images.decode(images.encode_png(picture())), picture())


def test_a_mask_is_1_where_it_is_white() -> None:
    """Grey is in between, colours count by brightness, transparent parts are black, 16 bits are as good as 8."""
    grey = Image.fromarray(np.array([[0, 51, 255]], np.uint8))
    colours = Image.fromarray(np.array([[(0, 0, 0), (255, 255, 255)]], np.uint8))
    strokes = Image.fromarray(np.array([[(255, 255, 255, 255), (255, 255, 255, 0)]], np.uint8), "RGBA")
    deep = Image.fromarray(np.array([[0, 65535, 13107]], np.uint16))

    found = [images.decode_mask(as_file(one), (1, one.width))[0] for one in (grey, colours, strokes, deep)]

    for mask, expected in zip(found, ([0, 0.2, 1], [0, 1], [1, 0], [0, 1, 0.2]), strict=True):
        np.testing.assert_allclose(mask, expected, rtol=0, atol=1e-6)
        assert mask.dtype == np.float32


def test_a_mask_comes_back_as_it_was_encoded() -> None:
    """Up to the 256 levels that its file has."""
    mask = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)

    assert np.abs(images.decode_mask(images.encode_mask(mask), (3, 4)) - mask).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("data", "reason", "value"),
    [
        (b"no picture", "IMAGE_UNDECODABLE", "text"),
        (b"", "IMAGE_UNDECODABLE", "an empty file"),
        (images.encode_mask(np.ones((40, 40)))[:60], "IMAGE_UNDECODABLE", "a PNG of 60 bytes"),
        (images.encode_mask(np.ones((3, 5))), "INVALID_FIELD", "5x3 pixels"),
    ],
)
def test_a_mask_that_cannot_be_used_is_refused(data: bytes, reason: str, value: str) -> None:
    """The error names the field, the value and what to do."""
    with pytest.raises(InvalidArgument) as refusal:
        images.decode_mask(data, (3, 4))

    assert (refusal.value.reason, refusal.value.field, refusal.value.metadata["value"]) == (reason, "mask", value)
    assert refusal.value.metadata["remedy"]


def test_a_mask_is_a_png() -> None:
    """A JPEG would be grey where it was drawn black or white."""
    with pytest.raises(InvalidArgument, match="send a PNG picture"):
        images.decode_mask(as_file(Image.new("L", (4, 3), 255), "JPEG"), (3, 4))
