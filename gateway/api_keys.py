"""API keys: made, recognized, rotated, revoked.

A key is `ut_{id}_{secret}`, where the secret is 256 random bits. The state has the key's SHA-256: nobody can try so
many secrets, so a slow hash would slow down the server alone. All keys are also in memory: recognizing one reads no
database. A change holds for the next call here, and in other gateways once they hear of it.
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

from sqlalchemy import Double, bindparam, delete, func, select, update

from gateway.database import EVERY_TOPIC, Database, Transaction, operation, until_answered
from gateway.dialects import Upsert
from gateway.names import Name, missing
from gateway.principal import SCOPES, WORDS, Principal
from gateway.state_schema import api_keys
from unitune import telemetry
from unitune.errors import FailedPrecondition, ResourceExhausted, Unauthenticated

logger = logging.getLogger(__name__)

MAX_KEYS = 100  # of one tenant that are valid
RELOAD_S = 1.0  # after a reading of all keys that failed
CHANGED = "keys"  # the topic of notifications to other gateways
KEPT_S = 30 * 24 * 3600.0  # for which an ended key is listed
_KEY = re.compile(r"ut_(k[0-9a-f]{12})_[A-Za-z0-9_-]{43}")

_KEYS = select(api_keys)
_KEY_BY_ID = _KEYS.where(api_keys.c.id == bindparam("the_id"))
_LOCKED_KEY = _KEY_BY_ID.where(api_keys.c.tenant == bindparam("the_tenant")).with_for_update()
# Gateways that begin at once may all adopt the same key.
_INSERT = Upsert(api_keys, lambda insert: insert.on_conflict_do_nothing())
_REVOKE = (
    update(api_keys)
    .where(api_keys.c.id == bindparam("the_id"))
    .values(revoke_s=func.coalesce(api_keys.c.revoke_s, bindparam("at_s", type_=Double)))
)
_END = update(api_keys).where(api_keys.c.id == bindparam("the_id")).values(expire_s=bindparam("new_expire_s"))
_FORGET = (
    delete(api_keys)
    .where(func.coalesce(api_keys.c.revoke_s, api_keys.c.expire_s) < bindparam("before_s"))
    .returning(api_keys.c.id)
)
_COUNT_VALID = select(func.count()).where(
    api_keys.c.tenant == bindparam("the_tenant"),
    api_keys.c.revoke_s.is_(None),
    api_keys.c.expire_s.is_(None) | (api_keys.c.expire_s >= bindparam("at_s")),
)


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
    """The API keys of all tenants. Changes raise what Database does, too."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._keys: dict[str, ApiKeyRecord] = {}
        self._loads: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()
        self._streams: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)  # by the key that began them

    @classmethod
    async def open(cls, database: Database) -> "ApiKeys":
        """The keys that the state has."""
        keys = cls(database)
        if database.is_shared:
            database.listen(keys._notified)
        await keys._load()
        return keys

    async def close(self) -> None:
        """Wait for no more news of other gateways."""
        for load in self._loads:
            load.cancel()
        await asyncio.gather(*self._loads, return_exceptions=True)

    def _notified(self, topic: str) -> None:
        """Another gateway has changed keys, or may have."""
        if topic in (CHANGED, EVERY_TOPIC):
            load = asyncio.create_task(self._reload())
            self._loads.add(load)
            load.add_done_callback(self._loads.discard)

    async def _reload(self) -> None:
        async with self._loading:  # no notification need follow: LISTEN has a connection of its own
            await until_answered(self._load, RELOAD_S)

    @property
    def has_any(self) -> bool:
        """Whether there is a key, valid or not: a server whose keys have all ended is not open to everybody."""
        return bool(self._keys)

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
    def revoke(self, tx: Transaction, name: Name) -> ApiKeyRecord:
        """End a key now. Raises NotFound (KEY_NOT_FOUND)."""
        self._existing(tx, name)
        tx.run(_REVOKE, the_id=name.id, at_s=time.time())
        return self._changed(tx, name.id, "API key revoked")

    @operation
    def _load(self, tx: Transaction) -> None:
        tx.after_commit(partial(self._know, [_record(row) for row in tx.rows(_KEYS)]))

    @operation
    def _insert(
        self, tx: Transaction, secret: str, tenant: str, scopes: frozenset[int], expire_s: float | None
    ) -> ApiKeyRecord:
        return self._inserted(tx, secret, tenant, scopes, expire_s)

    @operation
    def _rotate(
        self, tx: Transaction, name: Name, secret: str, old_expire_s: float, expire_s: float | None
    ) -> tuple[ApiKeyRecord, ApiKeyRecord]:
        old = self._existing(tx, name)
        if ended := old.ended():
            raise FailedPrecondition(
                f"{name} is {ended}: make a new key", reason="KEY_ENDED", metadata={"name": str(name)}
            )
        new = self._inserted(tx, secret, old.tenant, old.scopes, expire_s)
        ends_s = old_expire_s if old.expire_s is None else min(old.expire_s, old_expire_s)
        tx.run(_END, the_id=old.id, new_expire_s=ends_s)
        return new, self._changed(tx, old.id, "API key rotated")

    def _know(self, keys: Iterable[ApiKeyRecord]) -> None:
        self._keys = {key.id: key for key in keys}
        self._bound_streams()

    # Parts of operations, within their transaction.

    def _existing(self, tx: Transaction, name: Name) -> ApiKeyRecord:
        row = tx.row(_LOCKED_KEY, the_id=name.id, the_tenant=name.tenant)
        if row is None:
            raise missing(name)
        return _record(row)

    def _inserted(
        self, tx: Transaction, secret: str, tenant: str, scopes: frozenset[int], expire_s: float | None
    ) -> ApiKeyRecord:
        found = _KEY.fullmatch(secret)
        assert found is not None
        now_s = time.time()
        for key in tx.values(_FORGET, before_s=now_s - KEPT_S):
            tx.after_commit(partial(self._forget, key))
        valid = tx.value(_COUNT_VALID, the_tenant=tenant, at_s=now_s)
        if valid >= MAX_KEYS:
            raise ResourceExhausted(
                f"the tenant {tenant} has {valid} valid keys: revoke those that nobody uses",
                reason="TOO_MANY_KEYS",
                metadata={"tenant": tenant, "keys": str(valid)},
            )
        words = " ".join(sorted(WORDS[scope] for scope in scopes))
        tx.run(
            _INSERT,
            id=found[1],
            tenant=tenant,
            digest=_digest(secret),
            scopes=words,
            create_s=now_s,
            expire_s=expire_s,
        )
        return self._changed(tx, found[1], "API key made")

    def _forget(self, key_id: str) -> None:
        self._keys.pop(key_id, None)

    def _changed(self, tx: Transaction, key_id: str, event: str) -> ApiKeyRecord:
        """The key as it is now, known to all calls once it is committed."""
        key = _record(tx.row(_KEY_BY_ID, the_id=key_id))

        def know() -> None:
            self._keys[key_id] = key
            self._bound_streams()
            telemetry.event(logger, event, api_key=str(key.name))

        tx.after_commit(know)
        tx.notify(CHANGED)
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
    # A gateway of a newer version may have made it, with a scope that allows nothing here.
    known = frozenset(SCOPES[word] for word in scopes.split() if word in SCOPES)
    return ApiKeyRecord(key_id, tenant, digest, known, *times)
