"""Picture files and their pixels. The one reader of the services, the client and the bench.

It needs Pillow alone. Kind and limits are checked by `picture_header`, before Pillow sees the file.
"""

import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from unitune.errors import InvalidArgument
from unitune.picture_header import (
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
)

STRIP_PIXELS = 1 << 20  # that are converted at once

# Pillow's classes themselves: `Image.open` would make another kind of a JPEG with several pictures in it (MPO), which
# many phones and cameras write.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    PNG: PngImagePlugin.PngImageFile,
    JPEG: JpegImagePlugin.JpegImageFile,
    WEBP: WebPImagePlugin.WebPImageFile,
}
_DRAFT = 8  # a JPEG is decoded at an eighth of its sides where only its soundness is asked for

EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap the sides


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
    width, height = head.width, head.height
    if _orientation(image) in _TURNED:
        width, height = height, width
    warnings = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        warnings.append(f"the picture is animated: only the first of its {frames} frames is used")
    if _is_transparent(image):
        warnings.append("the picture has transparent parts: they are taken as white, and no result is transparent")
    return PictureInfo(width, height, MEDIA_TYPES[head.kind], tuple(warnings))


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


def flattened(image: Image.Image, mode: str = "RGB", background: str = "white") -> Image.Image:
    """A picture of 8 bits, `RGB` or `L`, its transparent parts over a colour."""
    image = _eight_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(under, image)
    return image if image.mode == mode else image.convert(mode)


def strips(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    """The picture in parts from its top, each after its first row and the one behind its last, so that no copy is made
    of a large picture."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield top, bottom, image.crop((0, top, image.width, bottom))


def rgb(data: bytes, max_bytes: int | None = MAX_BYTES) -> Image.Image:
    """A picture's file as the services see it: upright, RGB, transparent parts over white. Raises as `read` does."""
    image = read(data, max_bytes=max_bytes)
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    whole = Image.new("RGB", image.size)
    for top, _, strip in strips(image):
        whole.paste(flattened(strip), (0, top))
    return whole


def _loaded(data: bytes, head: Header, field: str, *, is_draft: bool) -> ImageFile.ImageFile:
    """The file, decoded. As a draft a JPEG is reduced, whose bytes are all read none the less."""
    try:
        try:
            return _load(data, head, is_draft)
        except ValueError as error:
            if head.kind != PNG or "MAX_TEXT" not in str(error):  # what Pillow allows of a PNG's texts
                raise
            return _load(_without_texts(data), head, is_draft)
    except MemoryError:
        raise _too_much_memory(field, (head.width, head.height)) from None
    except Exception as error:  # Pillow's parsers raise many kinds on hostile bytes, and all mean this
        raise damaged(field, head.kind, data, error) from error


def _load(data: bytes, head: Header, is_draft: bool) -> ImageFile.ImageFile:
    image = _READERS[head.kind](io.BytesIO(data))
    if image.size != (head.width, head.height):
        raise ValueError("its parts differ in size")
    if is_draft and head.kind == JPEG:
        image.draft(None, (max(head.width // _DRAFT, 1), max(head.height // _DRAFT, 1)))
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
