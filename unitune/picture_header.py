"""A picture's file by its header: of what kind, and how large. Nothing is decoded, and Pillow is not needed.

Which kind a file is, its own first bytes say, and never what a library calls it.
"""

import codecs
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from unitune.errors import MAX_SHOWN_VALUE, InvalidArgument

MAX_BYTES = 16 * 1024**2  # of a picture's file
MAX_PIXELS = 64_000_000  # of a picture
MAX_SIDE = 16_384  # pixels of a picture's longer side
WEBP_PIXELS = 24_000_000  # of a WebP picture: its decoder holds two canvases and a frame whole
HEIF_PIXELS = 25_000_000  # of an AVIF or HEIC picture: its decoder holds planes, a canvas and its copies whole

# Of a progressive JPEG, which has about ten; each costs a decoder as much time as the whole picture.
MAX_SCANS = 200
PNG, JPEG, WEBP, AVIF, HEIC = "PNG", "JPEG", "WebP", "AVIF", "HEIC"
KINDS = (PNG, JPEG, WEBP, AVIF, HEIC)
OPTIONAL_KINDS = (HEIC,)  # whose reader is an extra
MEDIA_TYPES = {PNG: "image/png", JPEG: "image/jpeg", WEBP: "image/webp", AVIF: "image/avif", HEIC: "image/heic"}

# Bytes for each pixel while `picture_file.check` decodes a file. WebP: two canvases, a frame and its copy of 4 each,
# and the decoder's own. JPEG: coefficients of 2 for each component, should it be a progressive one; its pixels are
# reduced. AVIF and HEIC: planes of up to 16 bits, a canvas of 4 bytes and two copies of it.
_PNG_BYTES, _WEBP_BYTES, _COEFFICIENT_BYTES, _HEIF_BYTES = 4, 20, 2, 20

# First four bytes behind `ftyp`, and those that may stand behind them, of files of the HEIF family.
_HEIF_BRANDS = {b"avif": AVIF, b"avis": AVIF, b"heic": HEIC, b"heix": HEIC, b"heim": HEIC, b"heis": HEIC}
_HEIF_CONTAINERS = (b"mif1", b"msf1", b"miaf")
_MOST_BOXES = 10_000  # of such a file that are looked at

