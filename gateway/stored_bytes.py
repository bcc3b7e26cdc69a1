"""How many bytes each tenant has in the object store, against what it may have there: its pictures and tunings.

Counted by listing the store, at most every COUNTED_S for a tenant. What is kept in between is added; what is deleted
counts again at the next look, which comes sooner for a tenant that is over its limit.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.admission import of_tenant
from unitune import store_paths
from unitune.errors import TENANT_STORAGE_LIMIT, ResourceExhausted
from unitune.object_store import ObjectStore

COLLECTIONS = (store_paths.IMAGES, store_paths.TUNINGS, store_paths.EDITS)
COUNTED_S = 60.0
COUNTED_AGAIN_S = 1.0  # of a tenant that is over its limit, and may have deleted something
RETRY_S = 60.0
KEPT_TENANTS = 1000


@dataclass(eq=False)
class _Look:
    """A look at what a tenant stores, and the bytes of pictures that were stored since it began."""

    tenant: str
    stored_bytes: int = 0


class StoredBytes:
    """What the tenants of one gateway store."""

    def __init__(self, store: ObjectStore, most: int) -> None:
        """`most` bytes of one tenant; 0 means no limit."""
        self._store = store
        self._most = most
        self._counted: dict[str, tuple[dict[str, int], float]] = {}  # bytes, and when they were counted
        self._coming: Counter[str] = Counter()  # bytes that are being stored
        self._looks: set[_Look] = set()  # that go on

    async def refusal(self, tenant: str, further: int = 0) -> ResourceExhausted | None:
        """The error (TENANT_STORAGE_LIMIT) with which so many further bytes are refused, None if there is room."""
        if self._most <= 0:
            return None
        held = await self._held(tenant, COUNTED_S)
        if held + further > self._most:
            held = await self._held(tenant, COUNTED_AGAIN_S)
        if held + further <= self._most:
            return None
        message = (
            f"this tenant stores {held} bytes, and {self._most} are allowed: delete tunings or images, which "
            "DeleteTuning and DeleteImage do"
        )
        return of_tenant(tenant, self._most, message, TENANT_STORAGE_LIMIT, RETRY_S)

    @asynccontextmanager
    async def storing(self, tenant: str, size_bytes: int) -> AsyncIterator[None]:
        """Store a picture of so many bytes in the block. They count from its begin, so that several at once do not pass
        the limit together. Raises ResourceExhausted (TENANT_STORAGE_LIMIT)."""
        refused = await self.refusal(tenant, size_bytes)
        if refused is not None:
            raise refused
        self._coming[tenant] += size_bytes
        try:
            yield
            for look in self._looks:
                if look.tenant == tenant:
                    look.stored_bytes += size_bytes
            if tenant in self._counted:
                self._counted[tenant][0][store_paths.IMAGES] += size_bytes
        finally:
            self._coming[tenant] -= size_bytes
            if not self._coming[tenant]:
                del self._coming[tenant]

    async def of(self, tenant: str) -> dict[str, int]:
        """The bytes of a tenant's pictures, tunings and results, by their collection in the store."""
        return dict(await self._count(tenant, COUNTED_S))

    async def _held(self, tenant: str, age_s: float) -> int:
        counted = await self._count(tenant, age_s)
        return counted[store_paths.IMAGES] + counted[store_paths.TUNINGS] + self._coming[tenant]

    async def _count(self, tenant: str, age_s: float) -> dict[str, int]:
        now_s = time.monotonic()
        if tenant not in self._counted or now_s - self._counted[tenant][1] > age_s:
            look = _Look(tenant)
            self._looks.add(look)
            try:
                found = {
                    collection: await self._store.answer(self._store.size_bytes, f"{collection}/{tenant}")
                    for collection in COLLECTIONS
                }
            finally:
                self._looks.remove(look)
            # What was stored meanwhile may not be in the listing. If it is, it counts twice until the next look.
            found[store_paths.IMAGES] += look.stored_bytes
            if len(self._counted) >= KEPT_TENANTS:
                self._counted.clear()
            self._counted[tenant] = found, now_s
        return self._counted[tenant][0]
