"""The stages of a tuning, and how long those after its updates will take, learned from the tunings before it."""

import time
from collections.abc import Callable, Hashable
from dataclasses import replace

from opentelemetry import context

from tuner_svc.progress_tracker import UpdateProgress
from unitune import metrics
from unitune.tracing import TRACER

AFTER_UPDATES = ("packing", "storing")
# What packing takes in updates until one was timed: four passes of two rows and one backward pass, where an update has
# one pass and one backward pass of four rows by default. Storing is a copy.
FIRST_GUESS = {"packing": 1.0, "storing": 0.0}


class StageTimes:
    """What the stages after the updates took in the last tuning of each kind, in updates. One for a tuner process."""

    def __init__(self) -> None:
        self._in_updates: dict[tuple[Hashable, str], float] = {}

    def seconds(self, kind: Hashable, stage: str) -> float:
        """A stage's time in updates."""
        return self._in_updates.get((kind, stage), FIRST_GUESS[stage])

    def learn(self, kind: Hashable, stage: str, in_updates: float) -> None:
        """Take the place of what was known."""
        self._in_updates[kind, stage] = in_updates


class TuningStages:
    """The stages of one tuning, told as they begin. Used on the PyTorch thread."""

    def __init__(self, times: StageTimes, kind: Hashable, total: int, report: Callable[[UpdateProgress], None]) -> None:
        """`kind` is everything that packing's time depends on, besides the model and the machine."""
        self._times, self._kind, self._report = times, kind, report
        self._began_s = time.monotonic()
        self._update_s: float | None = None  # seconds of one update
        self._last = UpdateProgress(0, total, loss=0.0, left_s=None, stage="preparing")
        self._measured = self._last.stage, self._began_s
        self._trace = context.get_current()  # of the attempt
        self._span = TRACER.start_span(self._last.stage, context=self._trace)
        report(self._last)

    def updated(self, progress: UpdateProgress) -> None:
        """Pass on the progress of an update. What is left includes the stages after the last one."""
        if progress.update_s is not None:
            self._update_s = progress.update_s
        left_s = None if progress.left_s is None else progress.left_s + self._left_s(AFTER_UPDATES)
        self._last = replace(progress, left_s=left_s)
        self._measure(progress.stage)
        self._report(self._last)

    def begin(self, stage: str) -> None:
        """Begin one of AFTER_UPDATES."""
        self.end()
        self._began_s = time.monotonic()
        left = AFTER_UPDATES[AFTER_UPDATES.index(stage) :]
        left_s = None if self._update_s is None else self._left_s(left)
        self._last = replace(self._last, stage=stage, left_s=left_s)
        self._measure(stage)
        self._report(self._last)

    def end(self) -> None:
        """Learn from the stage that has ended."""
        if self._last.stage in AFTER_UPDATES and self._update_s:
            self._times.learn(self._kind, self._last.stage, (time.monotonic() - self._began_s) / self._update_s)

        if self._last.stage == AFTER_UPDATES[-1]:
            self._measure("")

    def close(self) -> None:
        """The attempt is over, however it ended."""
        self._measure("")

    def _measure(self, stage: str) -> None:
        """Tell the metrics and the trace how long the stage before this one took."""
        before, began_s = self._measured
        if stage != before:
            metrics.TUNING_STAGE_S.labels(before).observe(time.monotonic() - began_s)
            self._measured = stage, time.monotonic()
            self._span.end()
            if stage:
                self._span = TRACER.start_span(stage, context=self._trace)

    def _left_s(self, stages: tuple[str, ...]) -> float:
        return (self._update_s or 0.0) * sum(self._times.seconds(self._kind, stage) for stage in stages)
