"""Few places for many tenants: at the sampler, and at the processes that decode pictures."""

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager


class FairQueue:
    """Places that tenants take in turn, within a tenant the oldest first."""

    def __init__(self, places: int, most_of_one: int | None = None) -> None:
        """A tenant has at most `most_of_one` places at a time. The default is half of them, so others find some.

        Raises ValueError for less than one place.
        """
        if places < 1:
            raise ValueError(f"places is {places}: it must be 1 or more")
        self._places = self._free = places
        self._most_of_one_given = most_of_one
        self._taken: Counter[str] = Counter()
        # A tenant that was served goes to the end.
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        # Of those that wait, in the order in which they came: the work, and since when.
        self._entries: dict[asyncio.Future[None], tuple[float, float]] = {}

    @property
    def _most_of_one(self) -> int:
        return self._most_of_one_given or max(1, self._places // 2)

    def resize(self, places: int) -> None:
        """Have so many places from now on. Who has one keeps it."""
        self._free += places - self._places
        self._places = places
        self._serve()

    @property
    def num_waiting(self) -> int:
        """How many wait for a place."""
        return sum(len(line) for line in self._waiting.values())

    def num_waiting_of(self, tenant: str) -> int:
        """How many of a tenant wait for a place."""
        return len(self._waiting.get(tenant, ()))

    def has_place(self, tenant: str) -> bool:
        """Whether a tenant would have a place at once."""
        return self._free > 0 and self._taken[tenant] < self._most_of_one and tenant not in self._waiting

    @property
    def num_taken(self) -> int:
        """How many have a place."""
        return self._taken.total()

    @property
    def oldest_wait_s(self) -> float:
        """How long the one that came first has waited; 0 if nobody waits."""
        return time.monotonic() - next(iter(self._entries.values()))[1] if self._entries else 0.0

    def work_before(self, tenant: str) -> float:
        """The work of this tenant that waits, for each of the places that it may have: what a further one waits for at
        least, however the other tenants fare."""
        return sum(self._entries[entry][0] for entry in self._waiting.get(tenant, ())) / self._most_of_one

    @asynccontextmanager
    async def place(self, tenant: str, work: float = 0.0) -> AsyncGenerator[float, None]:
        """Wait for a place and have it for the block; the seconds waited. `work` is in any unit.

        A caller that is cancelled while it waits leaves the queue at once.
        """
        began = time.monotonic()
        entry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(entry)
        self._entries[entry] = work, began
        self._serve()
        try:
            await entry
            yield time.monotonic() - began
        finally:
            if entry.done() and not entry.cancelled():
                self._free += 1
                self._taken[tenant] -= 1
            else:
                self._leave(tenant, entry)
            self._taken += Counter()  # without the tenants that have none
            self._serve()

    def _serve(self) -> None:
        while self._free > 0:
            tenant = next((one for one in self._waiting if self._taken[one] < self._most_of_one), None)
            if tenant is None:
                return
            entry = self._waiting[tenant][0]
            self._leave(tenant, entry)
            if tenant in self._waiting:
                self._waiting.move_to_end(tenant)
            if not entry.done():  # one that was just cancelled would not give the place back
                self._free -= 1
                self._taken[tenant] += 1
                entry.set_result(None)

    def _leave(self, tenant: str, entry: "asyncio.Future[None]") -> None:
        line = self._waiting.get(tenant)
        if line is not None and entry in line:
            line.remove(entry)
            del self._entries[entry]
            if not line:
                del self._waiting[tenant]
