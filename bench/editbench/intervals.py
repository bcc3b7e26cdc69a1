"""Means with bootstrap intervals. Whole pictures are drawn, since the edits of one picture share its tuning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.editbench.results import Result

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval; `count` cases went into it."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f}-{self.high:.2f})"

    def percent(self) -> str:
        """As percentages."""
        return f"{100 * self.mean:.1f} % ({100 * self.low:.0f}-{100 * self.high:.0f})"


def estimate(values: Sequence[tuple[str, float]]) -> Estimate | None:
    """Of (picture, value) pairs; None without any."""
    if not values:
        return None
    by_picture: dict[str, list[float]] = {}
    for picture, value in values:
        by_picture.setdefault(picture, []).append(value)
    sums = np.array([sum(group) for group in by_picture.values()])
    counts = np.array([len(group) for group in by_picture.values()])
    draws = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high), int(counts.sum()))


def mean_of(results: Sequence[Result], value: Callable[[Result], float | None]) -> Estimate | None:
    """Of a value of every result that has it."""
    return estimate([(r.picture, float(v)) for r in results if (v := value(r)) is not None])


def preference(ours: Sequence[Result], theirs: Sequence[Result]) -> dict[str, Estimate | None]:
    """How often ours is closer to the ground truth's picture, of all, aligned and unaligned cases; a tie is half."""
    other = {result.case: result.score.distance for result in theirs}
    wins = [
        (
            result,
            0.5 if result.score.distance == other[result.case] else float(result.score.distance < other[result.case]),
        )
        for result in ours
    ]
    chosen = {"all": (True, False), "aligned": (True,), "unaligned": (False,)}
    return {
        name: estimate([(result.picture, win) for result, win in wins if result.aligned in aligned])
        for name, aligned in chosen.items()
    }
