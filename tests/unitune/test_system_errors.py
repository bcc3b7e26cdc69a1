"""What the system refuses, on a real full disk, real limits and real permissions: in words, and as errors of ours."""

import errno
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import obstore
import pytest
from obstore.store import LocalStore
from safetensors import SafetensorError
from safetensors.numpy import save_file

from tests.full_disk import fill, mounted
from unitune.errors import DataLoss, ResourceExhausted, Unavailable, UniTuneError
from unitune.system_errors import about, disk_sentence, sentence, sqlite_sentence, state_error, store_error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 3 MB."""
    with mounted(tmp_path / "disk", "3m") as folder:
        yield folder


def test_a_full_disk_is_told_with_its_path_and_the_remedy(small_disk: Path) -> None:
    """Writing to a full disk names the file, that the disk is full, and that space must be freed (N11)."""
    path = small_disk / "picture.png"
    with pytest.raises(OSError) as refused, about(path), path.open("wb") as file:
        file.write(b"x" * (4 << 20))
    assert sentence(refused.value) == (
        f"cannot use {path}: its disk is full; free some space there, or choose a folder on another disk"
    )


def test_errors_of_the_system_name_the_path_and_the_remedy(tmp_path: Path) -> None:
    """Each refusal that the system really gives names its own path (N11)."""
    file, loop = tmp_path / "file", tmp_path / "loop"
    file.write_text("")
    loop.symlink_to(loop)
    for path, reason in (
        (tmp_path / "none", "there is no such file or folder"),
        (file / "below", "a part of the path is a file, not a folder"),
        (tmp_path / ("x" * 300), "the name is too long"),
        (loop, "its symbolic links lead in a circle"),
        (tmp_path, "it is a folder, not a file"),
    ):
        with pytest.raises(OSError) as refused:
            path.read_bytes()
        said = sentence(refused.value)
        assert said.startswith(f"cannot use {path}: {reason}; ") and "Errno" not in said


def test_too_many_open_files_is_told_as_that(tmp_path: Path) -> None:
    """A process at its limit of open files hears of the limit (N11)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (tmp_path / "file").write_text("")
    with (tmp_path / "file").open() as file:
        lowest_free = file.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(OSError) as refused, (tmp_path / "file").open():
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "too many files open; raise the limit (ulimit -n)" in sentence(refused.value)


def test_a_number_nobody_foresaw_and_a_text_of_ours_are_told_too() -> None:
    """An error without a number keeps its text; an unknown number has the system's words."""
    assert sentence(OSError("cannot listen on 127.0.0.1:1")) == "cannot listen on 127.0.0.1:1"
    assert sentence(OSError(errno.ENOTTY, "x", "/dev/zero")) == f"cannot use /dev/zero: {os.strerror(errno.ENOTTY)}"
    assert sentence(OSError(errno.ENOENT, "x", b"/a\xff")).startswith("cannot use /a\\udcff: ")


def test_a_full_store_is_store_full_and_a_loop_is_damage(small_disk: Path) -> None:
    """obstore's own errors become STORE_FULL, STORE_CORRUPT or STORE_DOWN, and no path is in them (r6, r16)."""
    (small_disk / "loop").symlink_to("loop")
    store = LocalStore(str(small_disk))
    with pytest.raises(obstore.exceptions.BaseError) as full:
        obstore.put(store, "a", b"x" * (4 << 20), mode="create")
    with pytest.raises(obstore.exceptions.BaseError) as loop:
        obstore.get(store, "loop")
    check(store_error(full.value), ResourceExhausted, "STORE_FULL", small_disk)
    check(store_error(loop.value), DataLoss, "STORE_CORRUPT", small_disk)
    check(store_error(obstore.exceptions.GenericError("connection refused")), Unavailable, "STORE_DOWN", small_disk)


def test_sqlite_on_a_full_disk_is_state_full(small_disk: Path) -> None:
    """SQLite's own error on a full disk becomes STATE_FULL, and the local sentence names the file (r6)."""
    path = small_disk / "state.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("CREATE TABLE t (a BLOB)")
    fill(small_disk)
    with pytest.raises(sqlite3.OperationalError) as full:
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.close()
    check(state_error(full.value), ResourceExhausted, "STATE_FULL", small_disk)
    assert sqlite_sentence(path, full.value).startswith(f"cannot use {path}: its disk is full; free some space")


def test_a_damaged_file_of_sqlite_is_state_corrupt_and_a_file_that_cannot_be_opened_is_state_down(
    tmp_path: Path,
) -> None:
    """Damage is DATA_LOSS, what may pass is UNAVAILABLE (r6, r15)."""
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"no SQLite file" * 1000)
    with pytest.raises(sqlite3.DatabaseError) as damaged:
        sqlite3.connect(path).execute("SELECT * FROM sqlite_master")
    with pytest.raises(sqlite3.OperationalError) as closed:
        sqlite3.connect(tmp_path / "none" / "state.sqlite")
    check(state_error(damaged.value), DataLoss, "STATE_CORRUPT", tmp_path)
    check(state_error(closed.value), Unavailable, "STATE_DOWN", tmp_path)
    assert "it is not a database of SQLite" in sqlite_sentence(path, damaged.value)


def test_the_module_needs_no_other_package_than_errors_does() -> None:
    """The client may use it: it brings in neither numpy nor obstore."""
    code = "import sys, unitune.system_errors; sys.exit(sum(name in sys.modules for name in ('numpy', 'obstore')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def check(error: UniTuneError, kind: type[UniTuneError], reason: str, folder: Path) -> None:
    """Kind and reason are these; only what may pass has a time to retry; the folder is not told."""
    assert (type(error), error.reason) == (kind, reason)
    assert (error.retry_after_s is None) == (kind is DataLoss)
    assert str(folder) not in error.message + str(error.metadata)


def test_a_full_disk_behind_a_library_is_told_too(small_disk: Path) -> None:
    """safetensors and those who say nothing: the path that was written to, and that its disk is full (N11)."""
    path = small_disk / "weights.safetensors"
    with pytest.raises(SafetensorError) as full:
        save_file({"a": np.zeros(2 << 20, np.float32)}, path)
    words = f"cannot use {path}: its disk is full; free some space there"
    assert (disk_sentence(full.value, path) or "").startswith(words)
    assert disk_sentence(RuntimeError("serialization failed"), path) is None
    fill(small_disk)
    assert (disk_sentence(RuntimeError("serialization failed"), path / "none") or "").startswith("cannot use")
