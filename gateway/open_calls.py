"""How many long calls one connection may have open: enough for every use, and fewer than HTTP/2 allows. And how many
one tenant, and all together, may have: each costs memory, however many connections they come by.

A call beyond the streams of a connection would wait in the client's transport without an answer. Long calls are refused
before that. The other streams are left for calls that are answered at once, such as CancelEdit.

A call whose reader does not read is cut, but is over only when its reader goes: its last message is kept until then.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gateway import principal
from gateway.admission import of_all, of_tenant
from unitune.errors import ResourceExhausted

LONG_CALLS = 256  # Edit, Compare, WatchTuning and UploadImage together; `serving.MAX_STREAMS` is four times as many
OF_TENANT, OF_ALL = 2048, 4096
RETRY_AFTER_S = 5.0


class OpenCalls:
    """The long calls of all connections."""

    def __init__(self, most: int = LONG_CALLS) -> None:
        self._most = most
        self._open: Counter[str] = Counter()  # by connection
        self._of_tenants: Counter[str] = Counter()  # by the credential's tenant

    @contextmanager
    def count(self, context: Any) -> Iterator[None]:
        """Count a call for as long as the block lasts; one that is cut in it until it is over.

        Raises ResourceExhausted (TOO_MANY_CALLS).
        """
        peer = context.peer()
        if self._open[peer] >= self._most:
            raise ResourceExhausted(
                f"this connection has {self._most} streams and uploads open: end some, or open another connection",
                reason="TOO_MANY_CALLS",
                metadata={"limit": str(self._most)},
                retry_after_s=RETRY_AFTER_S,
            )
        tenant = principal.current().tenant
        if tenant and self._of_tenants[tenant] >= OF_TENANT:
            message = f"this tenant has {OF_TENANT} streams and uploads open: end some"
            raise of_tenant(tenant, OF_TENANT, message, "TOO_MANY_CALLS", RETRY_AFTER_S)
        if self._of_tenants.total() >= OF_ALL:
            raise of_all(OF_ALL, f"{OF_ALL} streams and uploads are open", RETRY_AFTER_S)
        self._open[peer] += 1
        self._of_tenants[tenant] += 1
        try:
            yield
        except (GeneratorExit, asyncio.CancelledError):
            context.add_done_callback(lambda _: self._over(peer, tenant))
            raise
        except BaseException:
            self._over(peer, tenant)
            raise
        self._over(peer, tenant)

    def _over(self, peer: str, tenant: str) -> None:
        for counter, one in ((self._open, peer), (self._of_tenants, tenant)):
            counter[one] -= 1
            if not counter[one]:
                del counter[one]
