"""Tells the stages of a program that works for minutes: each as it begins, with what it took here the last time."""

import time
from collections.abc import Callable, Mapping

AGAIN_S = 15.0  # nothing is silent for longer
WORTH_TELLING_S = 2.0


class StageLog:
    """The stages so far. `took_s` has the seconds of those that have ended."""

    def __init__(self, say: Callable[[str], object], known_s: Mapping[str, float] | None = None) -> None:
        """`known_s` has the seconds of each stage in the last build of the same kind, if there was one."""
        self.took_s: dict[str, float] = {}
        self._say, self._known_s = say, known_s or {}
        self._stage, self._began_s, self._said_s = "", 0.0, 0.0

    def begin(self, stage: str) -> None:
        """End the current stage and begin this one, a line such as `export: loading the base model ...`."""
        self.end()
        self._stage, self._began_s = stage, time.monotonic()
        known_s = self._known_s.get(stage, 0.0)
        self._tell(f" about {known_s:.0f} s" if known_s >= WORTH_TELLING_S else "")

    def tick(self) -> None:
        """Tell the stage again if that was long ago; called all the time."""
        now_s = time.monotonic()
        if not self._stage or now_s - self._said_s < AGAIN_S:
            return
        spent_s = now_s - self._began_s
        known_s = self._known_s.get(self._stage, 0.0)
        left = f", about {known_s - spent_s:.0f} s left" if known_s > spent_s else ""
        self._tell(f" {spent_s:.0f} s so far{left}")

    def end(self) -> None:
        """End the current stage, if there is one."""
        if self._stage:
            took_s = time.monotonic() - self._began_s
            self.took_s[self._stage] = self.took_s.get(self._stage, 0.0) + took_s  # a stage may come twice
            self._stage = ""

    def _tell(self, note: str) -> None:
        self._said_s = time.monotonic()
        self._say(f"  {self._stage}{note}")
