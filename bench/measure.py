"""Measures in turns; gives medians with their spread."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

SAME_PICTURE_DB = 40.0  # below this two pictures are not the same, and their times are not compared


@dataclass(frozen=True)
class Measured:
    """Seconds of one work in all rounds."""

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
    def divide(cls, ours: Measured, peer: Measured) -> "Ratio":
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


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share`, in (0, 1], of all do not exceed. Raises ValueError for no values."""
    if not values or not 0 < share <= 1:
        raise ValueError(f"percentile {share} of {len(values)} values")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, the smallest, the largest, and the number of rounds."""
    return {
        "median": statistics.median(values),
        "smallest": min(values),
        "largest": max(values),
        "rounds": len(values),
    }


def psnr_db(ours: np.ndarray, theirs: np.ndarray) -> float:
    """PSNR of two uint8 pictures; at most 100, for equal ones. Raises ValueError for different shapes."""
    if ours.shape != theirs.shape:
        raise ValueError(f"pictures of shapes {ours.shape} and {theirs.shape}")
    error = float(np.mean(((ours.astype(np.float64) - theirs) / 255) ** 2))
    return min(-10 * math.log10(error), 100.0) if error > 0 else 100.0


def claimed(ours: Measured, peer: Measured, alike_db: float) -> dict[str, object]:
    """The ratio with its spread, or the reason why there is none: a peer with another picture is not compared."""
    if not alike_db >= SAME_PICTURE_DB:  # also when it is not a number
        return {"refused": f"the pictures agree to {alike_db:.1f} dB only; {SAME_PICTURE_DB:g} are needed"}
    return asdict(Ratio.divide(ours, peer))
