"""An exported folder: its name, and whether it is whole. Nothing here needs PyTorch, which takes seconds to load."""

import contextlib
import json
import os
from pathlib import Path

from unitune.base_model import BaseModelSpec, file_digest
from unitune.known_pictures import KNOWN_PICTURES_FILE

DIGEST_CHARACTERS = 16  # of a folder's name
# [bytes, mtime in ns, inode] of each file when it had the specification's digest: it is not read again to be checked.
IDENTITIES_FILE = "identities.json"


class ExportError(Exception):
    """The base model cannot be exported faithfully; nothing was written under the final name."""


def is_complete(folder: Path, model_digest: str) -> bool:
    """Whether the folder holds the graphs of that base model, undamaged."""
    try:
        spec = BaseModelSpec.load(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return spec.digest == model_digest and _is_undamaged(folder, spec)


def is_export_of(folder: Path, base_model: Path, model_digest: str) -> bool:
    """Whether it is complete, and has the base model's known pictures, which are in no digest."""
    theirs, own = base_model / KNOWN_PICTURES_FILE, folder / KNOWN_PICTURES_FILE
    if theirs.is_file() != own.is_file() or not is_complete(folder, model_digest):
        return False
    return not theirs.is_file() or file_digest(theirs) == file_digest(own)


def _is_undamaged(folder: Path, spec: BaseModelSpec) -> bool:
    """Whether every file is as it was exported. A copied folder has other inodes: its files are read once."""
    known = _read_identities(folder)
    for name, wanted in spec.files.items():
        try:
            if _identity(folder / name) != known.get(name) and file_digest(folder / name) != wanted:
                return False
        except OSError:
            return False
    remember(folder, spec, known)
    return True


def remember(folder: Path, spec: BaseModelSpec, known: dict[str, list[int]] | None = None) -> None:
    """Write the identities of files that have their digests, unless they are `known`."""
    with contextlib.suppress(OSError):  # a folder that can only be read
        found = {name: _identity(folder / name) for name in spec.files}
        if found != known:
            partial = folder / f"{IDENTITIES_FILE}.{os.getpid()}"
            partial.write_text(json.dumps(found, indent=1, sort_keys=True))
            partial.replace(folder / IDENTITIES_FILE)


def _read_identities(folder: Path) -> dict[str, list[int]]:
    try:
        found = json.loads((folder / IDENTITIES_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _identity(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]
