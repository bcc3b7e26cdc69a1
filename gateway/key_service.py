"""The public service for API keys."""

import time
from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gateway import validation
from gateway.api_keys import ApiKeyRecord, ApiKeys
from gateway.names import parse, parse_parent
from gateway.principal import WORDS, current
from unitune.errors import FailedPrecondition, InvalidField
from unitune.v1 import key_pb2, key_pb2_grpc
from unitune.v1.scope_pb2 import Scope


class KeyService(key_pb2_grpc.KeyServiceServicer):
    """API keys, as `key.proto` promises them."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys

    async def CreateKey(self, request: key_pb2.CreateKeyRequest, context: Any) -> key_pb2.CreateKeyResponse:
        _refuse_without_credentials()
        tenant = parse_parent(request.parent)
        if tenant is None:
            raise InvalidField("parent", "", "name the tenant whose key it will be, as tenants/{tenant}")
        _check_scopes(request.scopes)
        expire_s = _future(request, "expire_time", "RevokeKey ends a key now")
        key, secret = await self._keys.create(tenant, request.scopes, expire_s)
        return key_pb2.CreateKeyResponse(api_key=_message(key), secret=secret)

    async def ListKeys(self, request: key_pb2.ListKeysRequest, context: Any) -> key_pb2.ListKeysResponse:
        _refuse_without_credentials()
        tenant = parse_parent(request.parent)
        size = validation.check_page_size(request.page_size)
        after = parse(request.page_token, "keys", "page_token").id if request.page_token else ""
        found = self._keys.page(tenant, after, size + 1)
        token = str(found[size - 1].name) if len(found) > size else ""
        return key_pb2.ListKeysResponse(api_keys=map(_message, found[:size]), next_page_token=token)

    async def RotateKey(self, request: key_pb2.RotateKeyRequest, context: Any) -> key_pb2.RotateKeyResponse:
        _refuse_without_credentials()
        name = parse(request.name, "keys")
        old_expire_s = _future(request, "old_expire_time", "leave it unset for now") or time.time()
        expire_s = _future(request, "expire_time", "RevokeKey ends a key now")
        new, secret, old = await self._keys.rotate(name, old_expire_s, expire_s)
        return key_pb2.RotateKeyResponse(api_key=_message(new), secret=secret, old_api_key=_message(old))

    async def RevokeKey(self, request: key_pb2.RevokeKeyRequest, context: Any) -> key_pb2.ApiKey:
        _refuse_without_credentials()
        return _message(await self._keys.revoke(parse(request.name, "keys")))


def _refuse_without_credentials() -> None:
    """A key would have no effect, and later shut out who uses the server without one."""
    if not current().tenant:
        raise FailedPrecondition(
            "this server asks for no credentials, so it has no use for keys: its operator turns them on by "
            "UNITUNE_ADMIN_KEY_FILE",
            reason="CREDENTIALS_OFF",
        )


def _check_scopes(scopes: Sequence[int]) -> None:
    remedy = f"give at least one of {', '.join(f'SCOPE_{word.upper()}' for word in WORDS.values())}"
    if not scopes:
        raise InvalidField("scopes", "none", remedy)
    for index, scope in enumerate(scopes):
        if scope not in WORDS:
            known = Scope.Name(scope) if scope in Scope.values() else str(scope)
            raise InvalidField(f"scopes[{index}]", known, remedy)


def _future(request: Any, field: str, otherwise: str) -> float | None:
    """A time of the request in Unix seconds, None if it is unset. Raises InvalidField for one that is past."""
    if not request.HasField(field):
        return None
    moment: Timestamp = getattr(request, field)
    validation.check_future(field, moment, otherwise)
    return moment.ToMicroseconds() / 1e6


def _message(key: ApiKeyRecord) -> key_pb2.ApiKey:
    message = key_pb2.ApiKey(name=str(key.name), scopes=[Scope.Name(scope) for scope in sorted(key.scopes)])
    message.create_time.FromMicroseconds(round(key.create_s * 1e6))
    if key.expire_s is not None:
        message.expire_time.FromMicroseconds(round(key.expire_s * 1e6))
    if key.revoke_s is not None:
        message.revoke_time.FromMicroseconds(round(key.revoke_s * 1e6))
    return message
