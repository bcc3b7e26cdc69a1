"""One run of the tuner, shared by the event loop and the PyTorch thread."""

import asyncio
import contextlib
import time
from dataclasses import replace

from tuner_svc.progress_tracker import UpdateProgress
from unitune.errors import Cancelled


class TuningRun:
    """One RunTuning: its latest progress, and whether it should stop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_started = False
        self.is_cancelled = False
        self.progress: UpdateProgress | None = None  # the latest; unread older ones are dropped
        self._reported: tuple[UpdateProgress, float] | None = None  # the latest, and when it came
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Stop before the next update, or the next part of the work around them; from the event loop."""
        self.is_cancelled = True
        self._changed.set()

    def refuse_cancelled(self) -> None:
        """Raises Cancelled (TUNING_CANCELLED) once the run is cancelled; from any thread."""
        if self.is_cancelled:
            raise Cancelled("the tuning was cancelled", reason="TUNING_CANCELLED")

    def report(self, progress: UpdateProgress) -> None:
        """From the PyTorch thread."""
        self.progress = progress
        self._reported = progress, time.monotonic()
        self.wake()

    def progress_now(self) -> UpdateProgress | None:
        """The latest progress, with the time that is left by now; None before the first."""
        if self._reported is None:
            return None
        progress, reported_s = self._reported
        if progress.left_s is None:
            return progress
        return replace(progress, left_s=max(0.0, progress.left_s - (time.monotonic() - reported_s)))

    def wake(self) -> None:
        """Make `changed` return; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop may be closed after a drain
            self._loop.call_soon_threadsafe(self._changed.set)

    async def changed(self, timeout_s: float) -> bool:
        """Wait until something changed; False if nothing did in that time."""
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return False
        self._changed.clear()
        return True
