"""Runs a generator of events in a task of its own and adds heartbeats, so that it can be stopped even while its reader
does not read.

The generator never outlives its reader. What it has emitted waits for the reader up to a bound. Beyond the bound the
generator waits, too, unless its events are stored elsewhere: then they wait there, and it goes on at its own speed.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from unitune.errors import DeadlineExceeded, UniTuneError

Event = TypeVar("Event")

# Between generator and reader, including the event that the reader has now. A larger event waits alone.
WAITING_EVENTS = 4
WAITING_BYTES = 256 << 10

EVENT_BYTES = 256  # of memory for an event beside its message's bytes, and for one that is stored
# A generator whose event is neither stored nor has room waits for its reader. In all it waits for BEHIND_S, longer if
# the reader takes BEHIND_BYTES_PER_S, and for LONGEST_BEHIND_S at most.
BEHIND_S = 5.0
BEHIND_BYTES_PER_S = 1 << 20
LONGEST_BEHIND_S = 60.0
POLL_S = 0.1  # between two looks whether the reader took something


@dataclass(frozen=True)
class _Stored(Generic[Event]):
    """An event that waits elsewhere."""

    load: Callable[[], Awaitable[Event]]


class Relay(Generic[Event]):
    """Passes the events of one generator to one reader."""

    def __init__(
        self,
        source: AsyncGenerator[Event, None],
        *,
        silence_s: float,
        heartbeat: Callable[[], Event],
        size_of: Callable[[Event], int],
        lighten: Callable[[Event], object] | None = None,
        stored: Callable[[Event], Callable[[], Awaitable[Event]] | None] | None = None,
    ) -> None:
        """`heartbeat` makes the event that is sent whenever `silence_s` seconds would pass without one.

        `size_of` is an event's size in bytes. `lighten` takes out of it what a reader that is behind can do without.
        `stored` says what reads an event again that is stored elsewhere, None for one that is not. With it a reader
        that is too far behind ends the generator with DeadlineExceeded (READER_TOO_SLOW).
        """
        self._source = source
        self._silence_s = silence_s
        self._heartbeat = heartbeat
        self._size_of = size_of
        self._lighten = lighten
        self._stored = stored
        self._waiting: deque[tuple[Event | _Stored[Event], int]] = deque()
        self._size_bytes = 0  # of what waits
        self._read_bytes = 0
        self._behind_s = 0.0  # that the generator has waited for its reader
        self._emitted, self._taken = asyncio.Event(), asyncio.Event()
        self._task = asyncio.create_task(self._emit())
        self._reason: UniTuneError | None = None

    def stop(self, reason: UniTuneError) -> None:
        """End the generator now. Its reader gets what was emitted, then `reason`. After its end it has no effect."""
        self._reason = self._reason or reason  # also in place of an error that the reader has not seen yet
        self._task.cancel()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events, to be read once. Raises what the generator raised, or what it was stopped with."""
        try:
            while not (self._task.done() and not self._waiting):
                self._emitted.clear()
                if not self._waiting:
                    await self._wait_for_event()
                if self._waiting:
                    event = self._waiting[0][0]
                    # The reader has it until it asks for the next one.
                    yield await event.load() if isinstance(event, _Stored) else event
                    self._pop()
                elif not self._task.done():
                    yield self._heartbeat()
            failed = self._task.cancelled() or self._task.exception() is not None
            if failed and self._reason is not None:
                raise self._reason
            self._task.result()
        finally:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            while self._waiting:
                self._pop()

    async def _wait_for_event(self) -> None:
        """Wait for an event, the generator's end, or too long a silence."""
        emitted = asyncio.ensure_future(self._emitted.wait())
        try:
            await asyncio.wait({emitted, self._task}, timeout=self._silence_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            emitted.cancel()

    async def _emit(self) -> None:
        async with aclosing(self._source) as source:
            async for event in source:
                size = self._size_of(event)
                waits: Event | _Stored[Event] = event
                if not self._fits(size):
                    if self._lighten is not None:
                        self._lighten(event)
                        size = self._size_of(event)
                    if self._stored is not None:
                        size += EVENT_BYTES
                        if (load := self._stored(event)) is not None:
                            waits, size = _Stored(load), EVENT_BYTES
                while not (self._fits(size) or (self._stored is not None and self._fits_behind(size))):
                    await self._wait_for_reader()
                self._waiting.append((waits, size))
                self._size_bytes += size
                self._emitted.set()

    def _fits(self, size: int) -> bool:
        return not self._waiting or (len(self._waiting) < WAITING_EVENTS and self._size_bytes + size <= WAITING_BYTES)

    def _fits_behind(self, size: int) -> bool:
        """Whether there is room behind the event that the reader has now, however large that is."""
        return self._size_bytes - self._waiting[0][1] + size <= WAITING_BYTES

    def _pop(self) -> None:
        _, size = self._waiting.popleft()
        self._size_bytes -= size
        self._read_bytes += size
        self._taken.set()

    async def _wait_for_reader(self) -> None:
        """Wait until the reader took an event; with `stored` for POLL_S. Raises DeadlineExceeded (READER_TOO_SLOW)."""
        self._taken.clear()
        if self._stored is None:
            await self._taken.wait()
            return
        began = time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._taken.wait(), POLL_S)
        self._behind_s += time.monotonic() - began
        if self._behind_s > min(BEHIND_S + self._read_bytes / BEHIND_BYTES_PER_S, LONGEST_BEHIND_S):
            raise DeadlineExceeded(
                f"the reader is {self._size_bytes} bytes behind: "
                "read the stream without pauses, or ask for fewer pictures at once",
                reason="READER_TOO_SLOW",
                metadata={"size_bytes": str(self._size_bytes)},
            )
