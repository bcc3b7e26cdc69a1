"""Decodes pictures in a process of its own, with a limit of memory: the program of a child of `unitune.picture_check`.

It imports neither asyncio nor gRPC, for it is started while a caller waits.
"""

import json
import os
import resource
import struct
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from unitune import picture_file
from unitune.errors import InvalidArgument
from unitune.picture_header import MAX_BYTES, PNG

DECODING_BYTES = 512 << 20  # of memory for all pictures that are decoded at a time, and for each
FILE_BYTES = 4 * MAX_BYTES  # of a child's memory beside that, for the file itself and its copies

REQUEST = struct.Struct(">BI")  # what is asked, and how long the file is that follows
ANSWER = struct.Struct(">I")  # how long the JSON is that follows
PICTURE, MASK = 0, 1


@dataclass(frozen=True)
class MaskInfo:
    """What a mask's file holds: sides in pixels, and its darkest and brightest grey, 0 to 255."""

    width: int
    height: int
    darkest: int
    brightest: int


def main() -> None:
    """Check the files on standard input until it ends."""
    _limit_memory()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while len(asked := requests.read(REQUEST.size)) == REQUEST.size:
        what, size = REQUEST.unpack(asked)
        told = json.dumps(_answer(what, requests, size)).encode()
        answers.write(ANSWER.pack(len(told)) + told)
        answers.flush()


def _answer(what: int, requests: BinaryIO, size: int) -> dict[str, Any]:
    data = requests.read(size)
    try:
        return asdict(_mask(data) if what == MASK else picture_file.check(data))
    except InvalidArgument as error:
        return {"refused": (error.field, error.reason, error.metadata["value"], error.metadata["remedy"])}


def _mask(data: bytes) -> MaskInfo:
    image = picture_file.read(data, "mask", (PNG,))
    darkest, brightest = 255, 0
    for _, _, strip in picture_file.strips(image):
        low, high = cast(tuple[int, int], picture_file.flattened(strip, "L", "black").getextrema())
        darkest, brightest = min(darkest, low), max(brightest, high)
    return MaskInfo(image.width, image.height, darkest, brightest)


def _limit_memory() -> None:
    """Limit the address space. Then an allocation fails in this child, and the system ends no other process."""
    with suppress(OSError, ValueError):  # without such a limit or /proc, the header's estimate is the only bound
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = taken + DECODING_BYTES + FILE_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
