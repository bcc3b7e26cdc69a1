"""What a photograph's file carries: colour profile, transparency, bits, and what of it an edit and a result have."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.colour_profiles import grey_profile, print_profile, rgb_profile
from tests.deep_pngs import deep_png, deep_values
from tests.picture_files import file_of
from unitune import images, picture_file
from unitune.colour_profile import UnusableProfile, profile_of
from unitune.photograph import Photograph


def colours(size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Random colours, the same every time, of which none is at an end of its range."""
    return Image.fromarray(np.random.default_rng(0).integers(70, 180, (size[1], size[0], 3), dtype=np.uint8))


def in_srgb(file: bytes) -> np.ndarray:
    """What another program shows of a file: its pixels, converted by its own profile."""
    image = Image.open(io.BytesIO(file))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    shown = ImageCms.profileToProfile(image.convert("RGB"), profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert shown is not None
    return np.asarray(shown).astype(int)


@pytest.mark.parametrize("primaries", ["display_p3", "adobe_rgb"])
def test_the_model_sees_a_profiles_colours_and_the_result_has_them(primaries: str) -> None:
    """What was not edited has its own values to the bit, what was edited looks like the edit elsewhere (M41)."""
    own = np.asarray(colours())
    photograph = Photograph.decode(file_of(colours(), icc_profile=rgb_profile(primaries)))
    edited = photograph.seen.copy()
    edited[:10] = (200, 60, 50)

    assert np.abs(photograph.seen.astype(int) - own).max() > 8
    result = photograph.to_own(edited)
    result[10:] = photograph.own[10:]
    file = photograph.file_of(result)

    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file)))[10:], own[10:])
    assert np.abs(in_srgb(file)[:10] - (200, 60, 50)).max() <= 2
    assert np.abs(images.decode(file).astype(int) - edited).max() <= 2


@pytest.mark.parametrize("gamma", ["own", "srgb"])
def test_a_profile_of_srgb_changes_no_value(gamma: str) -> None:
    """It comes back with the result, and the pixels that the model sees are those of the file."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = file_of(colours(), icc_profile=srgb if gamma == "srgb" else None)

    photograph = Photograph.decode(data)

    np.testing.assert_array_equal(photograph.seen, np.asarray(colours()))
    assert photograph.to_own(photograph.seen) is photograph.seen
    result = Image.open(io.BytesIO(photograph.file_of(photograph.own)))
    assert result.info.get("icc_profile") == (srgb if gamma == "srgb" else None)


def test_print_colours_are_read_through_their_profile() -> None:
    """The model sees what the profile says, and the result is in sRGB, which is told (M41)."""
    cyan = Image.new("CMYK", (40, 30), (255, 0, 0, 0))
    data = file_of(cyan, "JPEG", icc_profile=print_profile(), quality=100)

    photograph = Photograph.decode(data)

    naive = np.asarray(cyan.convert("RGB"))[0, 0].astype(int)
    assert np.abs(photograph.seen[0, 0].astype(int) - naive).max() > 30
    assert photograph.profile is None
    assert ["print colours" in warning for warning in picture_file.check(data).warnings] == [True]


def test_a_grey_profile_is_read_and_results_are_in_srgb() -> None:
    """A level of another gamma is another grey; both that it is grey and that it has no RGB profile is told (M41)."""
    data = file_of(Image.new("L", (40, 30), 100), icc_profile=grey_profile(1.8))

    photograph, warnings = Photograph.decode(data), picture_file.check(data).warnings

    assert abs(int(photograph.seen[0, 0, 0]) - 100) > 8 and np.ptp(photograph.seen[0, 0]) <= 1
    assert photograph.profile is None
    assert "the picture is grey" in warnings[0] and "own colour profile" in warnings[1] and len(warnings) == 2


@pytest.mark.parametrize("profile", [b"no profile", rgb_profile("adobe_rgb")[:300], print_profile(), grey_profile()])
def test_a_profile_that_does_not_serve_is_told_and_left_out(profile: bytes) -> None:
    """Damaged, or of other colours than the picture's: the picture is taken as sRGB (M41)."""
    data = file_of(colours(), icc_profile=profile)

    assert ["profile is damaged or not one of its colours" in told for told in picture_file.check(data).warnings] == [
        True
    ]
    np.testing.assert_array_equal(images.decode(data), np.asarray(colours()))
    assert Photograph.decode(data).profile is None


