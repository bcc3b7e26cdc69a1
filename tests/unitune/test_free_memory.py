"""The memory that a process may still take, as the kernel's files tell it."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from unitune.free_memory import free_memory_bytes

MEMINFO = "MemTotal:       24684092 kB\nMemFree:         4267844 kB\nMemAvailable:    5000000 kB\n"
AVAILABLE = 5_000_000 << 10
MB = 1 << 20
STAT = f"anon {300 * MB}\nfile {200 * MB}\nactive_file {150 * MB}\ninactive_file {40 * MB}\n"
OLD_STAT = f"cache 0\ntotal_active_file {150 * MB}\ntotal_inactive_file {40 * MB}\n"
NO_LIMIT = 9223372036854771712


def system(root: Path, files: dict[str, str]) -> Path:
    """A root folder with these files."""
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(folder: str, limit: object, used: int = 500 * MB) -> dict[str, str]:
    """The files of a group of the second version."""
    found = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": STAT}
    return {f"sys/fs/cgroup/{folder}{name}": text for name, text in found.items()}


def old_group(folder: str, limit: object, used: int = 500 * MB) -> dict[str, str]:
    """The files of a group of the first version."""
    found = {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{used}\n", "memory.stat": OLD_STAT}
    return {f"sys/fs/cgroup/memory/{folder}{name}": text for name, text in found.items()}


LEFT = 1000 * MB - 500 * MB + 190 * MB  # of a limit of 1000 MB: files in memory can be dropped


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, AVAILABLE),
        ({"proc/self/cgroup": "0::/a/b\n", **group("a/b/", "max")}, AVAILABLE),
        ({"proc/self/cgroup": "0::/a/b\n", **group("a/b/", 1000 * MB)}, LEFT),
        ({"proc/self/cgroup": "0::/a/b\n", **group("a/b/", "max"), **group("a/", 1000 * MB)}, LEFT),
        ({"proc/self/cgroup": "0::/a\n", **group("a/", 90_000 * MB)}, AVAILABLE),
        ({"proc/self/cgroup": "0::/\n", **group("", 1000 * MB)}, LEFT),  # a container with groups of its own
        ({"proc/self/cgroup": "0::/elsewhere\n", **group("", 1000 * MB)}, LEFT),  # one without
        ({"proc/self/cgroup": "0::/a\n", **group("a/", 1000 * MB, used=2000 * MB)}, 0),
        ({"proc/self/cgroup": "4:cpu,memory:/a\n1:name=systemd:/\n0::/\n", **old_group("a/", 1000 * MB)}, LEFT),
        ({"proc/self/cgroup": "4:memory:/a\n", **old_group("a/", NO_LIMIT)}, AVAILABLE),
        ({"proc/self/cgroup": "4:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "?"}, AVAILABLE),
    ],
)
def test_the_least_of_machine_and_groups_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """A limit of a group, or of one that it is in, leaves what is not used; both versions of groups are read."""
    assert expected == free_memory_bytes(system(tmp_path, files))


def test_a_system_that_does_not_tell_is_unknown(tmp_path: Path) -> None:
    """None, and no error."""
    assert free_memory_bytes(tmp_path) is None


def test_this_machine_tells() -> None:
    """Some memory is free here, and not more than there is."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        assert free_memory_bytes() is None
        return
    total = int(meminfo.read_text().split()[1]) << 10

    assert 0 < (free_memory_bytes() or 0) <= total


KEPT_OF_BLOCKS = """
import os
from bench.process_memory import memory_of
from unitune.free_memory import keep_large_blocks, map_large_blocks

MB = 1 << 20
map_large_blocks()
{prepare}()
before = memory_of(os.getpid()).private
blocks = [bytes([number]) * MB for number in range(32)]
pin = bytes([1]) * (100 << 10)
blocks.clear()
print((memory_of(os.getpid()).private - before) / (32 * MB), len(pin))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc")
@pytest.mark.parametrize(("prepare", "least", "most"), [("map_large_blocks", 0, 0.2), ("keep_large_blocks", 0.5, 1.2)])
def test_blocks_that_are_mapped_are_given_back_at_once(prepare: str, least: float, most: float) -> None:
    """Of 32 blocks of 1 MB, freed below a block that stays, little is left; in glibc's heap much of them is.

    In a process of its own, whose memory nothing else changes.
    """
    program = KEPT_OF_BLOCKS.format(prepare=prepare)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert least <= float(told.stdout.split()[0]) <= most
