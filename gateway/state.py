"""The tunings, their queue and their events in one SQLite file: no daemon, and a killed process loses nothing.

Every call is one transaction. A waiter is woken when a transaction that it may wait for is committed.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gateway.eviction_table import EvictionTable
from gateway.names import parse
from gateway.sqlite_file import SqliteFile
from gateway.tuning_queue import Announce, CreateRequest, Kept, Mutate, Page, Taken
from gateway.tuning_table import MIGRATION_FUNCTIONS, MIGRATIONS, SCHEMA, SCHEMA_VERSION, TuningTable
from unitune.v1.tuning_pb2 import Tuning

T = TypeVar("T")


class SqliteState:
    """TuningStore, TuningQueue, EventLog and ServiceMemory in one file."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._table = TuningTable(file)
        self._evictions = EvictionTable(file)
        self._loop = asyncio.get_running_loop()
        self._bell = asyncio.Event()  # replaced whenever it rings, so that nobody has to clear it
        self._last_event: dict[str, int] = {}  # of tunings that had an event since the start

    @classmethod
    async def open(cls, path: Path) -> "SqliteState":
        """Open the file, making it if it is missing. Raises OSError when it is in use or not a file of ours."""
        return cls(await SqliteFile.open(path, SCHEMA, SCHEMA_VERSION, MIGRATIONS, MIGRATION_FUNCTIONS))

    async def close(self) -> None:
        """Finish what was begun, then close the file."""
        await self._file.close()

    # TuningStore

    async def recall(self, tenant: str, request: CreateRequest) -> Tuning | None:
        return await self._do(lambda: self._table.recall(tenant, request))

    async def create(self, tuning: Tuning, request: CreateRequest | None) -> Tuning:
        tenant = parse(tuning.name, "tunings").tenant

        def work() -> Tuning:
            earlier = self._table.recall(tenant, request) if request else None
            if earlier is not None:
                return earlier
            made = self._table.live(tenant, tuning.key) or self._table.insert(tenant, tuning)
            if request:
                self._table.remember(tenant, request, made.name)
            return made

        return await self._do(work)

    async def live(self, tenant: str, key: str) -> Tuning | None:
        return await self._do(lambda: self._table.live(tenant, key))

    async def get(self, name: str) -> Tuning | None:
        return await self._do(lambda: self._table.by_name(name))

    async def page(self, tenant: str, state: int, after: int, size: int) -> Page:
        return await self._do(lambda: self._table.page(tenant, state, after, size))

    async def change(
        self, name: str, mutate: Mutate, announce: Announce | None = None, *, deletes: bool = False
    ) -> Tuning | None:
        return await self._do(lambda: self._table.change(name, mutate, announce), deletes=deletes)

    async def remove(self, name: str) -> None:
        await self._do(lambda: self._table.remove(name), deletes=True)

    async def expired(self, now_s: float) -> list[str]:
        return await self._do(lambda: self._table.expired(now_s))

    async def uses_image(self, image: str) -> bool:
        return await self._do(lambda: self._table.uses_image(image))

    async def live_user_of(self, image: str) -> str | None:
        return await self._do(lambda: self._table.live_user_of(image))

    async def add_eviction(self, digest: str) -> None:
        await self._do(lambda: self._evictions.add(digest), deletes=True)  # part of a deletion

    async def evictions(self) -> list[str]:
        return await self._do(self._evictions.all)

    async def remove_eviction(self, digest: str) -> None:
        await self._do(lambda: self._evictions.remove(digest), deletes=True)

    # TuningQueue

    async def wait_queued(self) -> None:
        while True:
            bell = self._bell
            if await self._do(self._table.is_any_queued):
                return
            await bell.wait()

    async def take(self, tuner: str) -> Taken | None:
        def work() -> Taken | None:
            self._table.count_crashes(tuner)
            return self._table.take(tuner)

        return await self._do(work)

    async def give_back(self, name: str, *, lost: bool) -> None:
        await self._do(lambda: self._table.give_back(name, lost=lost))

    async def recover(self, running: str = "") -> None:
        def work() -> None:
            for name in self._table.running():
                if name != running:
                    self._table.give_back(name, lost=True)

        await self._do(work)

    # EventLog

    async def read(self, name: str, after: int) -> Kept | None:
        return await self._do(lambda: self._table.read(name, after))

    async def wait(self, name: str, after: int) -> None:
        while True:
            bell = self._bell
            if self._last_event.get(name, 0) > after:
                return
            await bell.wait()

    # ServiceMemory

    async def known(self) -> dict[str, bytes]:
        return await self._do(self._table.known)

    async def know(self, service: str, info: bytes) -> None:
        await self._do(lambda: self._table.know(service, info))

    async def _do(self, work: Callable[[], T], *, deletes: bool = False) -> T:
        def on_thread() -> T:
            self._table.appended = {}
            result = self._file.deletion(work) if deletes else self._file.transaction(work)
            if self._table.appended:
                self._loop.call_soon_threadsafe(self._ring, self._table.appended)
            return result

        return await self._file.run(on_thread)

    def _ring(self, appended: dict[str, int]) -> None:
        self._last_event.update(appended)
        self._bell.set()
        self._bell = asyncio.Event()
