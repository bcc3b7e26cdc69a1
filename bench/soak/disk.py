"""A small disk that can be filled: a file system in memory, mounted where this process may mount one."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory of that size, such as `3m`, mounted on the folder, which is made.

    Raises OSError where none can be mounted.
    """
    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "none", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mount(*arguments: str) -> None:
    """Run `mount`. Raises OSError where that is not allowed."""
    made = subprocess.run(["mount", *arguments], capture_output=True)
    if made.returncode != 0:
        raise OSError(f"no file system can be mounted here: {made.stderr.decode().strip()}")


def fill(folder: Path) -> Path:
    """Leave no byte free on the folder's disk; the file that takes the space, which may be deleted."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for block in (1 << 20, 1 << 16, 1 << 12, 1):
            data = bytes(block)
            try:
                while file.write(data):
                    pass
            except OSError:
                continue
    return ballast
