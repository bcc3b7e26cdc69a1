"""How long edits take at the sampler, and so how long one that comes now takes at least."""

from collections import deque

KEPT_TURNS = 16
NEEDED_TURNS = 3  # fewer say too little


class TurnTimes:
    """The seconds of a step in the last turns."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=KEPT_TURNS)

    def note(self, steps: int, seconds: float) -> None:
        """So many steps at least have taken so long, without what comes before and after them."""
        self._seconds.append(seconds / max(1, steps))

    def at_least_s(self, steps: float) -> float | None:
        """The seconds of so many steps in the fastest of the last turns; None while too few are known."""
        if len(self._seconds) < NEEDED_TURNS:
            return None
        return steps * min(self._seconds)