# First bytes of other files, by what people call them.
_OTHERS = (
    (0, b"GIF8", "a GIF"),
    (0, b"%PDF", "a PDF"),
    (0, b"BM", "a BMP"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (4, b"ftyphev", "a HEIC of several pictures"),
    (4, b"ftypmif1", "a HEIF of an unknown kind"),
    (4, b"ftypmsf1", "a HEIF of several pictures"),
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
    checking_bytes: int  # of memory that `picture_file.check` needs at most
    bits: int = 8  # of a channel


def kind_of(data: bytes) -> str:
    """One of KINDS by the file's first bytes, or what else it is, in words with an article, such as `a GIF`."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if data.startswith(b"\xff\xd8\xff"):
        return JPEG
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WEBP
    if heif := _heif_kind(data):
        return heif
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
    return _with_article(kind) if kind in KINDS else kind, f"send a {_listed(kinds)} picture"


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
        width, height, bytes_each, bits = _SIZES[kind](data)
    except (IndexError, StopIteration, struct.error, ValueError):
        raise damaged(field, kind, data) from None
    most = _MOST_PIXELS.get(kind, MAX_PIXELS)
    if max(width, height) > MAX_SIDE:
        remedy = f"send a picture of at most {MAX_SIDE} pixels a side"
        raise refusal(field, "IMAGE_TOO_LARGE", f"{width}x{height} pixels", remedy)
    if width * height > most:
        remedy = f"send a picture of at most {most // 1_000_000} megapixels"
        if most < MAX_PIXELS:
            remedy += f" as {kind}, or of at most {MAX_PIXELS // 1_000_000} as PNG or JPEG"
        raise refusal(field, "IMAGE_TOO_LARGE", f"{width}x{height} pixels", remedy)
    if min(width, height) == 0:
        raise damaged(field, kind, data)
    scans = data.count(b"\xff\xda") if kind == JPEG else 0  # within pixels no such bytes stand
    if scans > MAX_SCANS:
        raise refusal(
            field, "IMAGE_TOO_LARGE", f"{scans} scans", f"save it anew, as a JPEG of at most {MAX_SCANS} scans"
        )
    return Header(kind, width, height, width * height * bytes_each, bits)


def refusal(field: str, reason: str, value: str, remedy: str) -> InvalidArgument:
    """The error for a picture that is not taken."""
    metadata = {"field": field, "value": value, "remedy": remedy}
    return InvalidArgument(f"{field} is {value}: {remedy}", reason=reason, metadata=metadata)


def damaged(field: str, kind: str, data: bytes, error: Exception | None = None) -> InvalidArgument:
    """The error for a file that is not whole. Pillow's own words are in it where they can be shown."""
    why = str(error) if error is not None else ""
    shown = f" ({why})" if why.isprintable() and 0 < len(why) <= MAX_SHOWN_VALUE and " at 0x" not in why else ""
    remedy = f"the file is damaged or cut short{shown}; send it whole"
    return refusal(field, "IMAGE_UNDECODABLE", f"{_with_article(kind)} of {len(data)} bytes", remedy)


def unreadable(field: str, kind: str) -> InvalidArgument:
    """The error for a kind of file whose reader is not installed."""
    extra = "the package of its reader, unitune[heic]" if kind == HEIC else "a Pillow that reads it, 11.3 or newer"
    remedy = f"nothing here reads it; send a JPEG or PNG, or have {extra} installed where the services run"
    return refusal(field, "IMAGE_UNDECODABLE", _with_article(kind), remedy)


Sizes = tuple[int, int, int, int]  # width, height, bytes for each pixel, bits of a channel


def _png_size(data: bytes) -> Sizes:
    if data[12:16] != b"IHDR":
        raise ValueError("no header")
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    return width, height, _PNG_BYTES, max(bits, 8)


def _jpeg_size(data: bytes) -> Sizes:
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
            return width, height, max(components, 1) * _COEFFICIENT_BYTES, 8
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]


def _webp_size(data: bytes) -> Sizes:
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
    return width, height, _WEBP_BYTES, 8


def _heif_kind(data: bytes) -> str | None:
    """AVIF, HEIC, or None, by the brands in the file's first box (ISO/IEC 14496-12, 4.3)."""
    if data[4:8] != b"ftyp":
        return None
    if (first := data[8:12]) not in _HEIF_CONTAINERS:
        return _HEIF_BRANDS.get(first)
    others = [data[at : at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 256), 4)]
    return next((_HEIF_BRANDS[brand] for brand in others if brand in _HEIF_BRANDS), None)


def _heif_size(data: bytes) -> Sizes:
    """Of the largest of the file's items, which may be a few pixels more than the picture: it may be cropped.

    Sides stand in `ispe`, bits in `pixi`, both among the properties of the items (ISO/IEC 23008-12, 6.5).
    """
    found = data, 0, len(data)
    for kind in (b"meta", b"iprp", b"ipco"):
        found = next(box for name, box in _boxes(*found) if name == kind)
        if kind == b"meta":
            found = data, found[1] + 4, found[2]  # version and flags
    items, bits = [], 8
    for name, (_, start, end) in _boxes(*found):
        if name == b"ispe":
            items.append(struct.unpack_from(">II", data, start + 4))
        elif name == b"pixi":
            bits = max(bits, *data[start + 5 : min(start + 9, end)])  # of at most four channels
    width, height = max(items, key=lambda item: item[0] * item[1])
    return width, height, _HEIF_BYTES, bits


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, tuple[bytes, int, int]]]:
    """Name of each box within data[start:end], and where its content is."""
    for _ in range(_MOST_BOXES):
        if start >= end:
            return
        size, name, content = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], start + 8
        if size == 1:
            size, content = struct.unpack_from(">Q", data, content)[0], content + 8
        stop = end if size == 0 else start + size
        if not content <= stop <= end:
            raise ValueError("a box that is longer than what it is in")
        yield name, (data, content, stop)
        start = stop
    raise ValueError("too many boxes")


_SIZES = {PNG: _png_size, JPEG: _jpeg_size, WEBP: _webp_size, AVIF: _heif_size, HEIC: _heif_size}
_MOST_PIXELS = {WEBP: WEBP_PIXELS, AVIF: HEIF_PIXELS, HEIC: HEIF_PIXELS}


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind == AVIF else f"a {kind}"


def _listed(kinds: Collection[str]) -> str:
    *others, last = (kind for kind in kinds if kind not in OPTIONAL_KINDS)
    return f"{', '.join(others)} or {last}" if others else last