def test_a_profile_that_is_too_large_is_unusable() -> None:
    """Above the limit nothing of it is parsed."""
    image = colours()
    image.info["icc_profile"] = bytes(5 << 20)

    with pytest.raises(UnusableProfile, match="5242880 bytes"):
        profile_of(image)


def test_transparency_comes_back() -> None:
    """What the model saw over white looks the same over white, and what was not edited is the file's own (M41)."""
    rgba = np.dstack([np.asarray(colours()), np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))])
    photograph = Photograph.decode(file_of(Image.fromarray(rgba)))

    unchanged = Image.open(io.BytesIO(photograph.file_of(photograph.own)))
    np.testing.assert_array_equal(np.asarray(unchanged), rgba)

    edited = np.minimum(photograph.seen.astype(int) + 10, 255).astype(np.uint8)
    edited[photograph.opacity < 60] = photograph.seen[photograph.opacity < 60]
    result = photograph.file_of(photograph.to_own(edited))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result)))[..., 3], rgba[..., 3])
    assert np.abs(images.decode(result).astype(int) - edited).max() <= 1


def test_what_is_wholly_transparent_keeps_its_own_colours() -> None:
    """An edit there does not show, and the colours below are not lost."""
    photograph = Photograph.decode(file_of(Image.new("RGBA", (40, 30), (9, 99, 199, 0))))

    np.testing.assert_array_equal(photograph.to_own(np.zeros_like(photograph.seen)), photograph.own)
    assert photograph.own[0, 0].tolist() == [9, 99, 199]


