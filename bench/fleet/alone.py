"""Edits one at a time, and as many as there are cores, at several moments of a run: what each of them takes."""

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from bench.fleet.services import Fleet
from bench.fleet.users import Lost, Made, Users

QUEUED_S = 0.05  # less is not waiting for another edit
CLIENT = "client"  # the process of the users, beside the kinds of services


class Alone:
    """What single edits took. A machine is not equally fast all the time, so they have to be spread over the run."""

    def __init__(self, fleet: Fleet, idle: Mapping[str, float]) -> None:
        """`idle` has the CPU seconds a second of each kind of process while nobody asks."""
        self._fleet, self._idle = fleet, idle
        self._cpu_s: dict[str, float] = defaultdict(float)
        self.made: list[Made] = []
        self.crowded: list[Made] = []  # at the same time as another one on every other core

    async def edit(self, users: Users, tunings: Sequence[int]) -> None:
        """Edits of these tunings, each after the one before. Raises RuntimeError for one that is lost."""
        before, began = cpu_s(self._fleet), time.monotonic()
        for index, tuning in enumerate(tunings):
            edit = await users.edit(tuning, seed=len(self.made), gateway=index)
            if isinstance(edit, Lost):
                raise RuntimeError(f"an edit was lost: {edit.error}")
            self.made.append(edit)
        passed_s = time.monotonic() - began
        for kind, seconds in cpu_s(self._fleet).items():
            self._cpu_s[kind] += seconds - before[kind] - self._idle[kind] * passed_s

    async def crowd(self, users: Users, tunings: Sequence[int], times: int) -> None:
        """Edits of these tunings at once, so many times. What waited for another one does not count."""
        for seed in range(times):
            edits = await asyncio.gather(*(users.edit(tuning, seed=seed, gateway=tuning) for tuning in tunings))
            self.crowded += [edit for edit in edits if isinstance(edit, Made) and edit.queue_s < QUEUED_S]

    def crowding(self) -> float:
        """How many times as long an edit samples while all cores do; 1 where that was not measured."""
        if not self.crowded:
            return 1.0
        alone_s = statistics.fmean(edit.sampling_s for edit in self.made)
        return max(1.0, statistics.fmean(edit.sampling_s for edit in self.crowded) / alone_s)

    def cpu_s(self, kind: str) -> float:
        """The CPU seconds that an edit took of a kind of process."""
        return max(0.0, self._cpu_s[kind]) / len(self.made)


def cpu_s(fleet: Fleet) -> dict[str, float]:
    """CPU seconds so far, by kind of process."""
    return {**fleet.cpu_s(), CLIENT: time.process_time()}
