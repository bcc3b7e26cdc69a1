"""Folders that are slow to make, made once for all of pytest-xdist's workers."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def run_folder(config: pytest.Config, factory: pytest.TempPathFactory) -> Path:
    """The temporary folder of the whole run: that of a worker of pytest-xdist is in it."""
    own = factory.getbasetemp()
    return own.parent if hasattr(config, "workerinput") else own


def made_once(run: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this run, which `make` fills in the worker that asks first; the others wait for it.

    Nobody writes to it. It gets its name when it is whole: a `make` that fails, or a worker that is killed in it,
    leaves an unfinished folder, which the next who asks removes before it tries again.
    """
    root = run / "made_once"
    folder, unfinished = root / name, root / f"{name}.unfinished"
    root.mkdir(exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, and when a worker is killed
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder
