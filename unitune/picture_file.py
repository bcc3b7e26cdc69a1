"""Picture files: of what kind, how large, and their pixels. The one reader of the services, the client and the bench.

It needs Pillow alone. Limits are checked from the header, before Pillow sees the file; which kind a file is, its own
first bytes say, and never what a library calls it.
"""

import codecs
import io
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from unitune.errors import MAX_SHOWN_VALUE, InvalidArgument

MAX_BYTES = 16 * 1024**2  # of a picture's file
MAX_PIXELS = 64_000_000  # of a picture
MAX_SIDE = 16_384  # pixels of a picture's longer side
WEBP_PIXELS = 24_000_000  # of a WebP picture: its decoder holds two canvases and a frame whole
STRIP_PIXELS = 1 << 20  # that are converted at once

# Of a progressive JPEG, which has about ten; each costs a decoder as much time as the whole picture.
MAX_SCANS = 200
PNG, JPEG, WEBP = "PNG", "JPEG", "WebP"
KINDS = (PNG, JPEG, WEBP)
MEDIA_TYPES = {PNG: "image/png", JPEG: "image/jpeg", WEBP: "image/webp"}

# Pillow's classes themselves: `Image.open` would make another kind of a JPEG with several pictures in it (MPO), which
# many phones and cameras write.
_READERS: dict[str, type[ImageFile.ImageFile]] = {
    PNG: PngImagePlugin.PngImageFile,
    JPEG: JpegImagePlugin.JpegImageFile,
    WEBP: WebPImagePlugin.WebPImageFile,
}
# Bytes for each pixel while a file is checked. WebP: two canvases, a frame and its copy of 4 each, and the decoder's
# own. JPEG: coefficients of 2 for each component, should it be a progressive one; its pixels are reduced.
_PNG_BYTES, _WEBP_BYTES, _COEFFICIENT_BYTES = 4, 20, 2
_DRAFT = 8  # a JPEG is decoded at an eighth of its sides where only its soundness is asked for

EXIF_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)  # orientations that swap the sides

