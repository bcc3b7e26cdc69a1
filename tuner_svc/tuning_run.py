"""One run of the tuner, shared by the event loop and the PyTorch thread."""

import asyncio
import contextlib
import math
import time
from dataclasses import replace
from typing import NamedTuple

from tuner_svc.progress_tracker import UpdateProgress
from tuner_svc.tuning_stages import AFTER_UPDATES
from unitune.errors import Cancelled


class MadeCheckpoint(NamedTuple):
    """A checkpoint in the store: its path, its SHA-256, and the updates that are done in it."""

    path: str
    sha256: str
    update: int


class TuningRun:
    """One attempt at a tuning: its latest progress, and whether it should stop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_cancelled = False
        self.is_lost = False  # the gateway knows that this attempt is over, or was told
        self.is_over = False  # it makes no more progress
        self.is_unwanted = False  # the tuning was cancelled or deleted
        self.checkpoints: list[MadeCheckpoint] = []  # in the store, and not reported yet; the last one counts
        self.progress: UpdateProgress | None = None  # the latest; unread older ones are dropped
        self._reported: tuple[UpdateProgress, float] | None = None  # the latest, and when it came
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Stop before the next update, or the next part of the work around them; from the event loop."""
        self.is_cancelled = True
        self._changed.set()

    def end(self) -> None:
        """It makes no more progress; from the event loop."""
        self.is_over = True
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

    def left_s(self) -> float:
        """The seconds that are left of the run; infinity if that cannot be told and is not little."""
        progress = self.progress_now()
        if progress is None or progress.left_s is None:
            return 0.0 if progress is not None and progress.stage in AFTER_UPDATES else math.inf
        return progress.left_s

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
