"""Looks whether tunings have news, where a notification may be lost: once in a while for all who wait in one gateway,
however many they are."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from unitune.errors import UniTuneError

LastEvents = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]


class EventLooks:
    """Those who wait for events of tunings. It belongs to one event loop."""

    def __init__(self, last_events: LastEvents, every_s: float) -> None:
        """`last_events` finds the numbers of the last events of tunings by their names, of those that are there."""
        self._last_events = last_events
        self._every_s = every_s
        self._waiting: dict[asyncio.Event, tuple[str, int]] = {}  # for an event of a tuning above a number
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def waiting(self, event: asyncio.Event, name: str, after: int) -> Iterator[None]:
        """In the block `event` is set once the tuning has an event above `after`, or is gone."""
        self._waiting[event] = name, after
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            del self._waiting[event]

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._every_s)
            with suppress(UniTuneError):  # which is in the log; whoever listens again wakes everybody
                last = await self._last_events(sorted({name for name, _ in self._waiting.values()}))
                for event, (name, after) in self._waiting.items():
                    if name not in last or last[name] > after:
                        event.set()
