"""Gives freed memory back to the system: glibc keeps what was freed in its heap, and its own limits grow."""

import ctypes
import sys
from functools import cache


def give_back_memory() -> None:
    """Give back what this process has freed; nothing where the C library is not glibc."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> "ctypes._NamedFuncPointer | None":
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
