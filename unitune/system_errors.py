"""Errors of the operating system, SQLite and the object store, as sentences and as UniTuneErrors.

`sentence` names the path. It is for the user of this machine: for the command line, a log, and the line with which a
service refuses to start. `store_error` and `state_error` are for callers elsewhere, and name no path.
"""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from unitune.errors import (
    STATE_CORRUPT,
    STATE_DOWN,
    STATE_FULL,
    STORE_CORRUPT,
    STORE_DOWN,
    STORE_FULL,
    STORE_PATH,
    DataLoss,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    UniTuneError,
)

RETRY_FULL_S = 30.0  # somebody has to free space first
RETRY_DOWN_S = 5.0
FULL_BYTES = 64 << 10  # with less free space than this, the disk may be the reason of a failure

# Number -> what is wrong with the path, and what to do.
_WORDS = {
    errno.ENOSPC: ("its disk is full", "free some space there, or choose a folder on another disk"),
    errno.EDQUOT: ("your quota on its disk is used up", "free some space there, or choose a folder on another disk"),
    errno.EFBIG: ("the file would be larger than is allowed here", "raise the limit (ulimit -f)"),
    errno.EACCES: ("you have no permission", "change its permissions, or choose another path"),
    errno.EPERM: ("the system does not permit this", "change its permissions, or choose another path"),
    errno.EROFS: ("its file system can only be read", "choose a folder that can be written"),
    errno.EMFILE: ("this program has too many files open", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("this machine has too many files open", "end other programs, or raise its limit (fs.file-max)"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter one"),
    errno.ENOENT: ("there is no such file or folder", "check the path"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "check the path"),
    errno.EISDIR: ("it is a folder, not a file", "give a file's path"),
    errno.EEXIST: ("it exists already", "choose another name, or move it away"),
    errno.ENOTEMPTY: ("the folder is not empty", "choose another one, or empty it"),
    errno.ELOOP: ("its symbolic links lead in a circle", "remove the link"),
    errno.EXDEV: ("both paths must be on one disk", "choose a folder on the same disk"),
    errno.EBUSY: ("it is in use", "end the program that uses it"),
    errno.ENOMEM: ("this machine has no memory left", "end other programs"),
    errno.EIO: ("its disk reports an input/output error", "check the disk, and copy what is on it elsewhere"),
    errno.ESTALE: ("its network file system lost it", "mount the file system again"),
    errno.ENODEV: ("its disk is gone", "connect the disk again"),
    errno.ENXIO: ("its disk is gone", "connect the disk again"),
}
REMEDY_FOR_DAMAGE = "put a copy in its place, or move it away to begin anew"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MISSHAPEN = (errno.ELOOP, errno.EISDIR, errno.ENOTDIR)  # the path holds something else than the store's file

_OS_ERROR = re.compile(r"\(os error (\d+)\)|\berrno:? (\d+)\b", re.IGNORECASE)  # as Rust shows it, and C++ often does


def sentence(error: OSError) -> str:
    """One line that names path, reason and remedy. An OSError of this product, which has no errno, keeps its text.

    The line holds the path: it is for the user of this machine and for its logs only.
    """
    if error.errno is None:
        return str(error)
    reason, remedy = _WORDS.get(error.errno, (os.strerror(error.errno), ""))
    path = error.filename2 or error.filename
    shown = f"cannot use {_path(path)}: {reason}" if path not in (None, "") else reason
    return f"{shown}; {remedy}" if remedy else shown


def full_sentence(path: str | os.PathLike[str]) -> str:
    """The sentence for a path whose disk is full."""
    return sentence(OSError(errno.ENOSPC, "", str(path)))


@contextlib.contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the path to an OSError of the block that has none, such as one of writing to an open file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def disk_sentence(error: Exception, path: str | os.PathLike[str]) -> str | None:
    """The sentence for an error of a program that wrote to `path`; None if the disk is not the reason.

    safetensors and ONNX Runtime raise their own exceptions. That of safetensors has the errno in its text. That of ONNX
    Runtime has none, and then the disk is taken for the reason if it is full.
    """
    number = _number(error)
    if number is None and not isinstance(error, OSError) and _free_bytes(path) < FULL_BYTES:
        number = errno.ENOSPC
    if number is None:
        return None
    named = getattr(error, "filename", None) or os.fspath(path)
    return sentence(OSError(number, os.strerror(number), named))


def failure_sentence(error: Exception, path: str | os.PathLike[str], *expected: type[Exception]) -> str:
    """Why a program that writes to `path` ends: the text of an expected error, or its `disk_sentence`.

    Raises the error itself if it has neither.
    """
    told = str(error) if isinstance(error, expected) else disk_sentence(error, path)
    if told is None:
        raise error
    return told


def _free_bytes(path: str | os.PathLike[str]) -> int:
    """Free space on the disk of the path, or of its nearest folder that exists."""
    place = Path(path).absolute()
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


def is_full(error: BaseException) -> bool:
    """Whether an error of the system, of obstore or of SQLite says that no space is left."""
    if isinstance(error, sqlite3.Error):
        return _sqlite_code(error) == sqlite3.SQLITE_FULL
    return _number(error) in _FULL


def store_error(error: Exception) -> UniTuneError:
    """The caller's error for a failure of the store, of obstore or of the system: ResourceExhausted (STORE_FULL),
    Unavailable (STORE_DOWN), DataLoss (STORE_CORRUPT), or InvalidArgument (STORE_PATH) for a name that is too long.
    """
    if is_full(error):
        message = "the store of the server is full: its operator must free space; try again then"
        return ResourceExhausted(message, reason=STORE_FULL, retry_after_s=RETRY_FULL_S)
    if _number(error) == errno.ENAMETOOLONG:
        return InvalidArgument("the path is none of the store", reason=STORE_PATH)
    if _number(error) in _MISSHAPEN:
        return DataLoss("a file of the store is damaged: the server's log names it", reason=STORE_CORRUPT)
    message = "the store of the server does not answer: try again"
    return Unavailable(message, reason=STORE_DOWN, retry_after_s=RETRY_DOWN_S)


def state_error(error: sqlite3.Error | OSError) -> UniTuneError:
    """The caller's error for a failure of the state file: ResourceExhausted (STATE_FULL), Unavailable (STATE_DOWN), or
    DataLoss (STATE_CORRUPT).
    """
    if is_full(error):
        message = "the disk of the server's state is full: its operator must free space; try again then"
        return ResourceExhausted(message, reason=STATE_FULL, retry_after_s=RETRY_FULL_S)
    if is_damage(error):
        message = "the state file of the server is damaged: its operator must put a copy in its place"
        return DataLoss(message, reason=STATE_CORRUPT)
    message = "the state of the server cannot be used now: try again"
    return Unavailable(message, reason=STATE_DOWN, retry_after_s=RETRY_DOWN_S)


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that its file is damaged."""
    return isinstance(error, sqlite3.Error) and _sqlite_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def sqlite_sentence(path: str | os.PathLike[str], error: sqlite3.Error) -> str:
    """The sentence for an error of SQLite about the file `path`."""
    words = {
        sqlite3.SQLITE_FULL: _WORDS[errno.ENOSPC],
        sqlite3.SQLITE_IOERR: _WORDS[errno.EIO],
        sqlite3.SQLITE_READONLY: ("it can only be read", "make file and folder writable for this user"),
        sqlite3.SQLITE_PERM: _WORDS[errno.EACCES],
        sqlite3.SQLITE_CANTOPEN: ("it cannot be opened", "make file and folder readable and writable for this user"),
        sqlite3.SQLITE_BUSY: ("another process has it open", "end that process, or give another path"),
        sqlite3.SQLITE_LOCKED: ("another process has it open", "end that process, or give another path"),
        sqlite3.SQLITE_NOTADB: ("it is not a database of SQLite", "move it away, or give another path"),
        sqlite3.SQLITE_CORRUPT: ("it is damaged", REMEDY_FOR_DAMAGE),
    }
    reason, remedy = words.get(_sqlite_code(error), (str(error), ""))
    shown = f"cannot use {_path(os.fspath(path))}: {reason}"
    return f"{shown}; {remedy}" if remedy else shown


def _number(error: BaseException) -> int | None:
    """The errno of an error. Errors of obstore have it in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1] or found[2]) if found else None


def _sqlite_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; SQLITE_ERROR for an error of Python's own module."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF  # the bits above tell where in SQLite it was


def _path(path: str | bytes | int) -> str:
    # A file's name need not be text. What is no text is shown as numbers.
    return os.fsdecode(path).encode(errors="backslashreplace").decode() if not isinstance(path, int) else f"file {path}"
