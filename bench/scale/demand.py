"""What all users of a day ask for: visits, each of a tuning and some edits of it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np

DAY_S = 86400.0


@dataclass(frozen=True)
class Demand:
    """Visits come at random, at a rate that goes with the hour of the day."""

    visits_per_day: float
    edits: int = 8  # of a visit
    looks_s: float = 8.0  # mean time from a picture to the next edit
    peak: float = 1.0  # the highest rate over the mean of the day
    tuned_share: float = 1.0  # of visits that begin with a new tuning; others go on with an older one

    def rate(self, time_s: float) -> float:
        """Visits a second at a time of the day; the peak is at noon."""
        height = math.cos(2 * math.pi * (time_s / DAY_S - 0.5))
        return self.peak * self.visits_per_day / DAY_S * math.exp(self._sharpness * (height - 1))

    def arrivals(self, begin_s: float, end_s: float, draws: Random) -> Iterator[float]:
        """The times at which visits begin."""
        highest = self.peak * self.visits_per_day / DAY_S
        time_s = begin_s
        while (time_s := time_s + draws.expovariate(highest)) < end_s:
            if draws.random() * highest <= self.rate(time_s):
                yield time_s

    @cached_property
    def _sharpness(self) -> float:
        """That of the curve exp(k cos) whose highest value is `peak` times its mean, by bisection."""
        low, high = 0.0, 200.0
        for _ in range(60):
            middle = (low + high) / 2
            # exp(k) / i0(k), as i0 grows beyond what a float holds
            is_low = 1 / float(np.i0(middle) * math.exp(-middle)) < self.peak
            low, high = (middle, high) if is_low else (low, middle)
        return low
