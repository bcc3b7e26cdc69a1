"""API keys: made, recognized, rotated, revoked.

A key is `ut_{id}_{secret}`, where the secret is 256 random bits. The state has the key's SHA-256: nobody can try so
many secrets, so a slow hash would slow down the server alone. All keys are also in memory, because this process alone
changes them: recognizing one reads no file, and a change holds for the next call.
"""

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from gateway.names import Name, missing
from gateway.principal import SCOPES, WORDS, Principal
from gateway.sqlite_file import SqliteFile, operation
from unitune import telemetry
from unitune.errors import FailedPrecondition, ResourceExhausted, Unauthenticated

logger = logging.getLogger(__name__)

MAX_KEYS = 100  # of one tenant that are valid
KEPT_S = 30 * 24 * 3600.0  # for which an ended key is listed
_KEY = re.compile(r"ut_(k[0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_COLUMNS = "id, tenant, digest, scopes, create_s, expire_s, revoke_s"


@dataclass(frozen=True)
class ApiKeyRecord:
    """A key as it is stored. Times are Unix seconds."""

    id: str
    tenant: str
    digest: bytes
    scopes: frozenset[int]
    create_s: float
    expire_s: float | None
    revoke_s: float | None

    @property
    def name(self) -> Name:
        """Its resource name."""
        return Name(self.tenant, "keys", self.id)

    def ended(self) -> str:
        """How it has ended, in words; empty while it is valid."""
        if self.revoke_s is not None:
            return "revoked"
        return "expired" if self.expire_s is not None and self.expire_s <= time.time() else ""

    def left_s(self) -> float | None:
        """The seconds until it ends, 0 if it has; None if it does not end by itself."""
        if self.revoke_s is not None:
            return 0.0
        return None if self.expire_s is None else max(0.0, self.expire_s - time.time())


def new_key() -> str:
    """A key that nobody has."""
    return f"ut_k{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"


def is_key(credential: str) -> bool:
    """Whether a text has the form of a key."""
    return _KEY.fullmatch(credential) is not None


class ApiKeys:
    """The API keys of all tenants. Changes raise what SqliteFile does, too."""

    def __init__(self, file: SqliteFile) -> None:
        self.file = file
        self._sql = file.sql
        self._keys: dict[str, ApiKeyRecord] = {}
        self._streams: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)  # by the key that began them

    @classmethod
    async def open(cls, file: SqliteFile) -> "ApiKeys":
        """The keys that the state's file has."""
        keys = cls(file)
        await keys._load()
        return keys

    def has_valid(self, scope: int | None = None) -> bool:
        """Whether there is a valid key, of this scope if one is given."""
        return any(not key.ended() and (scope is None or scope in key.scopes) for key in self._keys.values())

    def principal(self, credential: str) -> Principal:
        """Who a key stands for. Raises Unauthenticated (CREDENTIAL_INVALID, CREDENTIAL_ENDED)."""
        found = _KEY.fullmatch(credential)
        key = self._keys.get(found[1]) if found else None
        digest = _digest(credential)
        if key is None or not hmac.compare_digest(key.digest, digest):
            raise Unauthenticated(
                "the API key is none of this server's: check that it is whole, or ask for one",
                reason="CREDENTIAL_INVALID",
            )
        if key.ended():
            raise _over(key)
        return Principal(key.tenant, key.scopes, key.id)

    @asynccontextmanager
    async def using(self, key_id: str) -> AsyncIterator[None]:
        """A stream that was begun with a key, for as long as the block lasts. Raises Unauthenticated (CREDENTIAL_ENDED)
        in it when the key ends."""
        key = self._keys[key_id]
        limit = asyncio.timeout(key.left_s())
        self._streams[key_id].add(limit)
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise _over(self._keys.get(key_id, key)) from None
        finally:
            self._streams[key_id].discard(limit)
            if not self._streams[key_id]:
                del self._streams[key_id]

    def _bound_streams(self) -> None:
        """Have each stream end with its key, as that is now."""
        for key_id, limits in self._streams.items():
            left_s = self._keys[key_id].left_s() if key_id in self._keys else 0.0
            for limit in limits:
                if not limit.expired():
                    limit.reschedule(None if left_s is None else asyncio.get_running_loop().time() + left_s)

    def page(self, tenant: str | None, after: str, size: int) -> list[ApiKeyRecord]:
        """Keys with an id above `after`, in the order of their ids; of one tenant or of all."""
        found = (key for key in self._keys.values() if key.id > after and tenant in (None, key.tenant))
        return sorted(found, key=lambda key: key.id)[:size]

    async def create(
        self, tenant: str, scopes: Iterable[int], expire_s: float | None = None
    ) -> tuple[ApiKeyRecord, str]:
        """A new key, and its one copy. Raises ResourceExhausted (TOO_MANY_KEYS)."""
        secret = new_key()
        return await self._insert(secret, tenant, frozenset(scopes), expire_s), secret

    async def adopt(self, secret: str, tenant: str, scopes: Iterable[int]) -> ApiKeyRecord:
        """The key of this secret, which becomes one of this server's unless it was one before."""
        found = _KEY.fullmatch(secret)
        if found and found[1] in self._keys:
            return self._keys[found[1]]
        return await self._insert(secret, tenant, frozenset(scopes), None)

    async def rotate(
        self, name: Name, old_expire_s: float, expire_s: float | None = None
    ) -> tuple[ApiKeyRecord, str, ApiKeyRecord]:
        """A new key in place of another, its one copy, and the other, which ends at a time.

        Raises NotFound (KEY_NOT_FOUND), FailedPrecondition (KEY_ENDED), ResourceExhausted (TOO_MANY_KEYS).
        """
        secret = new_key()
        new, old = await self._rotate(name, secret, old_expire_s, expire_s)
        return new, secret, old

    @operation
    def revoke(self, name: Name) -> ApiKeyRecord:
        """End a key now. Raises NotFound (KEY_NOT_FOUND)."""
        self._existing(name)
        self._sql("UPDATE api_keys SET revoke_s = COALESCE(revoke_s, ?) WHERE id = ?", time.time(), name.id)
        return self._changed(name.id, "API key revoked")

    @operation
    def _load(self) -> None:
        self._keys = {row[0]: _record(row) for row in self._sql(f"SELECT {_COLUMNS} FROM api_keys")}

    @operation
    def _insert(self, secret: str, tenant: str, scopes: frozenset[int], expire_s: float | None) -> ApiKeyRecord:
        return self._inserted(secret, tenant, scopes, expire_s)

    @operation
    def _rotate(
        self, name: Name, secret: str, old_expire_s: float, expire_s: float | None
    ) -> tuple[ApiKeyRecord, ApiKeyRecord]:
        old = self._existing(name)
        if ended := old.ended():
            raise FailedPrecondition(
                f"{name} is {ended}: make a new key", reason="KEY_ENDED", metadata={"name": str(name)}
            )
        new = self._inserted(secret, old.tenant, old.scopes, expire_s)
        self._sql("UPDATE api_keys SET expire_s = MIN(COALESCE(expire_s, ?1), ?1) WHERE id = ?2", old_expire_s, old.id)
        return new, self._changed(old.id, "API key rotated")

    # Parts of operations, within their transaction.

    def _existing(self, name: Name) -> ApiKeyRecord:
        row = self._sql(f"SELECT {_COLUMNS} FROM api_keys WHERE id = ? AND tenant = ?", name.id, name.tenant).fetchone()
        if row is None:
            raise missing(name)
        return _record(row)

    def _inserted(self, secret: str, tenant: str, scopes: frozenset[int], expire_s: float | None) -> ApiKeyRecord:
        found = _KEY.fullmatch(secret)
        assert found is not None
        now_s = time.time()
        forgotten = self._sql(
            "DELETE FROM api_keys WHERE COALESCE(revoke_s, expire_s) < ? RETURNING id", now_s - KEPT_S
        ).fetchall()
        for (key,) in forgotten:
            self.file.after_commit(partial(self._forget, key))
        (valid,) = self._sql(
            "SELECT COUNT(*) FROM api_keys WHERE tenant = ? AND revoke_s IS NULL AND COALESCE(expire_s, ?) >= ?",
            *(tenant, now_s, now_s),
        ).fetchone()
        if valid >= MAX_KEYS:
            raise ResourceExhausted(
                f"the tenant {tenant} has {valid} valid keys: revoke those that nobody uses",
                reason="TOO_MANY_KEYS",
                metadata={"tenant": tenant, "keys": str(valid)},
            )
        words = " ".join(sorted(WORDS[scope] for scope in scopes))
        self._sql(
            f"INSERT INTO api_keys ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, NULL)",
            *(found[1], tenant, _digest(secret), words, now_s, expire_s),
        )
        return self._changed(found[1], "API key made")

    def _forget(self, key_id: str) -> None:
        self._keys.pop(key_id, None)

    def _changed(self, key_id: str, event: str) -> ApiKeyRecord:
        """The key as it is now, known to all calls once it is committed."""
        key = _record(self._sql(f"SELECT {_COLUMNS} FROM api_keys WHERE id = ?", key_id).fetchone())

        def know() -> None:
            self._keys[key_id] = key
            self._bound_streams()
            telemetry.event(logger, event, api_key=str(key.name))

        self.file.after_commit(know)
        return key


def _over(key: ApiKeyRecord) -> Unauthenticated:
    """The error for a key that has ended."""
    return Unauthenticated(
        f"the API key {key.id} is {key.ended() or 'expired'}: use the one that replaces it, or ask for one",
        reason="CREDENTIAL_ENDED",
        metadata={"key": key.id},
    )


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _record(row: tuple) -> ApiKeyRecord:
    key_id, tenant, digest, scopes, *times = row
    return ApiKeyRecord(key_id, tenant, digest, frozenset(SCOPES[word] for word in scopes.split()), *times)
