"""Resource names: `tenants/{tenant}/{collection}/{id}`, what they may look like and how they are made."""

import re
import uuid
from typing import NamedTuple

from unitune import store_paths
from unitune.errors import InvalidField, NotFound

DEFAULT_TENANT = "default"

_TENANT = re.compile(store_paths.TENANT)
_ID = {
    "images": re.compile(store_paths.SHA256),
    "tunings": re.compile(store_paths.TUNING),
    "edits": re.compile(store_paths.EDIT),
    "keys": re.compile(r"k[0-9a-f]{12}"),
    "uploads": re.compile(store_paths.UPLOAD),
}
_SHAPE = {"images": "{sha256}", "tunings": "{tuning}", "edits": "{edit}", "keys": "{key}", "uploads": "{upload}"}
_REMEDIES = {"image": "; upload it first", "upload": ", or it was claimed or is too old: make one with CreateUpload"}


class Name(NamedTuple):
    """A resource's name in its parts."""

    tenant: str
    collection: str
    id: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/{self.collection}/{self.id}"


def parse(name: str, collection: str, field: str = "name") -> Name:
    """The parts of a name. Raises InvalidField when it does not have the collection's form."""
    parts = name.split("/")
    if (
        len(parts) != 4
        or parts[0] != "tenants"
        or parts[2] != collection
        or not _TENANT.fullmatch(parts[1])
        or not _ID[collection].fullmatch(parts[3])
    ):
        raise InvalidField(field, name, f"a name has the form tenants/{{tenant}}/{collection}/{_SHAPE[collection]}")
    return Name(parts[1], collection, parts[3])


def parse_parent(parent: str, field: str = "parent") -> str | None:
    """The tenant that `parent` names, None if it is empty. Raises InvalidField when it does not have the form."""
    if not parent:
        return None
    collection, slash, tenant = parent.partition("/")
    if collection != "tenants" or not slash or not _TENANT.fullmatch(tenant):
        form = "a tenant has 1 to 63 of a-z, 0-9 and -, the first a letter"
        raise InvalidField(field, parent, f"a parent has the form tenants/{{tenant}}, where {form}")
    return tenant


def missing(name: Name) -> NotFound:
    """The error for a resource that does not exist, or belongs to another tenant: callers cannot tell which."""
    kind = name.collection.removesuffix("s")
    metadata = {"name": str(name)}
    return NotFound(
        f"there is no {kind} {name}{_REMEDIES.get(kind, '')}", reason=f"{kind.upper()}_NOT_FOUND", metadata=metadata
    )


def new_id(letter: str) -> str:
    """An id that nobody can guess: a letter for the kind, then 32 hexadecimal digits."""
    return f"{letter}-{uuid.uuid4().hex}"
