"""Where things lie in the object store: the forms of all paths, which gateway, tuner and sampler read here.

    images/{tenant}/{sha256}/{part}                what was uploaded, by the gateway
    tunings/{tenant}/{tuning}/{attempt}/{part}     what an attempt at a tuning made, by the tuner

The tenant is in the path because weights encode somebody's picture: they are shared with nobody and can be deleted at
once. The attempt is, because a tuner that was killed may have left half of its files.
"""

import re
from typing import NamedTuple

from unitune.errors import InvalidField

TENANT = r"[a-z][a-z0-9-]{0,62}"
TUNING = r"[a-z][a-z0-9-]{3,62}"
SHA256 = r"[0-9a-f]{64}"

IMAGES, TUNINGS = "images", "tunings"

MAX_PATH_BYTES = 512

_IMAGE = re.compile(rf"{IMAGES}/({TENANT})/({SHA256})(?:/.*)?")
_WEIGHTS = re.compile(rf"{TUNINGS}/({TENANT})/({TUNING})/([1-9][0-9]{{0,9}})")
# Of any object of the store. A local folder takes "#" and a number at the end for a file that is being written.
_OBJECT = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_DOTS = re.compile(r"(^|/)\.{1,2}(/|$)")


class OfWeights(NamedTuple):
    """A path of weights in its parts."""

    tenant: str
    tuning: str
    attempt: int


def of_image(tenant: str, sha256: str) -> str:
    """Under which an uploaded picture lies."""
    return f"{IMAGES}/{tenant}/{sha256}"


def of_tuning(tenant: str, tuning: str) -> str:
    """Under which all attempts at a tuning lie."""
    return f"{TUNINGS}/{tenant}/{tuning}"


def of_weights(tenant: str, tuning: str, attempt: int) -> str:
    """Under which an attempt at a tuning, counted from 1, puts its weights."""
    return f"{of_tuning(tenant, tuning)}/{attempt}"


def read_image(path: str) -> tuple[str, str] | None:
    """Tenant and sha256 of the picture to which an object belongs; None if it is of none."""
    found = _IMAGE.fullmatch(path)
    return (found[1], found[2]) if found else None


def read_weights(path: str) -> OfWeights | None:
    """The parts of a path of weights, None if it is none."""
    found = _WEIGHTS.fullmatch(path)
    return OfWeights(found[1], found[2], int(found[3])) if found else None


def check_weights(path: str, field: str) -> None:
    """Raise InvalidField unless weights may be written to, and read from, this path."""
    if read_weights(path) is None:
        remedy = f"a path of weights has the form {TUNINGS}/{{tenant}}/{{tuning}}/{{attempt}}"
        raise InvalidField(field, path, remedy)


def check_object(path: str, field: str = "path") -> None:
    """Raise InvalidField unless an object, or a prefix of objects, may have this path: one that stays in the store."""
    if len(path) > MAX_PATH_BYTES or not _OBJECT.fullmatch(path) or _DOTS.search(path):
        remedy = f"a path has parts of letters, digits, '.', '_' and '-', at most {MAX_PATH_BYTES} bytes, and no '..'"
        raise InvalidField(field, path, remedy)
