"""Between a story and its reader: the story runs in a task of its own, the reader gets its events and signs of life.

A story is an async generator. It can be stopped whatever its reader does, even one that has stopped
reading, and it never outlives the reader. A slow reader slows the story: few events wait for it, and few bytes.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from unitune.errors import UniTuneError

Event = TypeVar("Event")

# Between story and reader, that which the reader has now included. One event may be larger than all bytes; then it is
# alone.
WAITING_EVENTS = 4
WAITING_BYTES = 1 << 20


class Relay(Generic[Event]):
    """One story on its way to one reader."""

    def __init__(
        self,
        story: AsyncGenerator[Event, None],
        *,
        silence_s: float,
        heartbeat: Callable[[], Event],
        size_of: Callable[[Event], int],
        lighten: Callable[[Event], object] | None = None,
    ) -> None:
        """`heartbeat` makes the event that is sent whenever `silence_s` seconds would pass without one.

        `size_of` is an event's size in bytes. `lighten` takes out of it what a reader that is behind can do without.
        """
        self._story = story
        self._silence_s = silence_s
        self._heartbeat = heartbeat
        self._size_of = size_of
        self._lighten = lighten
        self._waiting: deque[tuple[Event, int]] = deque()
        self._size_bytes = 0
        self._told, self._taken = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._tell())
        self._why: UniTuneError | None = None

    def stop(self, why: UniTuneError) -> None:
        """End the story now; its reader gets what was told, then `why`. One that was told whole stays so."""
        self._why = self._why or why  # also in place of an error that the reader has not seen yet
        self._task.cancel()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events, to be read once. Raises what the story raised, or what it was stopped with."""
        try:
            while not (self._task.done() and not self._waiting):
                self._told.clear()
                if not self._waiting:
                    await self._something()
                if self._waiting:
                    event, size = self._waiting[0]
                    yield event  # the reader has it until it asks for the next one
                    self._waiting.popleft()
                    self._size_bytes -= size
                    self._taken.set()
                elif not self._task.done():
                    yield self._heartbeat()
            failed = self._task.cancelled() or self._task.exception() is not None
            if failed and self._why is not None:
                raise self._why
            self._task.result()
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _something(self) -> None:
        """Wait for an event, the story's end, or too long a silence."""
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait({told, self._task}, timeout=self._silence_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()

    async def _tell(self) -> None:
        async with aclosing(self._story) as story:
            async for event in story:
                size = self._size_of(event)
                if self._lighten is not None and not self._has_room(size):
                    self._lighten(event)
                    size = self._size_of(event)
                while not self._has_room(size):
                    self._taken.clear()
                    await self._taken.wait()
                self._waiting.append((event, size))
                self._size_bytes += size
                self._told.set()

    def _has_room(self, size: int) -> bool:
        return not self._waiting or (len(self._waiting) < WAITING_EVENTS and self._size_bytes + size <= WAITING_BYTES)
