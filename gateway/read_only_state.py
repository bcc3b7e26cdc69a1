"""A state file that can only be read, such as on a file system that turned read-only. It is loaded into memory.

So what is in its journal counts, too, and an older version can be brought to this one, while nothing is written beside
it. What another process writes into the file afterwards is not seen.
"""

import os
import shutil
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

from unitune.errors import STATE_READ_ONLY, FailedPrecondition


def can_only_be_read(path: Path) -> bool:
    """Whether a file is there, and this process may not write it, or not into its folder, where its journal is."""
    return path.is_file() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def in_memory(path: Path) -> sqlite3.Connection:
    """A copy of the file in memory. Raises sqlite3.Error, and OSError if it has a journal and there is no folder for
    temporary files, in which both are put together."""
    memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    journal = path.with_name(f"{path.name}-wal")
    if not journal.is_file():
        _load(f"{path.absolute().as_uri()}?mode=ro&immutable=1", memory)
        return memory
    with TemporaryDirectory(prefix="unitune-state-") as folder:  # for its owner alone
        for file in (path, journal):
            shutil.copyfile(file, Path(folder) / file.name)
        _load((Path(folder) / path.name).as_uri(), memory)
    return memory


def _load(uri: str, memory: sqlite3.Connection) -> None:
    source = sqlite3.connect(uri, uri=True)
    try:
        source.backup(memory)
    finally:
        source.close()


def refusal() -> FailedPrecondition:
    """The error of what would have to be written."""
    return FailedPrecondition(
        "this server can only read its state, so nothing can be made, changed or deleted: its operator must make the "
        "state's file and folder writable and start it again",
        reason=STATE_READ_ONLY,
    )
