"""Real file systems that a test may fill, or that can only be read; where none can be mounted, the test skips."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.soak import disk
from bench.soak.disk import fill

__all__ = ["fill", "mounted", "read_only"]


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory of that size, such as `3m`, mounted on the folder, which is made."""
    with ExitStack() as stack:
        with _skipping():
            stack.enter_context(disk.mounted(folder, size))
        yield folder


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing in the folder can be written or deleted, not even by root."""
    with _skipping():
        disk.mount("--bind", str(folder), str(folder))
    try:
        with _skipping():
            disk.mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def _skipping() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        pytest.skip(str(error))
