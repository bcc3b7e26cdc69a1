"""Who may call: each public call's credential, and what it names, before anything else of it is looked at."""

import logging
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from google.protobuf.message import Message

from gateway import own_names, principal
from gateway.api_keys import ApiKeys, is_key
from gateway.principal import ANYBODY, Principal
from gateway.tokens import Tokens
from unitune import telemetry
from unitune.errors import Unauthenticated
from unitune.serving import HEALTH_CALLS
from unitune.v1 import edit_pb2, image_pb2, key_pb2, scope_pb2, server_pb2, tuning_pb2, usage_pb2

logger = logging.getLogger(__name__)

HOW = (
    "send an API key or a token as metadata, `authorization: Bearer CREDENTIAL`; "
    "--key-file or UNITUNE_KEY of the command line"
)
_PACKAGE = "unitune.v1."

PUBLIC = [
    service
    for module in (tuning_pb2, image_pb2, edit_pb2, server_pb2, key_pb2, usage_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
# Of each public call, the scopes of which a credential must have one.
SCOPES_OF: dict[str, frozenset[int]] = {
    f"/{service.full_name}/{method.name}": frozenset(method.GetOptions().Extensions[scope_pb2.scopes])
    for service in PUBLIC
    for method in service.methods
}
STREAMS = {
    f"/{service.full_name}/{method.name}"
    for service in PUBLIC
    for method in service.methods
    if method.client_streaming or method.server_streaming
}


class Access:
    """Lets calls in. `is_open` asks for no credentials."""

    def __init__(self, keys: ApiKeys, tokens: Tokens | None = None, *, is_open: bool) -> None:
        self._keys = keys
        self._tokens = tokens
        self._is_open = is_open
        if is_open:
            remedy = "whoever reaches this server may do everything; UNITUNE_ADMIN_KEY_FILE turns keys on"
            telemetry.event(logger, "no credentials are asked for", level=logging.WARNING, detail=remedy)

    async def admit(self, method: str, context: Any) -> None:
        """Find out whose call this is, before its request is read.

        Raises Unauthenticated, PermissionDenied (SCOPE_MISSING), Unavailable (ISSUER_DOWN).
        """
        if method.startswith(HEALTH_CALLS):  # probes have no credential, nor have the checks of grpc's own clients
            return
        caller = ANYBODY if self._is_open else await self._principal(_credential(context.invocation_metadata()))
        if method.startswith(f"/{_PACKAGE}") and not self._is_open:
            caller.require(SCOPES_OF.get(method, frozenset()), method.rpartition("/")[2])
        principal.begin(caller)

    def holding(self, method: str) -> AbstractAsyncContextManager[None]:
        """A stream that was begun with a key ends with it. Raises Unauthenticated (CREDENTIAL_ENDED) then."""
        key = principal.current().api_key
        return self._keys.using(key) if key and method in STREAMS else nullcontext()

    def check(self, request: Any) -> None:
        """Refuse a request that names another tenant's. Raises as `own_names.claim` does."""
        caller = principal.current()
        if caller.tenant and isinstance(request, Message) and request.DESCRIPTOR.full_name.startswith(_PACKAGE):
            own_names.claim(request, caller)

    async def _principal(self, credential: str) -> Principal:
        if is_key(credential):
            return self._keys.principal(credential)
        if self._tokens is not None:
            return await self._tokens.principal(credential)
        raise Unauthenticated(f"the credential is no API key: {HOW}", reason="CREDENTIAL_INVALID")


def _credential(metadata: Any) -> str:
    sent = [value for name, value in metadata or () if name == "authorization"]
    scheme, _, credential = str(sent[0]).partition(" ") if len(sent) == 1 else ("", "", "")
    if not sent or not credential.strip():
        raise Unauthenticated(f"the call has no credential: {HOW}", reason="CREDENTIAL_MISSING")
    if scheme.lower() != "bearer":
        raise Unauthenticated(f"the credential is of another kind: {HOW}", reason="CREDENTIAL_INVALID")
    return credential.strip()
