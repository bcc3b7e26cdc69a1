"""Files that are no picture, or only in part, or far too large, or of a kind that is seldom seen."""

import io
import struct
import zlib
from collections.abc import Iterator
from random import Random

from PIL import Image, PngImagePlugin

KINDS = ("PNG", "JPEG", "WEBP", "AVIF")
MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("F", "I", "LAB"),
    "GIF": ("P",),
    "BMP": ("RGB",),
    "ICO": ("RGBA",),
}
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIZE = (40, 30)
CUTS = (1, 8, 20, 33, 60)
COLOUR_TYPES = {"grey": 0, "colours": 2, "palette": 3, "unknown": 5}


def broken_pictures(draws: Random, *, bombs: bool = True) -> Iterator[tuple[str, bytes]]:
    """Every file of the corpus, with what it is in words; without those that are slow to make, unless `bombs`."""
    yield from _odd_modes()
    for kind in KINDS:
        whole = file_of(Image.effect_noise(SIZE, 60).convert("RGB"), kind)
        for end in (*CUTS, len(whole) // 2, len(whole) - 1):
            yield f"{kind} cut after {end} bytes", whole[:end]
        for number in range(12):
            damaged = bytearray(whole)
            for _ in range(3):
                damaged[draws.randrange(len(damaged))] ^= 1 << draws.randrange(8)
            yield f"{kind} with wrong bits {number}", bytes(damaged)
        yield f"{kind} and noise", whole[:16] + draws.randbytes(500)
        yield f"{kind} twice", whole + whole
    yield from _headers()
    if bombs:
        yield from _bombs()
    for size in (0, 1, 100, 100_000):
        yield f"noise of {size} bytes", draws.randbytes(size)
    yield "a text", b"no picture at all\n" * 50
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


def file_of(image: Image.Image, kind: str, **options: object) -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, rows: bytes, *, bits: int = 8, colours: int = 2, more: bytes = b"") -> bytes:
    """A PNG file with this header, these compressed rows and more parts before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return SIGNATURE + part(b"IHDR", header) + more + part(b"IDAT", rows) + part(b"IEND", b"")


def part(kind: bytes, data: bytes) -> bytes:
    """One part of a PNG file, with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _odd_modes() -> Iterator[tuple[str, bytes]]:
    for kind, modes in MODES.items():
        for mode in modes:
            yield f"{kind} of mode {mode}", file_of(Image.new(mode, SIZE), kind)
    for size in ((1, 1), (1, 500), (500, 1)):
        yield f"PNG of {size[0]}x{size[1]}", file_of(Image.new("RGB", size), "PNG")
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    for kind in ("PNG", "WEBP", "GIF"):
        yield f"{kind} that moves", file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    yield "JPEG of two pictures", file_of(frames[0], "MPO", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 77  # an orientation that is none
    yield "JPEG of a wrong orientation", file_of(frames[0], "JPEG", exif=exif)
    yield "PNG with a wrong colour profile", file_of(frames[0], "PNG", icc_profile=b"no profile" * 20)


def _headers() -> Iterator[tuple[str, bytes]]:
    rows = zlib.compress(bytes(1000))
    for width, height in ((0, 10), (10, 0), (1 << 31, 1), ((1 << 32) - 1, (1 << 32) - 1), (16_385, 1), (8000, 8001)):
        yield f"PNG that says {width}x{height}", png(width, height, rows)
    for bits in (0, 3, 16, 255):
        for name, colours in COLOUR_TYPES.items():
            yield f"PNG of {bits} bits, {name}", png(9, 9, rows, bits=bits, colours=colours)
    yield "PNG without rows", SIGNATURE + part(b"IHDR", bytes(13)) + part(b"IEND", b"")
    yield "PNG with a wrong checksum", png(9, 9, rows)[:-8] + bytes(8)
    yield "PNG of a part that is longer than the file", SIGNATURE + struct.pack(">I", 1 << 30) + b"IHDR" + bytes(40)
    yield "PNG before a JPEG", SIGNATURE + file_of(Image.new("RGB", SIZE), "JPEG")
    yield "JPEG before a PNG", b"\xff\xd8\xff\xe0" + file_of(Image.new("RGB", SIZE), "PNG")
    yield "WebP of no size", b"RIFF\x00\x00\x00\x00WEBPVP8 " + bytes(30)
    yield "AVIF of no boxes", b"\x00\x00\x00\x20ftypavif" + bytes(60)
    yield "HEIC of no boxes", b"\x00\x00\x00\x20ftypheic" + bytes(60)


def _bombs() -> Iterator[tuple[str, bytes]]:
    side = 8000
    yield "PNG of 64 megapixels of nothing", png(side, side, zlib.compress(bytes((3 * side + 1) * side), 9))
    yield "PNG of 400 megapixels", png(20_000, 20_000, zlib.compress(bytes(1 << 20), 9))
    yield "WebP of 16383x1400 black pixels", file_of(Image.new("RGB", (16_383, 1400)), "WEBP", lossless=True, quality=0)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", "x" * (20 << 20), zip=True)
    yield "PNG with a text of 20 MB", file_of(Image.new("RGB", SIZE), "PNG", pnginfo=texts)
    profile = part(b"iCCP", b"name\0\0" + zlib.compress(bytes(50 << 20), 9))
    yield "PNG with a colour profile of 50 MB", png(9, 9, zlib.compress(bytes(300)), more=profile)