# First bytes of other files, by what people call them.
_OTHERS = (
    (0, b"GIF8", "a GIF"),
    (0, b"%PDF", "a PDF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftypavif", "an AVIF"),
    (4, b"ftypavis", "an AVIF"),
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftyphev", "a HEIC"),
    (4, b"ftypmif1", "a HEIC"),
    (4, b"ftypmsf1", "a HEIC"),
    (4, b"ftypcrx", "a raw CR3"),
    (4, b"ftyp", "a video"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (0, b"\0\0\1\0", "an ICO"),
    (0, b"8BPS", "a PSD"),
    (0, b"qoif", "a QOI"),
    (0, b"PK\3\4", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (8, b"AVI ", "a video"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"<svg", "an SVG"),
    (0, b"<!DOCTYPE html", "an HTML page"),
    (0, b"<html", "an HTML page"),
)


@dataclass(frozen=True)
class Header:
    """What a file's first bytes say, before anything of it is decoded. Sides are as stored, in pixels."""

    kind: str  # one of KINDS
    width: int
    height: int
    checking_bytes: int  # of memory that `check` needs at most


@dataclass(frozen=True)
class PictureInfo:
    """What a whole and sound file holds. Sides in pixels after the orientation that the file asks for."""

    width: int
    height: int
    media_type: str
    warnings: tuple[str, ...] = ()  # of what the file has and no edit keeps, in plain words


def kind_of(data: bytes) -> str:
    """One of KINDS by the file's first bytes, or what else it is, in words with an article, such as `a GIF`."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if data.startswith(b"\xff\xd8\xff"):
        return JPEG
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WEBP
    for place, magic, name in _OTHERS:
        if data.startswith(magic, place):
            return name
    if not data:
        return "an empty file"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:1024])
    except UnicodeDecodeError:
        return "a file of an unknown kind"
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return "a file of an unknown kind"
    return "an SVG" if "<svg" in text else "text"


def other_kind(data: bytes, kinds: Collection[str] = KINDS) -> tuple[str, str] | None:
    """What a file is and what to send instead, in words, if it is none of the kinds; None if it is one."""
    kind = kind_of(data)
    if kind in kinds:
        return None
    return f"a {kind}" if kind in KINDS else kind, f"send a {_listed(kinds)} picture"


def header(
    data: bytes, field: str = "image", kinds: Collection[str] = KINDS, max_bytes: int | None = MAX_BYTES
) -> Header:
    """Check what can be checked before decoding: kind, bytes, sides and pixels.

    Raises InvalidArgument naming the field: IMAGE_UNDECODABLE for another kind of file and for a header that is not
    whole, UPLOAD_TOO_LARGE, IMAGE_TOO_LARGE. A file of ours may be larger than any upload: `max_bytes` None.
    """
    kind = kind_of(data)
    if wrong := other_kind(data, kinds):
        raise refusal(field, "IMAGE_UNDECODABLE", *wrong)
    if max_bytes is not None and len(data) > max_bytes:
        raise refusal(field, "UPLOAD_TOO_LARGE", f"{len(data)} bytes", f"send a file of at most {max_bytes} bytes")
    try:
        width, height, bytes_each = _SIZES[kind](data)
    except (IndexError, struct.error, ValueError):
        raise _damaged(field, kind, data) from None
    most = WEBP_PIXELS if kind == WEBP else MAX_PIXELS
    if max(width, height) > MAX_SIDE:
        remedy = f"send a picture of at most {MAX_SIDE} pixels a side"
        raise refusal(field, "IMAGE_TOO_LARGE", f"{width}x{height} pixels", remedy)
    if width * height > most:
        remedy = f"send a picture of at most {most // 1_000_000} megapixels"
        if kind == WEBP:
            remedy += f" as WebP, or of at most {MAX_PIXELS // 1_000_000} as PNG or JPEG"
        raise refusal(field, "IMAGE_TOO_LARGE", f"{width}x{height} pixels", remedy)
    if min(width, height) == 0:
        raise _damaged(field, kind, data)
    scans = data.count(b"\xff\xda") if kind == JPEG else 0  # within pixels no such bytes stand
    if scans > MAX_SCANS:
        raise refusal(
            field, "IMAGE_TOO_LARGE", f"{scans} scans", f"save it anew, as a JPEG of at most {MAX_SCANS} scans"
        )
    return Header(kind, width, height, width * height * bytes_each)


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

    Raises InvalidArgument naming the field: as `header`, IMAGE_UNDECODABLE for a file that is damaged or cut short, and
    IMAGE_TOO_LARGE when memory does not suffice.
    """
    image: Image.Image = _loaded(data, header(data, field, kinds, max_bytes), field, is_draft=False)
    if _orientation(image) != 1:
        try:
            ImageOps.exif_transpose(image, in_place=True)
        except MemoryError:
            raise _too_much_memory(field, image.size) from None
        except Exception as error:  # EXIF that can be read and not written back
            raise _damaged(field, kind_of(data), data, error) from None
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


def refusal(field: str, reason: str, value: str, remedy: str) -> InvalidArgument:
    """The error for a picture that is not taken."""
    metadata = {"field": field, "value": value, "remedy": remedy}
    return InvalidArgument(f"{field} is {value}: {remedy}", reason=reason, metadata=metadata)


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
        raise _damaged(field, head.kind, data, error) from error


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


def _png_size(data: bytes) -> tuple[int, int, int]:
    """Width, height and bytes for each pixel."""
    if data[12:16] != b"IHDR":
        raise ValueError("no header")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height, _PNG_BYTES


def _jpeg_size(data: bytes) -> tuple[int, int, int]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker")
        marker = data[at + 1]
        if marker == 0xFF:  # a byte that fills up
            at += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these stand alone
            at += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, components = struct.unpack_from(">HHB", data, at + 5)
            return width, height, max(components, 1) * _COEFFICIENT_BYTES
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def _webp_size(data: bytes) -> tuple[int, int, int]:
    chunk = data[12:16]
    if chunk == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif chunk == b"VP8L" and data[20] == 0x2F:
        bits = struct.unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif chunk == b"VP8X" and len(data) >= 30:
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    else:
        raise ValueError("no header")
    return width, height, _WEBP_BYTES


_SIZES = {PNG: _png_size, JPEG: _jpeg_size, WEBP: _webp_size}


def _damaged(field: str, kind: str, data: bytes, error: Exception | None = None) -> InvalidArgument:
    """Pillow's own words are in it where they can be shown."""
    why = str(error) if error is not None else ""
    shown = f" ({why})" if why.isprintable() and 0 < len(why) <= MAX_SHOWN_VALUE and " at 0x" not in why else ""
    remedy = f"the file is damaged or cut short{shown}; send it whole"
    return refusal(field, "IMAGE_UNDECODABLE", f"a {kind} of {len(data)} bytes", remedy)


def _too_much_memory(field: str, size: tuple[int, int]) -> InvalidArgument:
    remedy = "it needs more memory to be decoded than a picture may; send a smaller copy"
    return refusal(field, "IMAGE_TOO_LARGE", f"{size[0]}x{size[1]} pixels", remedy)


def _listed(kinds: Collection[str]) -> str:
    *others, last = kinds
    return f"{', '.join(others)} or {last}" if others else last
