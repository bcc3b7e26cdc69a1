"""What a caller may give as a picture: a file's bytes or path, or a picture that the server has."""

import os
import re
from pathlib import Path

from unitune.errors import InvalidField
from unitune_client.events import Image, Tuning

PictureFile = bytes | str | os.PathLike[str]
Picture = PictureFile | Image

_RESOURCE = re.compile(r"tenants/[^/]+/(images|tunings)/[^/]+")


def resource_name(given: Picture | Tuning, collection: str) -> str | None:
    """The name, if `given` is a resource of that collection (`images` or `tunings`) or its name; None otherwise."""
    name = given.name if isinstance(given, (Image, Tuning)) else given
    match = _RESOURCE.fullmatch(name) if isinstance(name, str) else None
    return match[0] if match is not None and match[1] == collection else None


def picture_bytes(given: Picture | Tuning, field: str = "image") -> bytes:
    """The bytes of the picture's file, which the server checks. Raises InvalidField naming what cannot be read."""
    if isinstance(given, (bytes, bytearray, memoryview)):
        return bytes(given)
    if not isinstance(given, (str, os.PathLike)):
        raise InvalidField(field, type(given).__name__, "give the picture's bytes or its path")
    try:
        return Path(given).read_bytes()
    except OSError as error:
        remedy = (
            "give the path of a PNG, JPEG, WebP or AVIF picture"
            if field == "image"
            else "give the path of a PNG picture"
        )
        raise InvalidField(field, Path(given), f"{error.strerror or error}; {remedy}") from None
