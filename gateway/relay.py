"""Between a story and its reader: the story runs in a task of its own, the reader gets its events and signs of life.

A story is an async generator. It can be stopped whatever its reader does, even one that has stopped
reading, and it never outlives the reader.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from unitune.errors import UniTuneError

Event = TypeVar("Event")

WAITING_EVENTS = 4  # between story and reader; more would only cost memory, since a slow reader slows the story


class Relay(Generic[Event]):
    """One story on its way to one reader."""

    def __init__(self, story: AsyncGenerator[Event, None], *, silence_s: float, heartbeat: Callable[[], Event]) -> None:
        """`heartbeat` makes the event that is sent whenever `silence_s` seconds would pass without one."""
        self._story = story
        self._silence_s = silence_s
        self._heartbeat = heartbeat
        self._queue: asyncio.Queue[Event] = asyncio.Queue(WAITING_EVENTS)
        self._task = asyncio.create_task(self._tell())
        self._why: UniTuneError | None = None

    def stop(self, why: UniTuneError) -> None:
        """End the story now; its reader gets what was told, then `why`. One that was told whole stays so."""
        self._why = self._why or why  # also in place of an error that the reader has not seen yet
        self._task.cancel()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events, to be read once. Raises what the story raised, or what it was stopped with."""
        try:
            while not (self._task.done() and self._queue.empty()):
                got = asyncio.ensure_future(self._queue.get())
                try:
                    await asyncio.wait({got, self._task}, timeout=self._silence_s, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not got.done():
                        got.cancel()
                if got.done() and not got.cancelled():
                    yield got.result()
                elif not self._task.done():
                    yield self._heartbeat()
            failed = self._task.cancelled() or self._task.exception() is not None
            if failed and self._why is not None:
                raise self._why
            self._task.result()
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _tell(self) -> None:
        async with aclosing(self._story) as story:
            async for event in story:
                await self._queue.put(event)
