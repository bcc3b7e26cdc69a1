"""The paths of all objects in the object store, for gateway, tuner and sampler.

    images/{tenant}/{sha256}/{part}                uploads, written by the gateway
    tunings/{tenant}/{tuning}/{attempt}/{part}     results of an attempt at a tuning, written by the tuner
    tunings/{tenant}/{tuning}/{attempt}/checkpoint-{update}    where the next attempt goes on, written by the tuner
    edits/{tenant}/{edit}/{part}                   results of an edit, for a while, written by the gateway
    uploads/{tenant}/{upload}/{part}               files that callers put there by a URL, until they are claimed

Weights encode a user's picture. So the path has the tenant: weights are not shared, and can be deleted. It has the
attempt because a killed tuner may leave incomplete files.
"""

import re
from typing import NamedTuple

from unitune.errors import InvalidField

TENANT = r"[a-z][a-z0-9-]{0,62}"
TUNING = r"[a-z][a-z0-9-]{3,62}"
SHA256 = r"[0-9a-f]{64}"

EDIT = r"[a-z][a-z0-9-]{3,62}"
UPLOAD = r"u-[0-9a-f]{32}"

IMAGES, TUNINGS, EDITS, UPLOADS = "images", "tunings", "edits", "uploads"

MAX_PATH_BYTES = 512

_IMAGE = re.compile(rf"{IMAGES}/({TENANT})/({SHA256})(?:/.*)?")
_EDIT = re.compile(rf"{EDITS}/({TENANT})/({EDIT})/[^/]+")
_UPLOAD = re.compile(rf"{UPLOADS}/({TENANT})/({UPLOAD})/[^/]+")
_WEIGHTS = re.compile(rf"{TUNINGS}/({TENANT})/({TUNING})/([1-9][0-9]{{0,9}})")
_CHECKPOINT = re.compile(rf"{_WEIGHTS.pattern}/checkpoint-[0-9]{{1,10}}")
# Any object of the store. In a local folder, "#" and a number end the name of a file that is being written.
_OBJECT = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_DOTS = re.compile(r"(^|/)\.{1,2}(/|$)")


class WeightsPath(NamedTuple):
    """The parts of a path of weights."""

    tenant: str
    tuning: str
    attempt: int


def image_path(tenant: str, sha256: str) -> str:
    """The path of an uploaded picture."""
    return f"{IMAGES}/{tenant}/{sha256}"


def tuning_path(tenant: str, tuning: str) -> str:
    """The path of all attempts at a tuning."""
    return f"{TUNINGS}/{tenant}/{tuning}"


def weights_path(tenant: str, tuning: str, attempt: int) -> str:
    """The path of the weights of an attempt, counted from 1."""
    return f"{tuning_path(tenant, tuning)}/{attempt}"


def edit_path(tenant: str, edit: str) -> str:
    """The path of an edit's results."""
    return f"{EDITS}/{tenant}/{edit}"


def read_edit(path: str) -> tuple[str, str] | None:
    """Tenant and id of the edit that an object belongs to, or None."""
    found = _EDIT.fullmatch(path)
    return (found[1], found[2]) if found else None


def upload_path(tenant: str, upload: str) -> str:
    """The path of an upload."""
    return f"{UPLOADS}/{tenant}/{upload}"


def read_upload(path: str) -> tuple[str, str] | None:
    """Tenant and id of the upload that an object belongs to, or None."""
    found = _UPLOAD.fullmatch(path)
    return (found[1], found[2]) if found else None


def image_file_path(tenant: str, sha256: str) -> str:
    """The path of an uploaded picture's file."""
    return f"{image_path(tenant, sha256)}/file"


def checkpoint_path(weights: str, update: int) -> str:
    """The path of a checkpoint after so many updates, of the attempt whose weights have this path."""
    return f"{weights}/checkpoint-{update}"


def is_checkpoint(path: str) -> bool:
    """Whether an object is a checkpoint."""
    return _CHECKPOINT.fullmatch(path) is not None


def read_image(path: str) -> tuple[str, str] | None:
    """Tenant and sha256 of the picture that an object belongs to, or None."""
    found = _IMAGE.fullmatch(path)
    return (found[1], found[2]) if found else None


def read_weights(path: str) -> WeightsPath | None:
    """The parts of a path of weights, or None for another path."""
    found = _WEIGHTS.fullmatch(path)
    return WeightsPath(found[1], found[2], int(found[3])) if found else None


def check_weights(path: str, field: str) -> None:
    """Raise InvalidField unless this is a path of weights."""
    if read_weights(path) is None:
        remedy = f"a path of weights has the form {TUNINGS}/{{tenant}}/{{tuning}}/{{attempt}}"
        raise InvalidField(field, path, remedy)


def check_object(path: str, field: str = "path") -> None:
    """Raise InvalidField unless this can be the path or the prefix of objects within the store."""
    if len(path) > MAX_PATH_BYTES or not _OBJECT.fullmatch(path) or _DOTS.search(path):
        remedy = f"a path has parts of letters, digits, '.', '_' and '-', at most {MAX_PATH_BYTES} bytes, and no '..'"
        raise InvalidField(field, path, remedy)
