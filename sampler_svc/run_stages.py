"""The stage that a run is in, for the heartbeats of its stream, and how long each stage took in the runs before it."""

import time

from unitune.v1.edit_pb2 import EditEvent

Heartbeat = EditEvent.Heartbeat


class RunStages:
    """The stages of one run. A worker thread begins them, the event loop reads them."""

    def __init__(self, took_s: dict[int, float]) -> None:
        """`took_s` has the seconds of each stage in the last run that went through it. All runs of a sampler share it,
        and each writes its own."""
        self._took_s = took_s
        self._now: tuple[int, float] = (
            Heartbeat.STAGE_WAITING,
            time.monotonic(),
        )  # one value, so that no half of it is read

    def begin(self, stage: int) -> None:
        """End the current stage and begin this one. The current one goes on if it is this one."""
        if stage != self._now[0]:
            self.end()
            self._now = (stage, time.monotonic())

    def end(self) -> None:
        """Keep what the current stage took. Waiting says nothing of the next run."""
        stage, began_s = self._now
        if stage != Heartbeat.STAGE_WAITING:
            self._took_s[stage] = time.monotonic() - began_s

    def heartbeat(self) -> Heartbeat:
        """Where the run is now."""
        stage, began_s = self._now
        stage_s = time.monotonic() - began_s
        told = Heartbeat(stage=Heartbeat.Stage.Name(stage), stage_s=stage_s)
        if stage in self._took_s:
            told.stage_left_s = max(0.0, self._took_s[stage] - stage_s)
        return told
