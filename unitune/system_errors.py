"""What the operating system, SQLite and the object store refuse, in words and as errors of ours.

`sentence` names the path and is for who sits at this machine: the command line, a log, the line with which a service
refuses to start. `store_error` and `state_error` are for callers elsewhere, and name no path.
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
FULL_BYTES = 64 << 10  # with less free space on a disk a program may fail for that alone

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
_MISSHAPEN = (errno.ELOOP, errno.EISDIR, errno.ENOTDIR)  # something else lies where a file of ours should

_OS_ERROR = re.compile(r"\(os error (\d+)\)|\berrno:? (\d+)\b", re.IGNORECASE)  # as Rust shows it, and C++ often does


def sentence(error: OSError) -> str:
    """One line that names path, reason and remedy. An error without a number of errno, one of ours, keeps its text.

    Only for the user of this machine or its logs: it holds the path.
    """
    if error.errno is None:
        return str(error)
    reason, remedy = _WORDS.get(error.errno, (os.strerror(error.errno), ""))
    path = error.filename2 or error.filename
    shown = f"cannot use {_path(path)}: {reason}" if path not in (None, "") else reason
    return f"{shown}; {remedy}" if remedy else shown


def full_sentence(path: str | os.PathLike[str]) -> str:
    """As `sentence`, for a path whose disk is full."""
    return sentence(OSError(errno.ENOSPC, "", str(path)))


@contextlib.contextmanager
def about(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the path in an OSError that does not, as one of writing to an open file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def disk_sentence(error: Exception, path: str | os.PathLike[str]) -> str | None:
    """As `sentence`, for what a program met while it wrote to `path`; None where the disk is not the reason.

    safetensors and ONNX Runtime raise exceptions of their own: the first shows the system's number in its text, the
    second nothing at all, and then a full disk is the reason.
    """
    number = _number(error)
    if number is None and not isinstance(error, OSError) and _free_bytes(path) < FULL_BYTES:
        number = errno.ENOSPC
    if number is None:
        return None
    named = getattr(error, "filename", None) or os.fspath(path)
    return sentence(OSError(number, os.strerror(number), named))


def failure_sentence(error: Exception, path: str | os.PathLike[str], *expected: type[Exception]) -> str:
    """Why a program that writes to `path` ends: the text of an expected error, or as `disk_sentence`.

    Raises the error itself where neither tells it.
    """
    told = str(error) if isinstance(error, expected) else disk_sentence(error, path)
    if told is None:
        raise error
    return told


def _free_bytes(path: str | os.PathLike[str]) -> int:
    """On the disk of the path, or of the nearest folder above that there is."""
    place = Path(path).absolute()
    return shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free


def is_full(error: BaseException) -> bool:
    """Whether no space is left: an error of the system, of obstore or of SQLite."""
    if isinstance(error, sqlite3.Error):
        return _sqlite_code(error) == sqlite3.SQLITE_FULL
    return _number(error) in _FULL


def store_error(error: Exception) -> UniTuneError:
    """What a failure of the store, one of obstore or of the system, means to a caller: STORE_FULL, STORE_DOWN, DataLoss
    (STORE_CORRUPT), or InvalidArgument (STORE_PATH) for a name that is too long.
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
    """What a failure of the state file means to a caller: STATE_FULL, STATE_DOWN, or DataLoss (STATE_CORRUPT)."""
    if is_full(error):
        message = "the disk of the server's state is full: its operator must free space; try again then"
        return ResourceExhausted(message, reason=STATE_FULL, retry_after_s=RETRY_FULL_S)
    if is_damage(error):
        message = "the state file of the server is damaged: its operator must put a copy in its place"
        return DataLoss(message, reason=STATE_CORRUPT)
    message = "the state file of the server cannot be used now: try again"
    return Unavailable(message, reason=STATE_DOWN, retry_after_s=RETRY_DOWN_S)


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the bytes of its file are not what they should be."""
    return isinstance(error, sqlite3.Error) and _sqlite_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def sqlite_sentence(path: str | os.PathLike[str], error: sqlite3.Error) -> str:
    """As `sentence`, for an error of SQLite about the file `path`."""
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
    """The number of errno that an error carries; obstore's have it in their text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1] or found[2]) if found else None


def _sqlite_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; SQLITE_ERROR for an error of Python's module itself."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code & 0xFF  # the bits above tell where in SQLite it was


def _path(path: str | bytes | int) -> str:
    # Names of files need not be text; what cannot be shown is shown by its number.
    return os.fsdecode(path).encode(errors="backslashreplace").decode() if not isinstance(path, int) else f"file {path}"
