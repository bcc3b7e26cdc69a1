"""The picture files of a command's arguments: read and decoded before any server is asked or started."""

from collections.abc import Collection
from pathlib import Path

from unitune.errors import InvalidArgument, InvalidField
from unitune.picture_file import check
from unitune.picture_header import KINDS, PNG, other_kind
from unitune_client.pictures import picture_bytes


def read_photo(path: str, argument: str = "PHOTO") -> bytes:
    """The bytes of a photo's file. Raises InvalidArgument naming `argument`, for a damaged file, too."""
    return _read(path, argument, "image", KINDS)


def read_mask(path: str | None) -> bytes | None:
    """The bytes of a mask's file, if there is one. Raises InvalidArgument naming --mask, for a damaged file, too."""
    return _read(path, "--mask", "mask", (PNG,)) if path is not None else None


def _read(path: str, argument: str, field: str, kinds: Collection[str]) -> bytes:
    try:
        data = picture_bytes(Path(path), field)
    except InvalidField as error:
        raise InvalidField(argument, Path(path), error.metadata["remedy"]) from None
    if wrong := other_kind(data, kinds):
        kind, remedy = wrong
        raise InvalidField(argument, Path(path), f"it is {kind}; {_to_a_user(remedy)}")
    try:
        check(data, argument, kinds)
    except InvalidArgument as error:
        value, remedy = error.metadata["value"], _to_a_user(error.metadata["remedy"])
        if error.reason == "IMAGE_UNDECODABLE":
            raise InvalidField(argument, Path(path), f"it is {value}; {remedy}") from None
        raise InvalidArgument.field_error(argument, value, remedy, reason=error.reason) from None
    return data


def _to_a_user(remedy: str) -> str:
    """A remedy in a user's words: a user gives a file where a program sends it."""
    return remedy.replace("send ", "give ", 1)
