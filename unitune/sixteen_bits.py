"""Values of 16 bits a channel, of which Pillow reads the higher or the lower bytes, and PNG files of them.

Pillow has no colour picture of 16 bits.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unitune import png_text

Values = NDArray[np.uint16]  # (height, width, 3 or 4): RGB or RGBA

FROM_EIGHT = 257  # times a value of 8 bits is the same share of white
_COLOUR, _COLOUR_AND_ALPHA = 2, 6  # PNG's colour types
_UP = b"\2"  # the filter of each row: the difference to the row above
COMPRESSION = 1  # zlib level, as for files of 8 bits
IDAT_BYTES = 1 << 20  # of one chunk of pixels


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
