"""Passes events from a worker thread to the stream of one call.

A step is dropped when steps come too fast or nobody reads. The newest preview, the last step and all other events are
kept. So at most one step waits here, and every event that a run sends once.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Generic, TypeVar

from sampler_svc.sampling.events import Step

STEP_INTERVAL_S = 0.2

T = TypeVar("T")


class Mailbox(Generic[T]):
    """One writer in a worker thread, one reader on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[T | Step] = deque()
        self._arrived = asyncio.Event()
        self._is_closed = False
        self._preview = b""
        self._last_step = float("-inf")

    def put(self, event: T | Step) -> None:
        """Send an event; from the worker thread."""
        if isinstance(event, Step):
            self._preview = event.preview or self._preview
            now = time.monotonic()
            if now - self._last_step < STEP_INTERVAL_S and event.index + 1 < event.total:
                return
            event, self._preview, self._last_step = replace(event, preview=self._preview), b"", now
        self._loop.call_soon_threadsafe(self._take_in, event)

    def close(self) -> None:
        """End the stream after the events so far; from the worker thread."""
        self._loop.call_soon_threadsafe(self._end)

    async def events(self, heartbeat_s: float | None = None) -> AsyncIterator[T | Step | None]:
        """The events, until the mailbox is closed; None after `heartbeat_s` seconds without one, if that is given."""
        while True:
            while self._waiting:
                yield self._waiting.popleft()
            if self._is_closed:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), heartbeat_s)
            except TimeoutError:
                yield None

    def _take_in(self, event: T | Step) -> None:
        if isinstance(event, Step) and self._waiting and isinstance(self._waiting[-1], Step):
            unread = self._waiting.pop()
            assert isinstance(unread, Step)
            event = replace(event, preview=event.preview or unread.preview)
        self._waiting.append(event)
        self._arrived.set()

    def _end(self) -> None:
        self._is_closed = True
        self._arrived.set()
