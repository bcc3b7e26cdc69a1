"""Picture files and their pixels. The one reader of the services, the client and the bench.

It needs Pillow alone. Kind and limits are checked by `picture_header`, before Pillow sees the file.
"""

import importlib.util
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from PIL import (
    AvifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from unitune.colour_profile import ColourProfile, UnusableProfile, largest_difference, profile_of, usable_profile_of
from unitune.errors import InvalidArgument
from unitune.picture_header import (
    AVIF,
    HEIC,
    JPEG,
    KINDS,
    MAX_BYTES,
    MEDIA_TYPES,
    PNG,
    WEBP,
    Header,
    damaged,
    header,
    kind_of,
    refusal,
    unreadable,
)

STRIP_PIXELS = 1 << 20  # that are converted at once

# Pillow's classes themselves: `Image.open` would make another kind of a JPEG with several pictures in it (MPO), which
# many phones and cameras write.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    PNG: PngImagePlugin.PngImageFile,
    JPEG: JpegImagePlugin.JpegImageFile,
    WEBP: WebPImagePlugin.WebPImageFile,
    AVIF: AvifImagePlugin.AvifImageFile,
}
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has memory of its own
_DRAFT = 8  # a JPEG is decoded at an eighth of its sides where only its soundness is asked for

EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap the sides

GREY_16_BITS = "I;16"  # the one mode of Pillow that has all 16 bits of a value
# Of colours it unpacks the higher byte of each, which comes first in a PNG; and this is how the lower ones come out.
_LOWER_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
_READ_WITH_16_BITS = (0, 2, 6)  # PNG's colour types: grey, colour, colour with opacity
_PNG_DEPTH_AT, _PNG_TYPE_AT = 24, 25  # in the file

_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16")
GREY_LEVELS = 2  # of 255 by which the channels of a grey picture may differ, as those of a JPEG do
_REDUCED = 4  # times, a picture of colours is looked at for them


@dataclass(frozen=True)
class PictureInfo:
    """What a whole and sound file holds. Sides in pixels after the orientation that the file asks for."""

    width: int
    height: int
    media_type: str
    warnings: tuple[str, ...] = ()  # of what the file has and no edit keeps, in plain words


def check(data: bytes, field: str = "image", kinds: Collection[str] = KINDS) -> PictureInfo:
    """Decode a file as a whole, in as little memory as can be, and tell what it holds. Raises as `read` does."""
    head = header(data, field, kinds)
    image = _loaded(data, head, field, is_draft=True)
    width, height = (head.width, head.height) if head.kind == JPEG else image.size
    if _orientation(image) in _TURNED:
        width, height = height, width
    return PictureInfo(width, height, MEDIA_TYPES[head.kind], tuple(_warnings(image, head, data)))


def read(
    data: bytes, field: str = "image", kinds: Collection[str] = KINDS, max_bytes: int | None = MAX_BYTES
) -> Image.Image:
    """A decoded picture, upright; of an animated one the first frame. Its mode is the file's: see `flattened`.

    Raises InvalidArgument naming the field: as `picture_header.header`, IMAGE_UNDECODABLE for a file that is damaged or
    cut short, and IMAGE_TOO_LARGE when memory does not suffice.
    """
    image: Image.Image = _loaded(data, header(data, field, kinds, max_bytes), field, is_draft=False)
    if _orientation(image) != 1:
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except MemoryError:
            raise _too_much_memory(field, image.size) from None
        except Exception as error:  # EXIF that can be read and not written back
            raise damaged(field, kind_of(data), data, error) from None
    return image


def read_lower_bytes(data: bytes, field: str = "image") -> Image.Image:
    """The same of a PNG of 16 bits of colour, with the lower byte of each value in place of the higher one."""
    lower = _loaded(data, header(data, field), field, is_draft=False, is_lower=True)
    if _orientation(lower) != 1:
        ImageOps.exif_transpose(lower, in_place=True)
    return lower


