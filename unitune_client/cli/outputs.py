"""The folder and the names of edited pictures. No picture replaces another one unless the user asks for it.

A name is `photo--prompt--seed0.png`. If a file of that name has another content, such as the same edit at
other settings, the new one is `photo--prompt--seed0--2.png`, and so on. The same content keeps its name.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from unitune.errors import InvalidField
from unitune.system_errors import about

SLUG_CHARACTERS = 60
NAME_BYTES = 255  # of a file's name, where the system does not say
NUMBER_BYTES = 6  # that `--2` and the like may add to a name
LEAST_STEM_BYTES = 12
TRIED_BYTES = 4096


class Outputs:
    """The files that one command writes into one folder, named after its photo."""

    def __init__(self, folder: Path, photo: str, *, overwrites: bool = False) -> None:
        """`photo` is the path or name of a picture. `overwrites` replaces files of the same name."""
        self._folder = folder
        self._stem = Path(photo).stem
        self._overwrites = overwrites

    def save(self, data: bytes, *parts: str) -> Path:
        """Write a PNG file named after the photo and `parts`, which are ASCII. Returns its path.

        The file appears complete or not at all, and other commands may write at the same time. Raises OSError.
        """
        ending = "".join(f"--{part}" for part in parts)
        stem = shortened(self._stem, self._name_bytes() - len(f"{ending}.png") - NUMBER_BYTES)
        path, unfinished = self._folder / f"{stem}{ending}.png", _unfinished(self._folder)
        try:
            with about(path):
                unfinished.write_bytes(data)
            return self._place(unfinished, data, path)
        finally:
            unfinished.unlink(missing_ok=True)

    def _place(self, unfinished: Path, data: bytes, path: Path) -> Path:
        if self._overwrites:
            return unfinished.replace(path)
        for number in count(1):
            numbered = path.with_name(f"{path.stem}--{number}.png") if number > 1 else path
            if _move(unfinished, numbered) or _holds(numbered, data):
                return numbered
        raise AssertionError("numbers do not end")

    def _name_bytes(self) -> int:
        try:
            return os.pathconf(self._folder, "PC_NAME_MAX")
        except (AttributeError, OSError, ValueError):  # not on Windows, nor on every file system
            return NAME_BYTES


def folder_of(output: str) -> Path:
    """The folder for the pictures, into which a file can be written. It is made if it does not exist.

    Raises InvalidField naming --out.
    """
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise InvalidField("--out", Path(output), "it is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = _unfinished(folder)
        try:
            trial.write_bytes(bytes(TRIED_BYTES))  # a full disk may still take an empty file
        finally:
            trial.unlink(missing_ok=True)
    except OSError as error:
        remedy = f"no file can be written there ({error.strerror or error}); give another folder, or make room"
        raise InvalidField("--out", Path(output), remedy) from None
    return folder


@contextmanager
def unfinished_folder(folder: Path) -> Iterator[Path]:
    """A new folder in `folder` for files that are not complete yet. It is removed afterwards."""
    unfinished = _unfinished(folder)
    unfinished.mkdir()
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def give_name(unfinished: Path, path: Path, *, overwrites: bool) -> None:
    """Give a complete file or folder its name. Raises FileExistsError for a name in use, unless it `overwrites`."""
    if overwrites and path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif overwrites:
        path.unlink(missing_ok=True)
    if unfinished.is_dir():
        unfinished.rename(path)  # a folder with anything in it is never replaced
    elif not _move(unfinished, path):
        raise FileExistsError(errno.EEXIST, "it is there already", str(path))


def follow_umask(path: Path) -> None:
    """Give a file, or the files of a folder, the mode of new files by the umask: some libraries write them as 600."""
    mask = os.umask(0o077)
    os.umask(mask)
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            file.chmod(0o666 & ~mask)


def slug(prompt: str) -> str:
    """A prompt as part of a file's name: `A dog, at night!` becomes `a-dog-at-night`.

    What a name cannot hold is left out. A digest is added where two prompts would get the same name.
    """
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    if words and len(words) <= SLUG_CHARACTERS and prompt.isascii():
        return words
    return "-".join(filter(None, [words[:SLUG_CHARACTERS].rstrip("-"), _digest(prompt)]))


def slugs(prompts: Iterable[str]) -> dict[str, str]:
    """The slug of each prompt, each a different one: of two that differ only in signs, the later has a digest."""
    named: dict[str, str] = {}
    for prompt in dict.fromkeys(prompts):
        name = slug(prompt)
        if name in named.values():
            name = f"{name}-{_digest(prompt)}"
        named[prompt] = name
    return named


def shortened(name: str, limit: int) -> str:
    """The name if it has at most `limit` bytes on the disk, else its beginning and a digest of all of it."""
    if len(os.fsencode(name)) <= limit:
        return name
    ending = f"-{_digest(name)}"
    room = max(limit, LEAST_STEM_BYTES) - len(ending)
    while len(os.fsencode(name)) > room:
        name = name[:-1]
    return f"{name}{ending}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _unfinished(folder: Path) -> Path:
    """A unique name for a file that is not complete yet."""
    return folder / f".unitune-{os.getpid()}-{secrets.token_hex(4)}.unfinished"


def _move(unfinished: Path, path: Path) -> bool:
    """Give a complete file its name, unless the name is in use. Returns whether it was done."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links, such as FAT
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # ours from here on
        except FileExistsError:
            return False
        unfinished.replace(path)
    return True


def _holds(path: Path, data: bytes) -> bool:
    """Whether a file has this content."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:  # a folder, one that may not be read, or one that is gone by now
        return False
