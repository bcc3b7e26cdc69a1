"""The stage that a run is in, for the heartbeats of its stream and for its trace, and how long each stage took in the
runs before it."""

import time
from dataclasses import dataclass

from opentelemetry import context
from opentelemetry.trace import Span

from unitune.tracing import TRACER

# The words of EditEvent.Heartbeat.Stage.
WAITING, LOADING, PREPARING, SAMPLING, DECODING = "waiting", "loading", "preparing", "sampling", "decoding"


@dataclass(frozen=True)
class StageNow:
    """A run's stage, the seconds it has been in it, and those that are left of it if there is an estimate."""

    stage: str
    stage_s: float
    left_s: float | None


class RunStages:
    """The stages of one run. A worker thread begins them, the event loop reads them."""

    def __init__(self, took_s: dict[str, float]) -> None:
        """`took_s` has the seconds of each stage in the last run that went through it. All runs of a sampler share it,
        and each writes its own."""
        self._took_s = took_s
        self._now = WAITING, time.monotonic()  # one value, so that no half of it is read
        self._trace = context.get_current()  # of the call
        self._span: Span = TRACER.start_span(WAITING, context=self._trace)
        self._step_began_ns = time.time_ns()

    def begin(self, stage: str) -> None:
        """End the current stage and begin this one. The current one goes on if it is this one."""
        if stage != self._now[0]:
            self.end()
            self._now = stage, time.monotonic()
            self._span.end()
            self._span = TRACER.start_span(stage, context=self._trace)
            if stage == PREPARING:
                self._step_began_ns = time.time_ns()

    def step(self, index: int, total: int) -> None:
        """A step of the denoiser has ended. Its span begins with the end of the step before it; that of the first has
        the preparation in it."""
        told = {"unitune.step": index, "unitune.steps": total}
        began_ns, self._step_began_ns = self._step_began_ns, time.time_ns()
        TRACER.start_span("step", context=self._trace, start_time=began_ns, attributes=told).end()

    def close(self) -> None:
        """The run has ended, however it did."""
        self._span.end()

    def end(self) -> None:
        """Keep what the current stage took. Waiting says nothing of the next run."""
        stage, began_s = self._now
        if stage != WAITING:
            self._took_s[stage] = time.monotonic() - began_s

    def now(self) -> StageNow:
        """Where the run is."""
        stage, began_s = self._now
        stage_s = time.monotonic() - began_s
        took_s = self._took_s.get(stage)
        return StageNow(stage, stage_s, None if took_s is None else max(0.0, took_s - stage_s))
