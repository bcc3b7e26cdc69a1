"""The reader of picture files: whatever bytes come, they are a picture or an error that says what they are."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from tests.colour_profiles import rgb_profile
from tests.picture_files import file_of
from unitune import images, picture_file, picture_header
from unitune.errors import InvalidArgument
from unitune.photograph import Photograph
from unitune.picture_header import AVIF, HEIC, JPEG, PNG, WEBP

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
REASONS = {"IMAGE_UNDECODABLE", "IMAGE_TOO_LARGE", "UPLOAD_TOO_LARGE"}


def noise(size: tuple[int, int] = (20, 12)) -> Image.Image:
    """Random colours, the same every time."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has no pixels."""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))


def webp_header(width: int, height: int) -> bytes:
    """A WebP that announces a size and has no pixels."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + sides


def heif_header(width: int, height: int, brand: bytes = b"heic") -> bytes:
    """A HEIC, or an AVIF, that announces a size and has no pixels."""

    def box(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + name + content

    properties = box(b"ispe", bytes(4) + struct.pack(">II", width, height)) + box(b"pixi", bytes(4) + b"\3\x0a\x0a\x0a")
    about = box(b"meta", bytes(4) + box(b"hdlr", bytes(24)) + box(b"iprp", box(b"ipco", properties)))
    return box(b"ftyp", brand + bytes(4) + b"mif1") + about


def paletted() -> Image.Image:
    """A picture of the second colour of a palette."""
    image = Image.new("P", (20, 12), 1)
    image.putpalette([9, 9, 9, 50, 60, 70])
    return image


def mpo() -> bytes:
    """A JPEG with two pictures in it, as cameras write them, of 20x12 pixels, the first one teal."""
    first, second = Image.new("RGB", (20, 12), "teal"), Image.new("RGB", (20, 12), "red")
    return file_of(first, "MPO", save_all=True, append_images=[second])


def refused(data: bytes) -> InvalidArgument:
    """What a file is refused with."""
    with pytest.raises(InvalidArgument) as refusal:
        picture_file.check(data)
    assert refusal.value.metadata["remedy"] in refusal.value.message
    return refusal.value


def test_a_jpeg_with_several_pictures_is_its_first() -> None:
    """An MPO is a JPEG: its first picture is taken, and no warning speaks of the second one (N1)."""
    assert picture_file.check(mpo()) == picture_file.PictureInfo(20, 12, "image/jpeg")
    assert np.abs(images.decode(mpo())[0, 0].astype(int) - (0, 128, 128)).max() <= 8


def test_any_file_that_pillow_writes_is_a_picture_or_refused_in_words() -> None:
    """Every format in every mode, whole, cut short and damaged, gives pixels or one of three reasons (N1)."""
    Image.init()
    rng, taken, seen = np.random.default_rng(0), 0, 0
    for kind in sorted(Image.SAVE):
        for mode in MODES:
            try:
                whole = file_of(Image.new(mode, (9, 7)), kind)
            except Exception:  # the format does not have the mode, or needs a program
                continue
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), 3):
                damaged[place] ^= 0x5A
            for data in (whole, whole[: len(whole) // 2], bytes(damaged)):
                seen += 1
                try:
                    info, pixels = picture_file.check(data), images.decode(data)
                except InvalidArgument as refusal:
                    assert refusal.reason in REASONS and refusal.field == "image"
                else:
                    taken += 1
                    assert pixels.shape == (info.height, info.width, 3)
    assert taken >= 15 and seen >= 200


def test_random_bytes_are_refused_in_words() -> None:
    """Behind the first bytes of every kind of picture, and behind none."""
    rng = np.random.default_rng(2)
    for start in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe1",
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPVP8L",
    ):
        for _ in range(100):
            assert refused(start + rng.bytes(int(rng.integers(0, 300)))).reason in REASONS


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_any_mode_is_taken(mode: str, progressive: bool) -> None:
    """Grey, colour and print colours, and every byte of them is looked at though the check decodes them reduced."""
    data = file_of(noise((300, 200)).convert(mode), "JPEG", progressive=progressive)

    info = picture_file.check(data)
    assert (info.width, info.height, info.media_type) == (300, 200, "image/jpeg")
    assert [word in info.warnings[0] for word in {"L": ["grey"], "CMYK": ["print"]}.get(mode, [])] == [True] * len(
        info.warnings
    )
    assert images.decode(data).shape == (200, 300, 3)
    assert refused(data[: len(data) * 9 // 10]).reason == "IMAGE_UNDECODABLE"


@pytest.mark.parametrize("chunk", ["zTXt", "iTXt", "tEXt", "after the pixels", "iCCP"])
def test_a_png_with_a_very_long_text_is_opened(chunk: str) -> None:
    """Workflows and profiles of megabytes are not needed: the picture is (N12)."""
    text, about = "w" * (3 << 20), PngImagePlugin.PngInfo()
    if chunk == "iCCP":
        data = file_of(noise(), icc_profile=np.random.default_rng(0).bytes(3 << 20))
    elif chunk == "after the pixels":
        plain = file_of(noise())
        data = plain[:-12] + png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(text.encode())) + plain[-12:]
    elif chunk == "tEXt":
        data = file_of(noise(), pnginfo=[about.add_text(f"text {n}", text) for n in range(4)] and about)
    else:
        add = about.add_itxt if chunk == "iTXt" else about.add_text
        add("workflow", text, zip=True)
        data = file_of(noise(), pnginfo=about)

    info = picture_file.check(data)
    assert (info.width, info.height) == (20, 12)
    assert ["colour profile" in warning for warning in info.warnings] == [True] * (chunk == "iCCP")
    np.testing.assert_array_equal(images.decode(data), np.asarray(noise()))


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (file_of(noise(), "GIF"), "a GIF"),
        (file_of(noise(), "BMP"), "a BMP"),
        (file_of(noise(), "TIFF"), "a TIFF"),
        (file_of(noise(), "PDF"), "a PDF"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0hevcmsf1", "a HEIC of several pictures"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0mif1", "a HEIF of an unknown kind"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        ("Ein Text über nichts.\n".encode(), "text"),
        (b'<?xml version="1.0"?>\n<svg xmlns="..."/>', "an SVG"),
        (b"PK\3\4\0\0", "a ZIP archive"),
        (b"", "an empty file"),
        (b"\x01\x02\x03\xff\xfe", "a file of an unknown kind"),
    ],
)
def test_another_kind_of_file_is_named(data: bytes, kind: str) -> None:
    """The error says what the file is and what is taken, not how long it is (N13)."""
    error = refused(data)

    assert (error.reason, error.metadata["value"]) == ("IMAGE_UNDECODABLE", kind)
    assert error.message == f"image is {kind}: send a PNG, JPEG, WebP or AVIF picture"


def test_a_wrong_kind_is_named_even_of_a_file_that_is_too_large() -> None:
    """A PDF above the limit is a PDF first: a smaller one would not be taken either (N13)."""
    assert refused(b"%PDF-1.7" + bytes(picture_header.MAX_BYTES)).metadata["value"] == "a PDF"


def test_a_damaged_file_is_told_as_such() -> None:
    """Kind, length and why, so that nobody looks for another format (N12)."""
    error = refused(file_of(noise())[:80])

    assert error.metadata["value"] == "a PNG of 80 bytes"
    assert "damaged or cut short" in error.metadata["remedy"] and "0x" not in error.message


@pytest.mark.parametrize(
    ("data", "size", "remedy"),
    [
        (png_header(64_000_000, 1), "64000000x1", "16384"),
        (b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HHB", 1, 16_385, 3) + bytes(9), "16385x1", "16384"),
        (webp_header(16_383, 3_900), "16383x3900", "24 megapixels as WebP"),
        (webp_header(16_777_216, 1), "16777216x1", "16384"),
        (heif_header(8064, 6048), "8064x6048", "25 megapixels as HEIC, or of at most 64 as PNG or JPEG"),
        (heif_header(8064, 6048, b"avif"), "8064x6048", "25 megapixels as AVIF"),
    ],
)  # fmt: skip
def test_sides_and_pixels_are_refused_from_the_header(data: bytes, size: str, remedy: str) -> None:
    """Before a decoder sees the file, for each kind by what its decoder needs (R4)."""
    with pytest.raises(InvalidArgument) as refusal:
        picture_header.header(data)

    assert (refusal.value.reason, refusal.value.metadata["value"]) == ("IMAGE_TOO_LARGE", f"{size} pixels")
    assert remedy in refusal.value.metadata["remedy"]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_its_first_frame_with_a_warning(kind: str) -> None:
    """The other frames are left out, and that is told (N22)."""
    frames = [Image.new("RGB", (20, 12), colour) for colour in ("teal", "red", "blue")]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)

    (warning,) = picture_file.check(data).warnings
    assert "only the first of its 3 frames is used; to edit another one" in warning
    np.testing.assert_array_equal(images.decode(data)[0, 0], (0, 128, 128))


@pytest.mark.parametrize(
    ("image", "options", "is_told"),
    [
        (Image.new("RGBA", (20, 12), (9, 9, 9, 128)), {}, True),
        (Image.new("RGBA", (20, 12), (9, 9, 9, 255)), {}, False),
        (Image.new("LA", (20, 12), (9, 0)), {}, True),
        (Image.new("L", (20, 12), 9), {"transparency": 9}, True),
        (Image.new("I;16", (20, 12), 257 * 9), {"transparency": 257 * 9}, True),
        (paletted(), {"transparency": 1}, True),
        (paletted(), {"transparency": 0}, False),
    ],
)
def test_transparency_is_told(image: Image.Image, options: dict[str, object], is_told: bool) -> None:
    """Only where a pixel is transparent in fact, and then it is white (N23)."""
    data = file_of(image, **options)

    assert is_told == sum("transparent parts" in warning for warning in picture_file.check(data).warnings)
    if is_told and image.mode != "RGBA":
        assert images.decode(data).min() == 255


def test_the_client_and_the_services_see_the_same_pixels() -> None:
    """What the sheet shows is what was edited: deep grey is grey, transparent parts are white, all is upright (N7)."""
    exif = Image.Exif()
    exif[picture_file.EXIF_ORIENTATION] = 6
    files = [
        file_of(Image.fromarray(np.linspace(0, 65535, 240).astype(np.uint16).reshape(12, 20))),
        file_of(Image.new("RGBA", (20, 12), (200, 0, 0, 0))),
        file_of(noise(), exif=exif.tobytes()),
        file_of(noise().convert("P")),
        mpo(),
    ]

    for data in files:
        np.testing.assert_array_equal(np.asarray(picture_file.rgb(data)), images.decode(data))
    assert 100 < images.decode(files[0]).mean() < 155


def test_a_large_picture_in_strips_is_the_same_as_a_small_one() -> None:
    """Strips change no pixel: decoding, resizing in both directions, and grey."""
    pixels = np.asarray(noise((2000, 1500)))

    np.testing.assert_array_equal(images.decode(file_of(Image.fromarray(pixels))), pixels)
    for size in ((100, 130), (1600, 900), (1500, 300)):
        whole = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.LANCZOS)
        back = images.from_model(images.to_model(pixels, size), size)
        np.testing.assert_array_equal(back, np.asarray(whole))


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
needs_heic = pytest.mark.skipif(not picture_file.is_readable(HEIC), reason="unitune[heic] is not installed")


@needs_avif
@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_an_avif_is_taken_upright(orientation: int) -> None:
    """By its bytes, with its own turn, its transparency and its profile."""
    exif = Image.Exif()
    exif[picture_file.EXIF_ORIENTATION] = orientation
    image = Image.new("RGB", (60, 40), (200, 30, 30))
    image.paste((30, 30, 200), (0, 0, 30, 40))
    data = file_of(image, "AVIF", exif=exif.tobytes(), quality=95)

    info, pixels = picture_file.check(data), images.decode(data)

    assert (info.height, info.width) == pixels.shape[:2] == ((40, 60) if orientation == 1 else (60, 40))
    assert (info.media_type, info.warnings) == ("image/avif", ())
    turned = {1: (20, 5), 6: (5, 20), 7: (55, 20)}[orientation]  # where the picture's left side is
    assert pixels[turned][2] > 150


@needs_avif
def test_what_an_avif_has_beside_its_colours_is_told() -> None:
    """Further frames and transparency."""
    frames = [Image.new("RGBA", (20, 12), (9, 99, level, 128)) for level in (0, 100, 200)]
    data = file_of(frames[0], "AVIF", save_all=True, append_images=frames[1:])

    told = picture_file.check(data).warnings

    assert "only the first of its 3 frames" in told[0] and "transparent parts" in told[1] and len(told) == 2


@needs_heic
def test_a_heic_is_taken_where_its_reader_is_installed() -> None:
    """As phones write it: its sides, its turn and its profile."""
    import pillow_heif

    profile = rgb_profile("display_p3")
    image = Image.new("RGB", (60, 40), (200, 30, 30))
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=90, icc_profile=profile)
    data = file.getvalue()

    info, photograph = picture_file.check(data), Photograph.decode(data)

    assert (info.width, info.height, info.media_type, info.warnings) == (60, 40, "image/heic", ())
    assert photograph.profile is not None and photograph.profile.data == profile
    assert photograph.seen[20, 30, 0] > 205  # red of Display P3 is redder than sRGB's


def test_a_heic_without_its_reader_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header is read, and then the error names the extra."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(picture_file, "is_readable", lambda kind: kind != HEIC)

    error = refused(heif_header(60, 40))

    assert (error.reason, error.metadata["value"]) == ("IMAGE_UNDECODABLE", "a HEIC")
    assert "send a JPEG or PNG" in error.message and "unitune[heic]" in error.message


def test_the_header_of_a_heif_tells_sides_and_bits() -> None:
    """Before any decoder sees the file; boxes that do not fit into each other are a damaged file (R4)."""
    head = picture_header.header(heif_header(4032, 3024))
    assert (head.kind, head.width, head.height, head.bits) == (HEIC, 4032, 3024, 10)
    assert picture_header.header(heif_header(60, 40, b"avif")).kind == AVIF

    for data in (heif_header(60, 40)[:-9], heif_header(60, 40).replace(b"ispe", b"abcd"), heif_header(0, 40)):
        with pytest.raises(InvalidArgument, match="damaged or cut short"):
            picture_header.header(data)
    many = struct.pack(">I", 8 * 20_000 + 28) + b"ftypheic" + bytes(16) + (struct.pack(">I", 8) + b"free") * 20_000
    with pytest.raises(InvalidArgument, match="damaged or cut short"):
        picture_header.header(many)


def test_the_kinds_have_one_table() -> None:
    """Every kind that is taken has a reader, a size and a media type; none is looked up by what a library says (N1)."""
    assert set(picture_header.KINDS) == set(picture_header.MEDIA_TYPES) == {PNG, JPEG, WEBP, AVIF, HEIC}
    assert all(".format" not in Path(module.__file__).read_text() for module in (picture_file, picture_header))


def test_a_jpeg_of_very_many_scans_is_refused_before_it_is_decoded() -> None:
    """Each scan costs a decoder as much as the picture: thousands of them are refused by their number (R4)."""
    file = file_of(Image.new("L", (640, 640)), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    scan = file[last:-2]
    with pytest.raises(InvalidArgument) as refused:
        picture_header.header(file[:last] + scan * 4000 + file[-2:])

    assert refused.value.reason == "IMAGE_TOO_LARGE" and "scans" in refused.value.message
    assert picture_header.header(file[:last] + scan * 20 + file[-2:]).width == 640
