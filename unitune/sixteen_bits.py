"""PNG files of 16 bits a channel: all of their values, where Pillow reads the higher half, and files of such values.

Pillow has no colour picture of 16 bits, but it can be told to read either byte of each value. A picture is read twice.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from unitune import png_text

Values = NDArray[np.uint16]  # (height, width, 3 or 4): RGB or RGBA

FROM_EIGHT = 257  # times a value of 8 bits is the same share of white
GREY = "I;16"  # Pillow's mode of grey of 16 bits, which has all of them
# How Pillow unpacks the higher bytes of a PNG's values, which come first -> how the lower ones.
_LOWER = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
_GREY, _COLOUR, _COLOUR_AND_ALPHA = 0, 2, 6  # PNG's colour types
_DEPTH_AT, _TYPE_AT = 24, 25  # in a PNG's file
_UP = b"\2"  # the filter of each row: the difference to the row above
COMPRESSION = 1  # zlib level, as for files of 8 bits
IDAT_BYTES = 1 << 20  # of one chunk of pixels


def are_read(png: bytes, image: Image.Image) -> bool:
    """Whether the values of a PNG, which Pillow has opened as `image`, have 16 bits that are read here.

    Grey with transparency is not, and neither is a colour that stands for transparency.
    """
    types = (_GREY, _COLOUR, _COLOUR_AND_ALPHA)
    return png[_DEPTH_AT] == 16 and png[_TYPE_AT] in types and "transparency" not in image.info


def take_lower_bytes(image: ImageFile.ImageFile) -> None:
    """Have a picture of colours that is opened, and not decoded, decode into the lower bytes of its values."""
    image.tile = [tile._replace(args=_LOWER[str(tile.args)]) for tile in image.tile]


def values_of(higher: Image.Image, lower: Image.Image | None) -> Values:
    """RGB, or RGBA, of a strip that was decoded into its higher bytes, and of the same strip's lower ones.

    `lower` is None for grey, whose values are all in `higher`.
    """
    if lower is None:
        return np.repeat(np.asarray(higher).astype(np.uint16)[..., None], 3, axis=2)
    high, low = np.asarray(higher).astype(np.uint16), np.asarray(lower)
    return high << 8 | low


def encoded(values: Values, opacity: NDArray[np.uint16] | None, icc_profile: bytes | None = None) -> bytes:
    """A PNG file of RGB values, and of an opacity (height, width); the same values give the same bytes."""
    height, width, _ = values.shape
    colour_type = _COLOUR if opacity is None else _COLOUR_AND_ALPHA
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))]
    if icc_profile is not None:
        chunks.append(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc_profile)))
    chunks += [_chunk(b"IDAT", piece) for piece in _packed(values, opacity)]
    return b"".join([png_text.SIGNATURE, *chunks, _chunk(b"IEND", b"")])


def _packed(values: Values, opacity: NDArray[np.uint16] | None) -> Iterator[bytes]:
    packer, above, waiting = zlib.compressobj(COMPRESSION), np.uint8(0), b""
    for at, row in enumerate(values):
        if opacity is not None:
            row = np.column_stack([row, opacity[at]])
        line = row.astype(">u2").reshape(-1).view(np.uint8)
        waiting += packer.compress(_UP + (line - above).tobytes())
        above = line
        if len(waiting) >= IDAT_BYTES:
            yield waiting
            waiting = b""
    yield waiting + packer.flush()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
