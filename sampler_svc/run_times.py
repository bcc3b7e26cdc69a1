"""What runs and refits took lately, and so how long a run that comes now waits for an engine."""

import heapq
import time
from collections.abc import Iterable

NEWEST = 0.3  # the share of the last one in what they took lately


class RunTimes:
    """Seconds, 0 before the first. Worker threads write them, the event loop reads them."""

    def __init__(self) -> None:
        self.edit_s = 0.0  # of a run, without waiting and refit
        self.refit_s = 0.0  # of a refit from the store
        self.kept_refit_s = 0.0  # of a refit with weights that were kept

    def edited(self, seconds: float) -> None:
        """A run has ended well."""
        self.edit_s = _moved(self.edit_s, seconds)

    def refitted(self, seconds: float, *, was_kept: bool) -> None:
        """An engine was refitted."""
        if was_kept:
            self.kept_refit_s = _moved(self.kept_refit_s, seconds)
        else:
            self.refit_s = _moved(self.refit_s, seconds)

    def queued_s(self, engines: int, began_s: Iterable[float], num_waiting: int) -> float:
        """The estimated wait of a run that comes now, where others have run since `began_s` by the monotonic clock."""
        now_s = time.monotonic()
        free_in_s = [max(0.0, self.edit_s - (now_s - began)) for began in began_s]
        free_in_s += [0.0] * (engines - len(free_in_s))
        heapq.heapify(free_in_s)
        for _ in range(num_waiting):
            heapq.heapreplace(free_in_s, free_in_s[0] + self.edit_s)
        return free_in_s[0]


def _moved(mean_s: float, seconds: float) -> float:
    return seconds if mean_s == 0 else mean_s + NEWEST * (seconds - mean_s)
