"""Take turns, take medians, keep the spread."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """Seconds of one thing over all rounds."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """Ours over the peer's, round by round: the median, and the smallest and largest."""

    median: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, ours: Measured, peer: Measured) -> "Ratio":
        """The two must have been measured in the same rounds."""
        ratios = [mine / theirs for mine, theirs in zip(ours.seconds, peer.seconds, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


def seconds(work: Callable[[], object]) -> float:
    """The wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Measured]:
    """Each work once to warm up, then in turns."""
    for work in works.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    return {name: Measured(tuple(values)) for name, values in taken.items()}
