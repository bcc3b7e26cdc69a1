"""The file with the admin key, by which the first other keys are made."""

import logging
import os
from pathlib import Path

from gateway.api_keys import ApiKeys, is_key, new_key
from gateway.names import DEFAULT_TENANT
from unitune import telemetry
from unitune.errors import FailedPrecondition
from unitune.v1.scope_pb2 import SCOPE_ADMIN

logger = logging.getLogger(__name__)


async def adopt(keys: ApiKeys, path: Path) -> None:
    """Make the key of this file an admin key, unless it is known already: one that was revoked stays so.

    A file that is missing is made with a new key, for its owner alone to read. Raises OSError for a file without a key,
    and for a new key where the state can only be read.
    """
    secret = _read(path) if path.exists() else _make(path)
    try:
        key = await keys.adopt(secret, DEFAULT_TENANT, [SCOPE_ADMIN])
    except FailedPrecondition as error:
        raise OSError(f"{path}: its key is none of the state's: {error.message}") from error
    if ended := key.ended():
        detail = f"it is {ended}; delete its file, and the next start makes another"
        telemetry.event(logger, "admin key not valid", level=logging.WARNING, api_key=str(key.name), detail=detail)


def _read(path: Path) -> str:
    if path.stat().st_mode & 0o006:
        detail = f"{path}: every user of this machine may read or write it; chmod o= it"
        telemetry.event(logger, "admin key not closed to others", level=logging.WARNING, detail=detail)
    secret = path.read_text(errors="replace").strip()
    if not is_key(secret):
        raise OSError(f"{path}: there is no API key in it; delete the file, and one with a new key is made")
    return secret


def _make(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    secret, unfinished = new_key(), path.with_name(f".{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(file.fileno())
    unfinished.rename(path)
    return secret
