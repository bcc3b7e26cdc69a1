"""The memory that is free, and memory that is given back to the system. glibc keeps freed blocks in its heap, and takes
ever larger ones from there: giving back does nothing where the C library is another one.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
# glibc raises its thresholds up to these as blocks are freed, unless they were set.
OWN_THRESHOLDS = {M_TRIM_THRESHOLD: 64 << 20, M_MMAP_THRESHOLD: 32 << 20}
LARGE_BLOCK_BYTES = 64 << 10
UNLIMITED_BYTES = 1 << 60  # the first version of control groups writes a number near 2^63 for no limit


_mapping: set[int] = set()  # the threshold of `map_large_blocks` while it is in force


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """What this process may still take: what the machine has available, and less where a control group limits it, as a
    container's does. Files in memory count as free. None where the system does not tell. `root` has /proc and /sys."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None
    return max(0, min([available, *_left_in_groups(root)]))


def map_large_blocks(least_bytes: int = LARGE_BLOCK_BYTES) -> None:
    """Have large blocks of this process mapped one by one from now on, so that freeing one gives it back at once.

    It costs a tuner's updates a tenth of their time, so it is for programs that read and replace weights. The
    environment's MALLOC_MMAP_THRESHOLD_ goes first.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        mallopt(M_MMAP_THRESHOLD, least_bytes)
        _mapping.add(least_bytes)


def keep_large_blocks() -> None:
    """Undo `map_large_blocks`: freed blocks stay with the process, for the next ones."""
    mallopt = _of_glibc("mallopt")
    if mallopt is not None and _mapping:
        for parameter, least_bytes in OWN_THRESHOLDS.items():
            mallopt(parameter, least_bytes)
        _mapping.clear()


def give_back_memory() -> None:
    """Give back what this process has freed."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What each control group with a limit leaves, of those that this process is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":  # version 2; in a mixed system it has no memory
            yield from _left_below(root / "sys/fs/cgroup", place, "memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes"
            yield from _left_below(root / "sys/fs/cgroup/memory", place, *names, "total_")


def _left_below(top: Path, place: str, limit_file: str, used_file: str, prefix: str) -> Iterator[int]:
    """Of a group and those that it is in. A container may have its own group at `top`, whatever its place is called."""
    group = top / place.strip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(top):
            return
        try:
            limit = (folder / limit_file).read_text().strip()
            used = int((folder / used_file).read_text())
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        files = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        if limit != "max" and int(limit) < UNLIMITED_BYTES:
            yield int(limit) - used + files


@cache
def _of_glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return getattr(library, name) if hasattr(library, "gnu_get_libc_version") else None
