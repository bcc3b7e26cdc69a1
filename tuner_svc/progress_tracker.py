"""Counts the updates of a tuning, reports its progress, cancels it, and stops it when it diverges."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from tuner_svc.checkpoint import Checkpoints, StageState
from unitune import metrics
from unitune.errors import Cancelled, Internal

PROGRESS_S = 0.2  # between two reports, at least
MEAN_OF_LOSSES = 10  # updates; a single one says little, its timesteps are random
# A first update of at most that many seconds says nothing of the next ones: it fills caches and compiles.
WARM_UP_S = 10.0


@dataclass(frozen=True)
class UpdateProgress:
    """How far a tuning is. `loss` is the mean of the last losses, `left_s` is an estimate in seconds if there is one,
    and `learning_rate` is the current one. With `stopped_early` this update was the last one. `update_s` is the seconds
    of an update, once they can be told. `stage` is a word of TuningProgress.Stage, `warning` a sentence or empty. A
    tuning that went on from a checkpoint did so after `resumed_update`.
    """

    update: int
    total: int
    loss: float
    left_s: float | None
    learning_rate: float = 0.0
    stopped_early: bool = False
    update_s: float | None = None
    stage: str = "updating"
    resumed_update: int = 0
    warning: str = ""


class ProgressTracker:
    """The updates of one tuning, over all its stages. `losses` holds the loss of each."""

    def __init__(
        self,
        total: int,
        on_progress: Callable[[UpdateProgress], None],
        cancelled: Callable[[], bool],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.losses: list[float] = []
        self._total, self._on_progress, self._cancelled = total, on_progress, cancelled
        self._last: deque[float] = deque(maxlen=MEAN_OF_LOSSES)
        self._warning = ""
        self._started_s = time.monotonic()
        self._warm_s = self._started_s  # when the first update had ended
        self._reported_s = -math.inf
        self._checkpoints = checkpoints
        self._resumed = 0  # updates that an earlier attempt made

    def warn(self, text: str) -> None:
        """Tell a sentence with the progress of every update from now on."""
        self._warning = text

    def updates(
        self, number: int, learning_rate: float, stop_loss_ratio: float = 0.0, state: StageState | None = None
    ) -> Iterator[int]:
        """Counts `number` updates from 0, anew in each stage. The body of the loop is one update, and calls `record`.

        The loop ends early once the losses of this stage have fallen to `stop_loss_ratio`. A stage with a `state` is in
        checkpoints, and goes on from one, unless a stage before it has none. Raises Cancelled (TUNING_CANCELLED) before
        an update.
        """
        first = len(self.losses)
        is_kept = self._checkpoints is not None and state is not None
        done, is_over = self._resume(state) if is_kept else (0, False)
        for index in range(number if is_over else done, number):
            self.refuse_cancelled()
            yield index
            stops = index + 1 < number and have_fallen(self.losses[first:], stop_loss_ratio)
            left_s = self._report(learning_rate, stops)
            if self._checkpoints is not None and state is not None and not stops:
                self._checkpoints.update(self.losses[first:], left_s)
            if stops:
                break
        if self._checkpoints is not None and state is not None:
            self._checkpoints.end(self.losses[first:])

    def _resume(self, state: StageState | None) -> tuple[int, bool]:
        """The updates of a stage that are done, and whether it is over."""
        assert self._checkpoints is not None and state is not None
        saved = self._checkpoints.begin(state)
        if saved is None:
            return 0, False
        self.losses += saved.losses
        self._last.extend(saved.losses)
        self._resumed = len(self.losses)
        return len(saved.losses), saved.is_over

    def record(self, loss: Tensor) -> None:
        """Keep the loss of the current update. Raises Internal (TUNING_DIVERGED) unless it is finite."""
        self.losses.append(loss.item())
        metrics.TUNING_UPDATES.inc()
        self._last.append(self.losses[-1])
        if not math.isfinite(self.losses[-1]):
            raise self._diverged()

    def refuse_cancelled(self) -> None:
        """Raises Cancelled (TUNING_CANCELLED) once the tuning is cancelled."""
        if self._cancelled():
            raise Cancelled("the tuning was cancelled", reason="TUNING_CANCELLED")

    def refuse_infinite(self, results: Iterable[Tensor]) -> None:
        """Raises Internal (TUNING_DIVERGED) unless all are finite: after the last update no loss shows it."""
        if not all(bool(tensor.isfinite().all()) for tensor in results):
            raise self._diverged()

    def _report(self, learning_rate: float, stops: bool) -> float | None:
        """After the first update, then whenever PROGRESS_S have passed, and when the tuning stops early.

        What is left, in seconds, if that can be told.
        """
        now_s, update = time.monotonic(), len(self.losses)
        if update == self._resumed + 1:
            self._warm_s = now_s
        update_s = self._update_s(update - self._resumed, now_s)
        left_s = 0.0 if stops else None if update_s is None else update_s * (self._total - update)
        if now_s - self._reported_s < PROGRESS_S and not stops:
            return left_s
        self._reported_s = now_s
        loss = sum(self._last) / len(self._last)
        self._on_progress(
            UpdateProgress(
                update,
                self._total,
                loss,
                left_s,
                learning_rate,
                stops,
                update_s,
                resumed_update=self._resumed,
                warning=self._warning,
            )
        )
        return left_s

    def _update_s(self, update: int, now_s: float) -> float | None:
        """Seconds of an update, without the first one; None while only that was made, and was quick."""
        if update > 1:
            return (now_s - self._warm_s) / (update - 1)
        first_s = now_s - self._started_s
        return first_s if first_s > WARM_UP_S else None

    def _diverged(self) -> Internal:
        update = len(self.losses)
        message = f"the tuning diverged at update {update}: its loss was not finite; lower learning_rate"
        return Internal(message, reason="TUNING_DIVERGED", metadata={"update": str(update)})


def have_fallen(losses: Sequence[float], ratio: float) -> bool:
    """Whether the last MEAN_OF_LOSSES have a mean of at most `ratio` times that of the first; they do not overlap."""
    if ratio <= 0 or len(losses) < 2 * MEAN_OF_LOSSES:
        return False
    return sum(losses[-MEAN_OF_LOSSES:]) <= ratio * sum(losses[:MEAN_OF_LOSSES])
