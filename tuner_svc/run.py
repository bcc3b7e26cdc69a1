"""One run of the tuner, as the event loop and the worker thread share it."""

import asyncio
import contextlib

from tuner_svc.course import Progress


class Run:
    """One RunTuning: what the worker thread has to say, and whether it should stop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_started = False
        self.is_cancelled = False
        self.progress: Progress | None = None  # the latest; an older one that nobody read is dropped
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Stop before the next update; from the event loop."""
        self.is_cancelled = True
        self._changed.set()

    def tell(self, progress: Progress) -> None:
        """From the worker thread."""
        self.progress = progress
        self.wake()

    def wake(self) -> None:
        """Make `changed` return; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed when a drain was cut short
            self._loop.call_soon_threadsafe(self._changed.set)

    async def changed(self, timeout_s: float) -> bool:
        """Wait until something changed; False if nothing did in that time."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        self._changed.clear()
        return True
