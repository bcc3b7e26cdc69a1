"""PNG files of 16 bits a channel, written and read by the specification alone, for the tests of what keeps them."""

import struct
import zlib

import numpy as np

GREY, COLOUR, GREY_AND_ALPHA, COLOUR_AND_ALPHA = 0, 2, 4, 6
TYPES = {1: GREY, 2: GREY_AND_ALPHA, 3: COLOUR, 4: COLOUR_AND_ALPHA}  # by channels


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(values: np.ndarray, *others: tuple[bytes, bytes]) -> bytes:
    """The file of values (h, w, channels), uint16, with other chunks; rows have filters none, sub and up in turn."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8).astype(int)
    lines = []
    for at, row in enumerate(rows):
        left = np.append(np.zeros(2 * channels, int), row[: -2 * channels])
        before = {0: 0, 1: left, 2: rows[at - 1] if at else 0}
        lines.append(bytes([at % 3]) + ((row - before[at % 3]) % 256).astype(np.uint8).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 16, TYPES[channels], 0, 0, 0)
    parts = [(b"IHDR", header), *others, (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def deep_values(file: bytes) -> np.ndarray:
    """The values (h, w, channels), uint16, of such a file whose rows have no other filters than up."""
    assert 16 == file[24], "it has not 16 bits a channel"
    width, height = struct.unpack(">II", file[16:24])
    channels = next(number for number, kind in TYPES.items() if kind == file[25])
    packed, at = b"", 8
    while at < len(file):
        size, kind = struct.unpack(">I4s", file[at : at + 8])
        data = file[at + 8 : at + 8 + size]
        assert zlib.crc32(kind + data) == struct.unpack(">I", file[at + 8 + size : at + 12 + size])[0]
        packed += data if kind == b"IDAT" else b""
        at += 12 + size
    lines = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 2 * channels * width)
    assert {2} == set(lines[:, 0])
    rows = np.cumsum(lines[:, 1:].astype(np.int64), axis=0) % 256
    return rows.astype(np.uint8).reshape(-1).view(">u2").astype(np.uint16).reshape(height, width, channels)
