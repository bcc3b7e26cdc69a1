"""Gives freed memory back to the system. glibc keeps freed blocks in its heap, and takes ever larger ones from there.

Both functions do nothing where the C library is not glibc.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache

M_MMAP_THRESHOLD = -3  # of malloc.h
LARGE_BLOCK_BYTES = 64 << 10


def map_large_blocks() -> None:
    """Have large blocks of this process mapped one by one from now on, so that freeing one gives it back at once.

    It costs a tuner's updates a tenth of their time, so it is for programs that read and replace weights. The
    environment's MALLOC_MMAP_THRESHOLD_ goes first.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def give_back_memory() -> None:
    """Give back what this process has freed."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


@cache
def _of_glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
