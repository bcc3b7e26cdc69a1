"""Memory, open files, threads and tasks of each process, over its life, and whether they grow."""

import asyncio
import re
import statistics
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.process_memory import memory_of
from bench.soak.ledger import Ledger
from bench.soak.services import NAMES, Services

EVERY_S = 2.0
ANSWER_S = 2.0  # that metrics may take; a frozen service has none
TASKS = re.compile(r"^unitune_tasks (\S+)$", re.MULTILINE)
KINDS = ("memory in MB", "files", "threads", "tasks")
# A process is looked at after the first part of its life, if what is left is long enough.
WARM_SHARE, SHORTEST_S = 0.3, 90.0
# What a line through the samples may rise from end to end, absolute or as a share of their mean.
MAY_RISE = {"memory in MB": 48.0, "files": 16.0, "threads": 16.0, "tasks": 40.0}
MAY_RISE_SHARE = 0.15


@dataclass
class Life:
    """One process of a service, and what it had at which time."""

    service: str
    pid: int
    times_s: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})


@dataclass(frozen=True)
class Trend:
    """How one figure of a process went: its mean, and what a line through it rises from end to end."""

    life: Life
    kind: str
    span_s: float
    mean: float
    rise: float

    @property
    def is_flat(self) -> bool:
        """Whether it rises no more than it may."""
        return self.rise <= max(MAY_RISE[self.kind], MAY_RISE_SHARE * self.mean)


class Sampler:
    """Looks at all services at intervals."""

    def __init__(self, services: Services, ledger: Ledger) -> None:
        self._services, self._ledger = services, ledger
        self.lives: list[Life] = []

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.gather(*(asyncio.to_thread(self._sample, name) for name in NAMES))
            await asyncio.sleep(EVERY_S)

    def _sample(self, name: str) -> None:
        pid = self._services.process(name).pid
        with suppress(OSError, KeyError):  # it ends just now, or its metrics are not there yet
            metrics = urllib.request.urlopen(f"http://{self._services.metrics[name]}/metrics", timeout=ANSWER_S)
            tasks = TASKS.search(metrics.read().decode())
            process = Path(f"/proc/{pid}")
            found = {
                "memory in MB": memory_of(pid).private / 1e6,
                "files": float(len(list((process / "fd").iterdir()))),
                "threads": float(len(list((process / "task").iterdir()))),
                "tasks": float(tasks[1]) if tasks else 0.0,
            }
            life = next((life for life in self.lives if life.pid == pid), None)
            if life is None:
                life = Life(name, pid)
                self.lives.append(life)
            life.times_s.append(self._ledger.now_s)
            for kind, value in found.items():
                life.values[kind].append(value)


def trends(lives: Sequence[Life]) -> list[Trend]:
    """Of every process that lived long enough."""
    found = []
    for life in lives:
        first = int(WARM_SHARE * len(life.times_s))
        times = life.times_s[first:]
        if len(times) < 2 or times[-1] - times[0] < SHORTEST_S:
            continue
        for kind in KINDS:
            values = life.values[kind][first:]
            slope = statistics.linear_regression(times, values).slope
            span_s = times[-1] - times[0]
            found.append(Trend(life, kind, span_s, statistics.fmean(values), slope * span_s))
    return found
