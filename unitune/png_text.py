"""Writes and reads the texts of a PNG file without decoding its pixels (PNG specification, 11.3.4).

A text is written like Pillow does: as tEXt if Latin-1 can hold it, else as iTXt in UTF-8, not compressed. Reading
accepts tEXt, zTXt and iTXt.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = len(SIGNATURE) + 12 + 13  # signature and IHDR: what `with_texts` needs of a file
MAX_TEXT_BYTES = 1 << 20  # of one text when reading, unpacked; longer ones come from other programs
MAX_CHUNKS = 10_000  # before the end, without those of the pixels
MAX_KEYWORD_BYTES = 79


class NotPng(ValueError):
    """The bytes are not a PNG file, or a damaged one; the message says which."""


def with_texts(file: bytes, texts: Mapping[str, str]) -> bytes:
    """The file with texts by keyword right after its header. The first 33 bytes of `file` are enough.

    Raises NotPng if it does not begin like a PNG file, and ValueError for an invalid keyword.
    """
    size_of(file)
    chunks = b"".join(_chunk(keyword, text) for keyword, text in texts.items())
    return file[:HEADER_BYTES] + chunks + file[HEADER_BYTES:]


def size_of(file: bytes) -> tuple[int, int]:
    """Width and height in pixels. The first 33 bytes of `file` are enough. Raises NotPng."""
    if not (file.startswith(SIGNATURE) and file[12:16] == b"IHDR" and len(file) >= HEADER_BYTES):
        raise NotPng("it does not begin as a PNG file does")
    width, height = struct.unpack(">II", file[16:24])
    return width, height


def texts_of(file: bytes) -> dict[str, str]:
    """The texts by keyword; the first one if a keyword comes twice.

    Texts longer than MAX_TEXT_BYTES, and unreadable ones, are left out. Raises NotPng for a file that is not PNG, is
    cut short, or has a wrong checksum outside its pixels.
    """
    texts: dict[str, str] = {}
    for kind, data in _chunks(file):
        if kind in (b"tEXt", b"zTXt", b"iTXt") and (found := _text(kind, data)) is not None:
            texts.setdefault(*found)
    return texts


def _chunk(keyword: str, text: str) -> bytes:
    key = keyword.encode("latin-1")
    if not 1 <= len(key) <= MAX_KEYWORD_BYTES or not keyword.isprintable() or keyword != keyword.strip():
        raise ValueError(f"{keyword!r} is no keyword of a PNG text")
    text = text.replace("\0", "")
    try:
        kind, data = b"tEXt", key + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        # Not compressed, no language, keyword not translated. Half of a surrogate pair has no UTF-8.
        kind, data = b"iTXt", key + b"\0\0\0\0\0" + text.encode("utf-8", "replace")
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _chunks(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of each chunk, except the pixels'."""
    size_of(file)
    place, number = len(SIGNATURE), 0
    while True:
        if place + 12 > len(file):
            raise NotPng("the file is cut short")
        length, kind = struct.unpack(">I4s", file[place : place + 8])
        end = place + 12 + length
        if end > len(file):
            raise NotPng("the file is cut short")
        if kind == b"IEND":
            return
        if kind != b"IDAT":
            number += 1
            if number > MAX_CHUNKS:
                raise NotPng("it has too many parts")
            data = file[place + 8 : end - 4]
            if zlib.crc32(kind + data) != struct.unpack(">I", file[end - 4 : end])[0]:
                raise NotPng("the file is damaged: a checksum is wrong")
            yield kind, data
        place = end


def _text(kind: bytes, data: bytes) -> tuple[str, str] | None:
    """Keyword and text of a chunk; None if it is unreadable or too long."""
    keyword, _, rest = data.partition(b"\0")
    try:
        if kind == b"iTXt":
            is_packed, rest = rest[0], rest[2:]  # the byte between is the method of packing, of which there is one
            rest, encoding = rest.split(b"\0", 2)[2], "utf-8"
        else:
            is_packed, encoding = kind == b"zTXt", "latin-1"
            rest = rest[1:] if is_packed else rest
        text = _unpacked(rest) if is_packed else rest
        return (keyword.decode("latin-1"), text.decode(encoding)) if len(text) <= MAX_TEXT_BYTES else None
    except (IndexError, ValueError, zlib.error):
        return None


def _unpacked(data: bytes) -> bytes:
    """Unpack at most MAX_TEXT_BYTES. Raises ValueError for more, and for data that are cut short."""
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(data, MAX_TEXT_BYTES)
    if not unpacking.eof:
        raise ValueError("too long, or cut short")
    return text