def test_a_profile_and_transparency_together() -> None:
    """White below is sRGB's, and both come back."""
    profile = rgb_profile("adobe_rgb")
    picture = colours().point(lambda level: 100 + level // 4)  # which sRGB has, too
    picture.putalpha(128)
    photograph = Photograph.decode(file_of(picture, icc_profile=profile))

    result = photograph.file_of(photograph.to_own(photograph.seen))

    opened = Image.open(io.BytesIO(result))
    assert opened.mode == "RGBA" and opened.info["icc_profile"] == profile
    assert np.abs(np.asarray(opened).astype(int) - np.asarray(picture)).max() <= 6  # levels over white are half as many
    assert np.abs(images.decode(result).astype(int) - photograph.seen).max() <= 2


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        (Image.new("L", (40, 30), 80), "PNG", "the picture is grey"),
        (Image.new("1", (40, 30)), "PNG", "the picture is grey"),
        (Image.new("RGB", (40, 30), (80, 80, 80)), "JPEG", "the picture is grey"),
        (colours().quantize(8), "PNG", "the picture has a palette"),
    ],
)
def test_results_of_another_form_are_told(image: Image.Image, kind: str, words: str) -> None:
    """Each with a remedy, and the result is RGB."""
    data = file_of(image, kind)

    assert [words in warning and "; " in warning for warning in picture_file.check(data).warnings] == [True]
    photograph = Photograph.decode(data)
    assert Image.open(io.BytesIO(photograph.file_of(photograph.own))).mode == "RGB"
    np.testing.assert_array_equal(photograph.own, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def deep(channels: int, size: tuple[int, int] = (30, 40)) -> np.ndarray:
    """Random values of 16 bits, the same every time."""
    return np.random.default_rng(1).integers(0, 65536, (*size, channels)).astype(np.uint16)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_told(channels: int) -> None:
    """Results keep them where a mask keeps pixels; those of grey with transparency have 8."""
    (told,) = (one for one in picture_file.check(deep_png(deep(channels))).warnings if "16 bits a channel" in one)

    assert ("comes back with 8; " in told, "a mask keeps have their own 16; " in told) == (channels == 2, channels != 2)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("primaries", [None, "display_p3"])
def test_a_picture_of_sixteen_bits_comes_back_to_the_bit(channels: int, primaries: str | None) -> None:
    """Colours and transparency, in the file's own profile; a profile of grey or a transparent colour leaves 8 bits. The
    same values give the same file, which Pillow reads, too."""
    values = deep(channels)
    profile = rgb_profile(primaries) if primaries and channels > 1 else None
    packed = [(b"iCCP", b"own\0\0" + zlib.compress(profile))] if profile else []

    photograph = Photograph.decode(deep_png(values, *packed))
    result = photograph.file_of(photograph.kept)

    wanted = np.repeat(values, 3, axis=2) if channels == 1 else values
    np.testing.assert_array_equal(deep_values(result), wanted)
    opened = Image.open(io.BytesIO(result))
    assert opened.info.get("icc_profile") == profile
    if channels > 1:
        np.testing.assert_array_equal(np.asarray(opened), values >> 8)
    assert result == photograph.file_of(photograph.kept)
    part = photograph.crop(slice(5, 20), slice(10, 30))
    np.testing.assert_array_equal(deep_values(part.file_of(part.kept)), wanted[5:20, 10:30])
    assert photograph.own.dtype == np.uint8 and 8 == photograph.file_of(photograph.own)[24]


def test_sixteen_bits_that_no_result_can_have_are_eight() -> None:
    """Of a grey profile, of a colour that stands for transparency, and in another size."""
    grey = [(b"iCCP", b"own\0\0" + zlib.compress(grey_profile()))]
    transparent = [(b"tRNS", deep(3)[0, 0].astype(">u2").tobytes())]
    for photograph in (
        Photograph.decode(deep_png(deep(1), *grey)),
        Photograph.decode(deep_png(deep(3), *transparent)),
        Photograph.decode(deep_png(deep(3))).resized((60, 80)),
    ):
        assert photograph.kept is photograph.own


def test_a_turned_picture_of_sixteen_bits_is_kept_upright() -> None:
    """Both bytes of every value are turned alike."""
    turned = Image.Exif()
    turned[picture_file.EXIF_ORIENTATION] = 6  # to be turned clockwise

    photograph = Photograph.decode(deep_png(deep(3), (b"eXIf", turned.tobytes().removeprefix(b"Exif\0\0"))))

    np.testing.assert_array_equal(photograph.kept, np.rot90(deep(3), -1))
    np.testing.assert_array_equal(photograph.seen, np.rot90(deep(3), -1) >> 8)


def test_a_little_colour_is_not_grey() -> None:
    """One stroke of red in a grey photograph is colour."""
    image = Image.new("RGB", (400, 300), (80, 80, 80))
    image.paste((200, 40, 40), (200, 100, 208, 108))

    assert picture_file.check(file_of(image, "JPEG", quality=95)).warnings == ()


def test_nothing_else_of_the_file_is_in_a_result() -> None:
    """Neither place nor camera nor the small picture that shows it unedited."""
    exif = Image.Exif()
    exif[0x010F] = "A Camera Maker"
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 14.0)
    data = file_of(colours(), "JPEG", exif=exif.tobytes(), comment=b"at home")
    assert b"A Camera Maker" in data

    photograph = Photograph.decode(data)
    result = photograph.file_of(photograph.own)

    assert b"A Camera Maker" not in result and b"eXIf" not in result and b"at home" not in result
    assert not Image.open(io.BytesIO(result)).getexif()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_turned_photograph_comes_back_upright(kind: str) -> None:
    """Its own pixels and its transparency are turned as what the model sees is, and its profile stays (M41)."""
    exif, picture = Image.Exif(), colours()
    exif[picture_file.EXIF_ORIENTATION] = 6
    if kind != "JPEG":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(picture, kind, exif=exif.tobytes(), icc_profile=rgb_profile("adobe_rgb"), **options)

    photograph = Photograph.decode(data)
    result = Image.open(io.BytesIO(photograph.file_of(photograph.own)))

    stored = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(np.asarray(result), np.rot90(np.asarray(stored), -1))
    assert photograph.seen.shape == (40, 30, 3) and not result.getexif()
    assert result.info["icc_profile"] == rgb_profile("adobe_rgb")