def keeps_16_bits(data: bytes, image: Image.Image, profile: ColourProfile | None) -> bool:
    """Whether results of a PNG, which is decoded, can have its own values of 16 bits."""
    if kind_of(data) != PNG or data[_PNG_DEPTH_AT] != 16 or data[_PNG_TYPE_AT] not in _READ_WITH_16_BITS:
        return False
    # A colour that stands for transparency is one of 16 bits, too.
    return "transparency" not in image.info and (profile is None or profile.is_kept)


def flattened(
    image: Image.Image, mode: str = "RGB", background: str = "white", profile: ColourProfile | None = None
) -> Image.Image:
    """A picture of 8 bits, `RGB` or `L`, its transparent parts over a colour; in sRGB if its profile is given."""
    image = _eight_bit(image)
    if image.has_transparency_data:
        above = image.convert("RGBA")
        if profile is not None:
            opacity = above.getchannel("A")
            above = profile.to_srgb(image)
            above.putalpha(opacity)
        under = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(under, above)
    elif profile is not None:
        image = profile.to_srgb(image)
    return image if image.mode == mode else image.convert(mode)


def own_colours(image: Image.Image, profile: ColourProfile | None) -> Image.Image:
    """An RGB picture of 8 bits without its transparency: in its own profile if results are in that, else in sRGB."""
    image = _eight_bit(image)
    if profile is not None and not profile.is_kept:
        return profile.to_srgb(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def opacity(image: Image.Image) -> Image.Image | None:
    """Its transparency, of mode L: 255 is opaque. None for a picture without."""
    return _eight_bit(image).convert("RGBA").getchannel("A") if image.has_transparency_data else None


def strips(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """The picture in parts from its top, each after its first row and the one behind its last, so that no copy is made
    of a large picture."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield top, bottom, image.crop((0, top, image.width, bottom))


def rgb(data: bytes, max_bytes: int | None = MAX_BYTES) -> Image.Image:
    """A picture's file as the services see it: upright, in sRGB, transparent parts over white. Raises as `read`."""
    image = read(data, max_bytes=max_bytes)
    profile = usable_profile_of(image)
    if image.mode == "RGB" and not image.has_transparency_data and (profile is None or profile.is_srgb):
        return image
    whole = Image.new("RGB", image.size)
    for top, _, strip in strips(image):
        whole.paste(flattened(strip, profile=profile), (0, top))
    return whole


def is_readable(kind: str) -> bool:
    """Whether a reader for this kind of file is installed."""
    if kind == HEIC:
        return importlib.util.find_spec("pillow_heif") is not None
    return kind != AVIF or bool(AvifImagePlugin.SUPPORTED)


def _reader(kind: str) -> type[ImageFile.ImageFile]:
    if kind != HEIC:
        return _READERS[kind]
    import pillow_heif  # an extra, and slow to import

    pillow_heif.options.THUMBNAILS = pillow_heif.options.DEPTH_IMAGES = pillow_heif.options.AUX_IMAGES = False
    pillow_heif.options.DECODE_THREADS = 1
    reader: type[ImageFile.ImageFile] = pillow_heif.HeifImageFile
    return reader


def _warnings(image: Image.Image, head: Header, data: bytes) -> Iterator[str]:
    """What of the file no edit uses or no result has, each with a remedy."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        yield (
            f"the picture is animated: only the first of its {frames} frames is used; to edit another one, save that "
            "as a picture of its own"
        )
    if _is_transparent(image):
        yield (
            "the picture has transparent parts: it is edited over white, and results keep its transparency, so that "
            "what an edit paints there does not show; put the picture on a background first if it should"
        )
    if keeps_16_bits(data, image, usable_profile_of(image)):
        yield (
            "the picture has 16 bits a channel: what is edited comes back with the detail of 8, and only pixels that a "
            "mask keeps have their own 16; give a mask where 8 are too few elsewhere, and keep the original"
        )
    elif head.bits > 8:
        yield (
            f"the picture has {head.bits} bits a channel: it is edited and comes back with 8; keep the original, and "
            "put the edited part into that one where 8 are too few"
        )
    if image.mode == "CMYK":
        yield (
            "the picture is in print colours (CMYK): results are in sRGB, and no pixel keeps its own values; convert "
            "it to RGB yourself if its colours must be exact"
        )
    elif image.mode in ("P", "PA"):
        yield (
            "the picture has a palette: results are in full colour; reduce them to a palette afterwards if you need one"
        )
    if _is_grey(image):
        yield (
            "the picture is grey: edits are in colour, and so are results; ask for a black and white photograph in the "
            "prompt, or make the result grey afterwards"
        )
    try:
        profile = profile_of(image)
    except UnusableProfile:
        yield (
            "the picture's colour profile is damaged or not one of its colours: it is taken as sRGB; save the picture "
            "anew as sRGB if its colours look wrong"
        )
        return
    if profile is not None and not profile.is_kept and image.mode != "CMYK":
        yield (
            "results cannot be in the picture's own colour profile: they are in sRGB, and no pixel keeps its own "
            "values; convert it to an RGB profile yourself if they must be exact"
        )


def _is_grey(image: Image.Image) -> bool:
    """Whether it has no colour."""
    if image.mode in _GREY_MODES:
        return True
    if image.mode == "CMYK":
        return False
    for _, _, strip in strips(image):
        bands = strip.convert("RGB").reduce(_REDUCED).split()
        if any(largest_difference(bands[0], band) > GREY_LEVELS for band in bands[1:]):
            return False
    return True


def _loaded(data: bytes, head: Header, field: str, *, is_draft: bool, is_lower: bool = False) -> ImageFile.ImageFile:
    """The file, decoded. As a draft a JPEG is reduced, whose bytes are all read none the less. `is_lower` takes the
    lower bytes of values of 16 bits."""
    if not is_readable(head.kind):
        raise unreadable(field, head.kind)
    try:
        try:
            return _load(data, head, is_draft, is_lower)
        except ValueError as error:
            if head.kind != PNG or "MAX_TEXT" not in str(error):  # what Pillow allows of a PNG's texts
                raise
            image = _load(_without_texts(data), head, is_draft, is_lower)
            if b"iCCP" in data[: data.index(b"IDAT")]:
                image.info["icc_profile"] = None  # there is one, and it is not read
            return image
    except MemoryError:
        raise _too_much_memory(field, (head.width, head.height)) from None
    except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes, and all mean this
        raise damaged(field, head.kind, data, error) from error


def _load(data: bytes, head: Header, is_draft: bool, is_lower: bool) -> ImageFile.ImageFile:
    image = _reader(head.kind)(io.BytesIO(data))
    if head.kind in (AVIF, HEIC):  # of which the header knows no more than the most
        is_as_told = image.width * image.height <= head.width * head.height
    else:
        is_as_told = image.size == (head.width, head.height)
    if not is_as_told:
        raise ValueError("its parts differ in size")
    if is_draft and head.kind == JPEG:
        image.draft(None, (max(head.width // _DRAFT, 1), max(head.height // _DRAFT, 1)))
    if is_lower:
        image.tile = [tile._replace(args=_LOWER_BYTES[str(tile.args)]) for tile in image.tile]
    image.load()
    _orientation(image)  # EXIF is read at the first question, and may be damaged
    return image


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(EXIF_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    for _, _, strip in strips(image):
        extrema = _eight_bit(strip).convert("RGBA").getchannel("A").getextrema()
        if extrema[0] != 255:
            return True
    return False


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as 8 bits; Pillow's own conversion would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    scaled = image.point(lambda level: level * (1 / 257) + 0.5).convert("L")
    transparent = scaled.info.get("transparency")
    if isinstance(transparent, int):
        scaled.info["transparency"] = round(transparent / 257)
    return scaled


def _without_texts(data: bytes) -> bytes:
    """A PNG without its texts and colour profile, which no edit reads and which may be of any size."""
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _too_much_memory(field: str, size: tuple[int, int]) -> InvalidArgument:
    remedy = "it needs more memory to be decoded than a picture may; send a smaller copy"
    return refusal(field, "IMAGE_TOO_LARGE", f"{size[0]}x{size[1]} pixels", remedy)
