"""Which engine holds which weights. A lease is the right to use an engine that holds given weights, for one sample.

A refit is a write. It happens only here, inside a lease, so never during a run. The methods block; the service calls
them from its worker threads.

An edit that mixes in the base model needs two sets of weights at once. For that there is one more engine, opened when
it is first needed. It keeps the base weights and is used for one pass at a time. Whoever uses it waits for nothing
else, so leases and passes cannot wait for each other.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sampler_svc.engines.engine import BASE, TOO_SMALL, Array, Engine, RefitReport, WeightSet
from unitune import metrics, telemetry
from unitune.errors import DataLoss

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """An engine that holds the requested weights, and what the refit took."""

    engine: Engine
    warm: bool  # the engine already held them
    refit_s: float  # from the weights file to the proven engine; 0 if warm
    probe_ratio: float  # of their refit


@dataclass(eq=False)
class _Slot:
    """One place for an engine."""

    engine: Engine | None = None
    is_leased: bool = False
    used: int = 0  # number of its last lease
    probe_ratio: float = TOO_SMALL
    to_forget: set[str] = field(default_factory=set)  # weights evicted during the lease


class EnginePool:
    """A fixed number of engines, which start with the base weights."""

    def __init__(
        self, open_engine: Callable[[], Engine], base: WeightSet, size: int = 1, *, is_lazy: bool = False
    ) -> None:
        """Opens all engines, or each at its first lease. Raises what opening or proving one raises."""
        self._open_engine, self._base = open_engine, base
        self._changed = threading.Condition()
        self._refitting: set[str] = set()
        self._waiting: dict[object, str] = {}  # waiter to weights, in order of arrival
        self._leases = 0
        self._slots = [_Slot(None if is_lazy else self._open()) for _ in range(size)]
        self._base_turn = threading.Lock()
        self._base_engine: Engine | None = None

    @property
    def size(self) -> int:
        """The number of engines, and of leases at the same time."""
        return len(self._slots)

    def resident(self) -> list[str]:
        """The tuned weights that an engine holds now."""
        with self._changed:
            engines = [slot.engine for slot in self._slots]  # read once: the end of a lease may replace one
            held = {engine.weights for engine in engines if engine is not None}
            return sorted(weights for weights in held if weights not in (None, BASE))

    def num_warm(self) -> int:
        """How many engines hold tuned weights."""
        with self._changed:
            engines = [slot.engine for slot in self._slots]
            return sum(engine is not None and engine.weights not in (None, BASE) for engine in engines)

    def is_free(self) -> bool:
        """Whether a lease would begin at once."""
        with self._changed:
            return not self._waiting and not all(slot.is_leased for slot in self._slots)

    @contextmanager
    def lease(self, weights: str, read: Callable[[], WeightSet]) -> Iterator[Lease]:
        """Wait for an engine, refit it if needed, and keep it until the end of the `with` block.

        Leases are granted first come, first served. Waiters whose weights are being refitted are skipped: after that
        refit they find an engine that holds their weights. `read` is called only for a refit. Raises what `read`
        raises, and DataLoss when the probe fails: the engine then goes back to the base weights.
        """
        slot = self._take(weights)
        try:
            yield self._hold(slot, weights, read)
        finally:
            self._give_back(slot)

    def run_base(self, latents: Array, timesteps: NDArray[np.int64], contexts: Array) -> Array:
        """As Engine.run, on the base weights, beside any lease. Raises what opening their engine raises."""
        with self._base_turn:
            if self._base_engine is None:
                self._base_engine = self._open()
            return self._base_engine.run(latents, timesteps, contexts)

    def evict(self, weights: str) -> None:
        """Forget weights now, or at the end of the lease that is using them."""
        if weights == BASE:
            return
        with self._changed:
            free = [slot for slot in self._slots if not slot.is_leased and _holds(slot, weights)]
            for slot in self._slots:
                if slot.is_leased or slot in free:  # if a lease's read fails, its engine keeps the old weights
                    slot.to_forget.add(weights)
            for slot in free:
                slot.is_leased = True
        for slot in free:
            self._give_back(slot)

    def close(self) -> None:
        """Free all engines."""
        for engine in [self._base_engine, *(slot.engine for slot in self._slots)]:
            if engine is not None:
                engine.close()

    def _take(self, weights: str) -> _Slot:
        with self._changed:
            me = object()
            self._waiting[me] = weights
            try:
                self._changed.wait_for(lambda: self._is_turn(me))
            finally:
                del self._waiting[me]
                self._changed.notify_all()  # the next waiter may take another engine
            free = [slot for slot in self._slots if not slot.is_leased]
            # The one that already holds the weights, else the least recently used one.
            slot = min(free, key=lambda slot: (not _holds(slot, weights), slot.used))
            self._leases += 1
            slot.is_leased, slot.used = True, self._leases
            if not _holds(slot, weights):
                self._refitting.add(weights)
            return slot

    def _is_turn(self, me: object) -> bool:
        """Whether an engine is free and all earlier waiters wait for a running refit."""
        able = (waiting for waiting, weights in self._waiting.items() if weights not in self._refitting)
        return next(able, None) is me and not all(slot.is_leased for slot in self._slots)

    def _hold(self, slot: _Slot, weights: str, read: Callable[[], WeightSet]) -> Lease:
        if slot.engine is not None and slot.engine.weights == weights:
            return Lease(slot.engine, True, 0.0, slot.probe_ratio)
        began = time.perf_counter()
        try:
            if slot.engine is None:
                slot.engine = self._open_engine()
            report = _refit(slot.engine, self._base if weights == BASE else read())
        finally:
            with self._changed:
                self._refitting.discard(weights)
                self._changed.notify_all()
        slot.probe_ratio = report.probe_ratio
        refit_s = time.perf_counter() - began
        metrics.REFIT_S.observe(refit_s)
        return Lease(slot.engine, False, refit_s, report.probe_ratio)

    def _give_back(self, slot: _Slot) -> None:
        """End a lease. An engine with unknown weights, or with weights to forget, is replaced by a new one. One that
        nobody waits for rests."""
        if slot.engine is None or slot.engine.weights is None or slot.engine.weights in slot.to_forget:
            try:
                if slot.engine is not None:
                    slot.engine.close()
                slot.engine = None
                slot.engine = self._open()
            except Exception:  # the next lease tries again, and raises
                telemetry.failure(logger, "an engine could not be opened again")
        elif not self._waiting:
            try:
                slot.engine.rest()
            except Exception:  # its lease is over, and the next run raises what is wrong
                telemetry.failure(logger, "an engine kept the memory of its runs")
        with self._changed:
            slot.is_leased = False
            slot.to_forget.clear()
            self._changed.notify_all()

    def _open(self) -> Engine:
        engine = self._open_engine()
        engine.refit(self._base)
        engine.rest()
        return engine


def _refit(engine: Engine, weights: WeightSet) -> RefitReport:
    try:
        return engine.refit(weights)
    except DataLoss:
        metrics.PROBE_FAILURES.inc()
        raise


def _holds(slot: _Slot, weights: str) -> bool:
    return slot.engine is not None and slot.engine.weights == weights
