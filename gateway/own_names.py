"""The names in a request: its caller may say those of their own tenant.

Another tenant's name is NOT_FOUND, whether it exists or not, and another tenant's parent is PERMISSION_DENIED.
"""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import Message

from gateway.names import missing, parse, parse_parent
from gateway.principal import Principal
from unitune.errors import Internal, PermissionDenied
from unitune.v1.edit_pb2 import CancelEditRequest, CompareRequest, EditRequest, GetEditRequest
from unitune.v1.image_pb2 import (
    CreateUploadRequest,
    DeleteImageRequest,
    GetImageRequest,
    ListImagesRequest,
    UploadImageRequest,
)
from unitune.v1.key_pb2 import CreateKeyRequest, ListKeysRequest, RevokeKeyRequest, RotateKeyRequest
from unitune.v1.scope_pb2 import SCOPE_ADMIN
from unitune.v1.server_pb2 import GetServerInfoRequest
from unitune.v1.tuning_pb2 import (
    CancelTuningRequest,
    CreateTuningRequest,
    DeleteTuningRequest,
    GetTuningRequest,
    ListTuningsRequest,
    UpdateTuningRequest,
    WatchTuningRequest,
)
from unitune.v1.usage_pb2 import ListUsageRequest

PARENT = "parent"  # in place of a collection, for a field that names a tenant
ANY_PARENT = "any parent"  # the same, and an admin names any tenant, or none for all

# The fields of each public request that name something, and the collection that it is in.
NAMES: dict[type[Message], dict[str, str]] = {
    CreateTuningRequest: {"parent": PARENT, "image": "images", "images": "images"},
    GetTuningRequest: {"name": "tunings"},
    ListTuningsRequest: {"parent": PARENT},
    WatchTuningRequest: {"name": "tunings"},
    CancelTuningRequest: {"name": "tunings"},
    UpdateTuningRequest: {"tuning.name": "tunings"},
    DeleteTuningRequest: {"name": "tunings"},
    UploadImageRequest: {"header.parent": PARENT, "header.upload": "uploads"},
    CreateUploadRequest: {"parent": PARENT},
    GetImageRequest: {"name": "images"},
    ListImagesRequest: {"parent": PARENT},
    DeleteImageRequest: {"name": "images"},
    EditRequest: {"parent": PARENT, "tuning": "tunings", "image": "images", "mask_image": "images"},
    CompareRequest: {"parent": PARENT, "image": "images"},
    GetEditRequest: {"name": "edits"},
    CancelEditRequest: {"name": "edits"},
    GetServerInfoRequest: {},
    ListUsageRequest: {"parent": ANY_PARENT},
    # An admin names keys of all tenants.
    CreateKeyRequest: {},
    ListKeysRequest: {},
    RotateKeyRequest: {},
    RevokeKeyRequest: {},
}


def claim(request: Message, principal: Principal) -> None:
    """Let a request name what is its caller's alone. An empty parent becomes the caller's tenant.

    Raises PermissionDenied (TENANT_MISMATCH), NotFound, and InvalidField for a name of another form.
    """
    if type(request) not in NAMES:
        raise Internal("the server made a mistake; its log has the details", reason="INTERNAL")
    fields = NAMES[type(request)].items()
    for path, collection in fields:
        if collection == PARENT or (collection == ANY_PARENT and SCOPE_ADMIN not in principal.scopes):
            _claim_parent(request, path, principal.tenant)
    for path, collection in fields:
        if collection not in (PARENT, ANY_PARENT):
            for place, name in _names(request, path):
                named = parse(name, collection, place)
                if named.tenant != principal.tenant:
                    raise missing(named)


def _claim_parent(request: Any, path: str, tenant: str) -> None:
    *outer, field = path.split(".")
    for name in outer:
        if not request.HasField(name):
            return
        request = getattr(request, name)
    asked = parse_parent(getattr(request, field))
    if asked not in (None, tenant):
        raise PermissionDenied(
            f"parent is {getattr(request, field)!r}: the credential is of tenants/{tenant}; leave parent unset",
            reason="TENANT_MISMATCH",
            metadata={"field": "parent", "value": getattr(request, field), "remedy": "leave it unset"},
        )
    setattr(request, field, f"tenants/{tenant}")


def _names(request: Any, path: str) -> Iterable[tuple[str, str]]:
    """(place, name) of each name that a field has, unless it is unset."""
    *outer, field = path.split(".")
    for name in outer:
        request = getattr(request, name)
    value = getattr(request, field)
    if isinstance(value, str):
        return [(path, value)] if value else []
    return [(f"{path}[{index}]", one) for index, one in enumerate(value)]
