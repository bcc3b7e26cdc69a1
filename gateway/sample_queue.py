"""Edits that wait for the sampler: a bounded number of streams is open, and the others have their turn here.

The bound lies below the streams that one HTTP/2 connection may have, so that no edit waits in the transport, where it
could be neither told of nor cancelled by itself.
"""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

STREAMS = 4  # of all tenants together; a sampler has few engines, and serves first who came first: what is there waits
MOST_STREAMS = 90  # below the 100 streams of one connection that HTTP/2 recommends a server to allow at least


class SampleQueue:
    """Turns at the sampler: tenants in turn, within a tenant the oldest first.

    One tenant has at most half of the turns at a time, so that another one's first edit finds a place.
    """

    def __init__(self, streams: int = STREAMS) -> None:
        """Raises ValueError for less than one stream."""
        if streams < 1:
            raise ValueError(f"streams is {streams}: it must be 1 or more")
        self._free = streams
        self._most = max(1, streams // 2)  # of one tenant
        self._taken: Counter[str] = Counter()
        # A tenant that was served goes to the end.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def num_waiting(self) -> int:
        """Edits that wait for their turn."""
        return sum(len(line) for line in self._waiting.values())

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncGenerator[float, None]:
        """Wait for a turn and have it for as long as the block lasts; the seconds waited.

        Who is cancelled while waiting leaves the queue at once.
        """
        began = time.monotonic()
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(ticket)
        self._serve()
        try:
            await ticket
            yield time.monotonic() - began
        finally:
            if ticket.done() and not ticket.cancelled():
                self._free += 1
                self._taken[tenant] -= 1
            else:
                self._leave(tenant, ticket)
            self._taken += Counter()  # without the tenants that have none
            self._serve()

    def _serve(self) -> None:
        while self._free > 0:
            tenant = next((one for one in self._waiting if self._taken[one] < self._most), None)
            if tenant is None:
                return
            ticket = self._waiting[tenant][0]
            self._leave(tenant, ticket)
            if tenant in self._waiting:
                self._waiting.move_to_end(tenant)
            if not ticket.done():  # one that was cancelled a moment ago gives nothing back
                self._free -= 1
                self._taken[tenant] += 1
                ticket.set_result(None)

    def _leave(self, tenant: str, ticket: "asyncio.Future[None]") -> None:
        line = self._waiting.get(tenant)
        if line is not None and ticket in line:
            line.remove(ticket)
            if not line:
                del self._waiting[tenant]
