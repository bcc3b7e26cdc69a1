"""Which engine holds which weights. A lease is the right to use an engine holding given weights, for one sample.

Since a refit is a write, it happens only here, inside a lease, so never under a run. The only locks of the sampler
are in this file. Its methods block; the service calls them from its worker threads.

An edit that mixes the base model in needs two sets of weights at once. For that there is one engine more, opened when
it is first needed, which keeps the base weights and is taken for one pass at a time. Whoever has it waits for nothing
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

from sampler_svc.engines.engine import BASE, TOO_SMALL, Array, Engine, WeightSet
from unitune import telemetry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """An engine that holds the weights that were asked for, and what it took to get there."""

    engine: Engine
    warm: bool  # the engine held them already
    refit_s: float  # from the weights file to the proven engine; 0 if warm
    probe_ratio: float  # of the refit that put them in


@dataclass(eq=False)
class _Slot:
    """One place for an engine."""

    engine: Engine | None = None
    is_leased: bool = False
    used: int = 0  # the lease that used it last, counted
    probe_ratio: float = TOO_SMALL
    to_forget: set[str] = field(default_factory=set)  # weights that were evicted during the lease


class EnginePool:
    """A fixed number of engines, at first with the base weights."""

    def __init__(
        self, open_engine: Callable[[], Engine], base: WeightSet, size: int = 1, *, is_lazy: bool = False
    ) -> None:
        """Opens all engines, or each when it is first leased. Raises what opening or proving one raises."""
        self._open_engine, self._base = open_engine, base
        self._changed = threading.Condition()
        self._refitting: set[str] = set()
        self._waiting: dict[object, str] = {}  # who waits for which weights, in the order they came
        self._leases = 0
        self._slots = [_Slot(None if is_lazy else self._open()) for _ in range(size)]
        self._base_turn = threading.Lock()
        self._base_engine: Engine | None = None

    @property
    def size(self) -> int:
        """The number of engines, and so of leases at a time."""
        return len(self._slots)

    def resident(self) -> list[str]:
        """The tuned weights that an engine holds now."""
        with self._changed:
            engines = [slot.engine for slot in self._slots]  # read once: a lease's end may replace one meanwhile
            held = {engine.weights for engine in engines if engine is not None}
            return sorted(weights for weights in held if weights not in (None, BASE))

    def is_free(self) -> bool:
        """Whether a lease would begin at once."""
        with self._changed:
            return not self._waiting and not all(slot.is_leased for slot in self._slots)

    @contextmanager
    def lease(self, weights: str, read: Callable[[], WeightSet]) -> Iterator[Lease]:
        """Wait for an engine, see that it holds the weights, and keep it until the end of the `with` block.

        Who came first is served first, but for those who wait for a refit of their weights. `read` is called only on a
        miss; several leases of one set wait while a first one refits it. Raises what `read` raises, and DataLoss when
        the weights do not take: the engine then goes back to the base weights.
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
                if slot.is_leased or slot in free:  # what a lease is reading may fail, and leave what was there before
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
                self._changed.notify_all()  # it is the next one's turn, if there is another engine
            free = [slot for slot in self._slots if not slot.is_leased]
            # The one that holds the weights already, else the one whose weights were not used for longest.
            slot = min(free, key=lambda slot: (not _holds(slot, weights), slot.used))
            self._leases += 1
            slot.is_leased, slot.used = True, self._leases
            if not _holds(slot, weights):
                self._refitting.add(weights)
            return slot

    def _is_turn(self, me: object) -> bool:
        """Whether an engine is free and all who came earlier wait for a refit that runs."""
        able = (waiting for waiting, weights in self._waiting.items() if weights not in self._refitting)
        return next(able, None) is me and not all(slot.is_leased for slot in self._slots)

    def _hold(self, slot: _Slot, weights: str, read: Callable[[], WeightSet]) -> Lease:
        if slot.engine is not None and slot.engine.weights == weights:
            return Lease(slot.engine, True, 0.0, slot.probe_ratio)
        began = time.perf_counter()
        try:
            if slot.engine is None:
                slot.engine = self._open_engine()
            report = slot.engine.refit(self._base if weights == BASE else read())
        finally:
            with self._changed:
                self._refitting.discard(weights)
                self._changed.notify_all()
        slot.probe_ratio = report.probe_ratio
        return Lease(slot.engine, False, time.perf_counter() - began, report.probe_ratio)

    def _give_back(self, slot: _Slot) -> None:
        """End a lease; an engine of unknown weights, or of weights to forget, is replaced by one with the base's."""
        if slot.engine is None or slot.engine.weights is None or slot.engine.weights in slot.to_forget:
            try:
                if slot.engine is not None:
                    slot.engine.close()
                slot.engine = None
                slot.engine = self._open()
            except Exception:  # the next lease tries again, and tells its caller
                telemetry.failure(logger, "an engine could not be opened again")
        with self._changed:
            slot.is_leased = False
            slot.to_forget.clear()
            self._changed.notify_all()

    def _open(self) -> Engine:
        engine = self._open_engine()
        engine.refit(self._base)
        return engine


def _holds(slot: _Slot, weights: str) -> bool:
    return slot.engine is not None and slot.engine.weights == weights
